"""The backing log, compressed while the task runs."""

from __future__ import annotations

import gzip
import os
import resource
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from plugins.livelog.backing import BATCH, BackingLog, open_backing
from worker.logfile import LogFile
from worker.ports import Ports
from worker.queue.transfer import Content

T = TypeVar("T")
MEBIBYTE = 2**20  # the compressed bytes that stay in memory


@asynccontextmanager
async def world(folder: Path, ports: Ports | None = None) -> AsyncGenerator[tuple[LogFile, BackingLog], None]:
    file = LogFile(ports or Ports(), folder / "log")
    try:
        async with open_backing(ports or Ports(), file) as backing:
            yield file, backing
    finally:
        await file.aclose()


async def content(stored: Content, encoding: str | None = "gzip") -> bytes:
    assert stored.encoding == encoding
    data = b""
    async with stored.open() as chunks:
        async for chunk in chunks:
            data += chunk
    assert len(data) == stored.length
    return gzip.decompress(data) if encoding else data


async def test_what_is_written_is_compressed_meanwhile(tmp_path: Path) -> None:
    class Watching(Ports):
        """Sees what goes to the compressor."""

        fed = 0
        kept_up = trio.Event()

        async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
            result = await super().run_sync(function, *args)
            if function.__name__ == "_compress":
                assert isinstance(args[0], bytes)
                self.fed += len(args[0])
                if self.fed > len(data) - BATCH:  # less than a batch is left
                    self.kept_up.set()
            return result

    data, ports = os.urandom(5 * BATCH // 2), Watching()
    async with world(tmp_path, ports) as (file, backing):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backing.keep_up)
            file.append(data)
            await file.flush()
            with trio.fail_after(30):
                await ports.kept_up.wait()
            nursery.cancel_scope.cancel()
        file.append(b"the rest")
        file.close()
        assert await content(await backing.finish()) == data + b"the rest"
    assert ports.fed == len(data) + len(b"the rest")


async def test_a_cancel_in_the_midst_leaves_no_gap(tmp_path: Path) -> None:
    data = os.urandom(20 * BATCH)
    async with world(tmp_path) as (file, backing):
        file.append(data)
        await file.flush()
        for number in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backing.keep_up)
                for _ in range(number):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        file.close()
        assert await content(await backing.finish()) == data


@pytest.mark.parametrize("room", range(MEBIBYTE, MEBIBYTE + 2 * BATCH, 64 * 1024 - 1))
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_disk_that_was_full_meanwhile_costs_nothing_but_time(
    tmp_path: Path, room: int, cancelled: bool
) -> None:
    class Disk(Ports):
        """Has `room` for each file of this process while it is full; the rest is in real files, with their buffers."""

        full = True

        async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
            if function.__name__ != "_compress" or not self.full:
                return await super().run_sync(function, *args)
            try:
                with a_file_takes(room):
                    return await super().run_sync(function, *args)
            except OSError:
                if cancelled:
                    scope.cancel()
                raise

    data, disk, scope = os.urandom(MEBIBYTE + 3 * BATCH), Disk(), trio.CancelScope()
    async with world(tmp_path, disk) as (file, backing):
        file.append(data)
        await file.flush()
        with scope:
            await backing.keep_up()
        disk.full = False
        file.close()
        assert await content(await backing.finish()) == data


async def test_where_the_disk_is_still_full_at_the_end_the_log_is_stored_as_it_is(tmp_path: Path) -> None:
    data = os.urandom(MEBIBYTE + 3 * BATCH)
    async with world(tmp_path) as (file, backing):
        file.append(data)
        await file.flush()
        file.close()
        with a_file_takes(MEBIBYTE):
            stored = await backing.finish()
        assert await content(stored, None) == data
        assert await content(backing.plain, None) == data


@contextmanager
def a_file_takes(size: int) -> Generator[None, None, None]:
    """Files of this process get no larger, as on a disk that is full."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_an_empty_log(tmp_path: Path) -> None:
    async with world(tmp_path) as (file, backing):
        file.close()
        assert await content(await backing.finish()) == b""
