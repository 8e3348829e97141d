"""A log that is much larger than the memory that a worker may take for it, by all ways to read it."""

from __future__ import annotations

import hashlib
import random
import sys
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket

from worker.model import RunKey
from worker.testing.realworker import real_worker
from worker.testing.world import BACKING_LOG, World, open_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by proc(5)")

MIB = 2**20
CHUNK = 256 * 1024
MOST_GROWTH = 32 * MIB
LIVE = "public/logs/live.log"

# Lines that do not repeat, as fast as a task can write; then it waits, so that the log stays where it is.
WRITER = """
import os, pathlib, random, sys, time
block = "".join(f"{random.getrandbits(256):064x} some words that compress\\n" for _ in range(700))
size, done = int(sys.argv[1]), 0
while done < size:
    data = f"at {done}\\n{block}".encode()
    done += len(data)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest):]
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.05)
"""


@dataclass
class Reader:
    """What one way of reading has brought."""

    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    grown: trio.Event = field(default_factory=trio.Event)

    def take(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        self.grown.set()
        self.grown = trio.Event()

    async def wait_size(self, size: int) -> None:
        while self.size < size:
            await self.grown.wait()


async def body_of(stream: trio.SocketStream, url: httpx.URL, query: str = "") -> bytes:
    """Ask for the log in HTTP/1.0, of which the body is the bytes as they are; its beginning."""
    await stream.send_all(f"GET {url.path}{query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = await stream.receive_some(CHUNK)
        assert chunk, answer
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.partition(b"\r\n")[0], head
    return body


async def live(url: httpx.URL, reader: Reader) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", url.port or 80) as stream:
        reader.take(await body_of(stream, url))
        while chunk := await stream.receive_some(CHUNK):
            reader.take(bytes(chunk))


async def messages(socket: trio_websocket.WebSocketConnection, reader: Reader) -> None:
    while True:
        message = await socket.get_message()
        assert isinstance(message, bytes)
        reader.take(message)


async def websocket(url: httpx.URL, reader: Reader) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", url.port or 80) as stream, trio.open_nursery() as nursery:
        socket = await trio_websocket.wrap_client_stream(
            nursery, stream, url.netloc.decode(), url.path, receive_buffer_size=CHUNK
        )
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await messages(socket, reader)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1000
        nursery.cancel_scope.cancel()


def in_cuts(size: int, cuts: int) -> Callable[[httpx.URL, Reader], Awaitable[None]]:
    """Reads that are cut off at random places and go on from there."""
    places = sorted(random.Random(1).randrange(size) for _ in range(cuts))

    async def read(url: httpx.URL, reader: Reader) -> None:
        for place in [*places, None]:
            async with await trio.open_tcp_stream("127.0.0.1", url.port or 80) as stream:
                chunk = await body_of(stream, url, f"?offset={reader.size}")
                while place is None or reader.size + len(chunk) < place:
                    reader.take(chunk)
                    chunk = bytes(await stream.receive_some(CHUNK))
                    if not chunk:
                        return
                reader.take(chunk[: max(0, place - reader.size)])

    return read


async def stored(world: World, task_id: str, reader: Reader) -> None:
    place = await world.queue.get_artifact(RunKey(task_id, 0), BACKING_LOG)
    async with world.http.bulk.stream("GET", place.url) as stream:
        inflate = zlib.decompressobj(wbits=31)
        async for chunk in stream.chunks(decode=False):
            reader.take(inflate.decompress(chunk))
        reader.take(inflate.flush())


def memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize(
    "size", [pytest.param(48 * MIB, id="48MiB"), pytest.param(1024 * MIB, id="1GiB", marks=pytest.mark.full)]
)
async def test_every_way_brings_the_same_bytes_and_memory_does_not_grow(
    tmp_path: Path, size: int, record_property: Callable[[str, object], None]
) -> None:
    go, settings = tmp_path / "go", {"plugins": {"livelog": {"delay": 0, "lag": "5 minutes"}}}
    (tmp_path / "world").mkdir()
    readers = {name: Reader() for name in ("live", "websocket", "cuts", "stored")}
    with trio.fail_after(600):
        async with open_world(tmp_path / "world") as world:
            payload = {"command": [[sys.executable, "-c", WRITER, str(size), str(go)]], "maxRunTime": 600}
            async with real_worker(world, tmp_path, parts=settings, numberOfTasks=1) as worker:
                await worker.hear("claims from")
                pid = worker.process.pid
                before = memory(pid, "VmRSS")
                task_id = await world.create(payload)
                url = httpx.URL(await world.live_log(task_id))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(live, url, readers["live"])
                    nursery.start_soon(websocket, url, readers["websocket"])
                    nursery.start_soon(in_cuts(size, 100), url, readers["cuts"])
                    for name in ("live", "websocket", "cuts"):
                        await readers[name].wait_size(size)
                    go.touch()
                await world.resolved(task_id)
                growth = memory(pid, "VmHWM") - before
                assert await worker.end() == 0
            await stored(world, task_id, readers["stored"])
    record_property("growth", growth)
    print(f"RSS grew by {growth / MIB:.1f} MiB")
    assert readers["live"].size > size
    assert len({(reader.size, reader.digest.hexdigest()) for reader in readers.values()}) == 1
    assert growth < MOST_GROWTH
