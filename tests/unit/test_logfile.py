from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from worker.logfile import CHUNK, RECENT, Follower, LogFile
from worker.ports import Ports

T = TypeVar("T")


class CountingPorts(Ports):
    """Counts the reads from files."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        self.reads += function is os.pread
        return await super().run_sync(function, *args)


@asynccontextmanager
async def opened(folder: Path, ports: Ports | None = None) -> AsyncGenerator[LogFile, None]:
    file = LogFile(ports or Ports(), folder / "log")
    try:
        yield file
    finally:
        await file.aclose()


async def test_what_is_new_is_read_from_memory_and_what_is_old_from_the_file(tmp_path: Path) -> None:
    ports = CountingPorts()
    async with opened(tmp_path, ports) as file:
        data = os.urandom(5 * RECENT)
        for start in range(0, len(data), CHUNK):
            file.append(data[start : start + CHUNK])
            await file.flush()
            assert await file.read(start) == data[start : start + CHUNK]
        assert ports.reads == 0
        assert await file.read(10, 100) == data[10:110]
        assert ports.reads == 1


async def test_only_so_much_stays_in_memory_once_it_is_written(tmp_path: Path) -> None:
    ports = CountingPorts()
    async with opened(tmp_path, ports) as file:
        for _ in range(50):
            file.append(os.urandom(CHUNK))
            await file.flush()
            assert file.unwritten == 0
        assert file.size == (tmp_path / "log").stat().st_size == 50 * CHUNK
        await file.read(file.size - RECENT)
        assert ports.reads == 0
        await file.read(file.size - RECENT - 1)
        assert ports.reads == 1


async def test_readers_at_any_offset_get_the_same_bytes(tmp_path: Path) -> None:
    chance = random.Random(1)
    data = os.urandom(700_000)
    async with opened(tmp_path) as file, trio.open_nursery() as nursery:
        got: dict[int, bytes] = {}

        async def read(offset: int) -> None:
            got[offset] = b"".join([chunk async for chunk in Follower(file, offset)])

        offsets = [0, len(data), *(chance.randrange(len(data)) for _ in range(20))]
        for offset in offsets:
            nursery.start_soon(read, offset)
        done = 0
        while done < len(data):
            piece = data[done : done + chance.randrange(1, 30_000)]
            file.append(piece)
            done += len(piece)
            if chance.random() < 0.3:
                await file.flush()
            await trio.lowlevel.checkpoint()
        file.close()
    assert got == {offset: data[offset:] for offset in offsets}


async def test_a_follower_ends_where_it_is_told_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as file:
        file.append(bytes(3 * CHUNK))
        assert [len(chunk) async for chunk in Follower(file, 5, end=CHUNK + 10)] == [CHUNK, 5]
        assert [chunk async for chunk in Follower(file, 5, end=5)] == []


async def test_a_follower_gathers_what_comes_in_little_pieces(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path) as file, trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def follow() -> None:
            got.extend([chunk async for chunk in Follower(file, pause=10)])

        nursery.start_soon(follow)
        for number in range(100):
            file.append(b"%d " % number)
            await trio.sleep(1)
        file.close()
    assert b"".join(got) == b"".join(b"%d " % number for number in range(100))
    assert 10 <= len(got) <= 12


async def test_a_cancelled_wait_loses_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as file:
        follower = Follower(file, pause=5)
        file.append(b"one")
        assert await anext(follower) == b"one"
        for _ in range(3):
            with trio.move_on_after(1):
                await anext(follower)
        file.append(b"two")
        assert await anext(follower) == b"two"


async def test_waiting_for_a_size_ends_with_the_log(tmp_path: Path) -> None:
    async with opened(tmp_path) as file, trio.open_nursery() as nursery:
        nursery.start_soon(file.wait_size, 1000)
        await trio.testing.wait_all_tasks_blocked()
        file.append(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        file.close()


async def test_a_file_that_somebody_has_cut_is_no_log_that_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as file:
        file.append(b"." * (RECENT + CHUNK))
        await file.flush()
        file.close()
        os.truncate(file.path, 100)
        follower = Follower(file)
        assert await anext(follower) == b"." * 100
        with pytest.raises(OSError, match="shorter"):
            await anext(follower)
