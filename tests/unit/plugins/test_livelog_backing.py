"""The backing log, compressed while the task runs."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TypeVar

import trio

from plugins.livelog.backing import BATCH, BackingLog, open_backing
from worker.logfile import LogFile
from worker.ports import Ports
from worker.spool import Gzip, Gzipped

T = TypeVar("T")


@asynccontextmanager
async def world(folder: Path, ports: Ports | None = None) -> AsyncGenerator[tuple[LogFile, BackingLog], None]:
    descriptor = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
    try:
        file = LogFile(ports or Ports(), folder / "log", descriptor)
        async with open_backing(ports or Ports(), file) as backing:
            yield file, backing
    finally:
        os.close(descriptor)


async def content(stored: Gzipped) -> bytes:
    await stored.rewind()
    compressed = b""
    while chunk := await stored.read():
        compressed += chunk
    assert len(compressed) == stored.length
    return gzip.decompress(compressed)


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
                if self.fed == 2 * BATCH:
                    self.kept_up.set()
            return result

    data, ports = os.urandom(5 * BATCH // 2), Watching()
    async with world(tmp_path, ports) as (file, backing):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backing.keep_up)
            file.append(data)
            await file.flush()
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


async def test_a_disk_that_was_full_meanwhile_costs_nothing_but_time(tmp_path: Path) -> None:
    class Spool:
        """A file on a disk that is full."""

        def __init__(self, inner: IO[bytes]) -> None:
            self.inner = inner
            self.full = True

        def write(self, data: bytes) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.inner.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    data = os.urandom(3 * BATCH)
    async with world(tmp_path) as (file, _):
        with (tmp_path / "spool").open("w+b") as inner:
            spool = Spool(inner)
            backing = BackingLog(file, Gzip(Ports(), spool))  # type: ignore[arg-type]  # has what is used
            file.append(data)
            await backing.keep_up()
            spool.full = False
            file.close()
            assert await content(await backing.finish()) == data


async def test_an_empty_log(tmp_path: Path) -> None:
    async with world(tmp_path) as (file, backing):
        file.close()
        assert await content(await backing.finish()) == b""
