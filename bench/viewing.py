"""Viewers in a process of their own: they read a URL to its end, many at once, and tell what they got.

`python -m bench.viewing URL NUMBER WAY`, where WAY is http or websocket. A line on stdout when all have begun, another
with the figures as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256

import httpx
import trio
import trio_websocket

from bench.writing import LINE

SAMPLED = 10  # viewers whose lines are looked at: that costs time
CHUNK = 256 * 1024


@dataclass
class Viewed:
    """What all viewers saw. Latencies are of lines, from their writing to their arrival, in seconds."""

    bytes: int = 0
    digests: set[str] = field(default_factory=set)
    began: float = 0.0  # the first byte, by this machine's monotonic clock
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Viewer:
    """Takes the bytes of one viewer."""

    def __init__(self, viewed: Viewed, sampled: bool) -> None:
        self._viewed = viewed
        self._sampled = sampled
        self._digest = sha256()
        self._rest = b""

    def take(self, chunk: bytes) -> None:
        viewed = self._viewed
        viewed.began = viewed.began or time.monotonic()
        viewed.bytes += len(chunk)
        self._digest.update(chunk)
        if self._sampled:
            now = time.time_ns()
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            viewed.latencies += [(now - int(line)) / 1e9 for line in lines if len(line) == LINE - 1 and line[0] < 58]

    def end(self) -> None:
        self._viewed.ended = time.monotonic()
        self._viewed.digests.add(self._digest.hexdigest())


async def _http(url: httpx.URL, viewer: Viewer, begun: trio.Event) -> None:
    # HTTP/1.0, so that the body is the bytes as they are: it is the server that is measured.
    async with await trio.open_tcp_stream(url.host, url.port or 80) as stream:
        await stream.send_all(b"GET %b HTTP/1.0\r\nHost: %b\r\n\r\n" % (url.raw_path, url.netloc))
        begun.set()
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = await stream.receive_some(CHUNK)
            assert chunk, head
            head += chunk
        head, _, body = head.partition(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] == b"200", head
        viewer.take(body)
        while chunk := await stream.receive_some(CHUNK):
            viewer.take(bytes(chunk))
    viewer.end()


async def _websocket(url: httpx.URL, viewer: Viewer, begun: trio.Event) -> None:
    async with await trio.open_tcp_stream(url.host, url.port or 80) as stream, trio.open_nursery() as nursery:
        socket = await trio_websocket.wrap_client_stream(
            nursery, stream, url.netloc.decode(), url.raw_path.decode(), receive_buffer_size=CHUNK
        )
        begun.set()
        try:
            while True:
                message = await socket.get_message()
                assert isinstance(message, bytes)
                viewer.take(message)
        except trio_websocket.ConnectionClosed as closed:
            if closed.reason is None or closed.reason.code != 1000:
                raise
        viewer.end()
        nursery.cancel_scope.cancel()


async def _view(url: httpx.URL, number: int, way: str) -> Viewed:
    viewed = Viewed()
    view = {"http": _http, "websocket": _websocket}[way]
    async with trio.open_nursery() as nursery:
        for index in range(number):
            begun = trio.Event()
            nursery.start_soon(view, url, Viewer(viewed, index < SAMPLED), begun)
            await begun.wait()
        print("begun", flush=True)
    return viewed


def main(url: str, number: str, way: str) -> None:
    """See the module."""
    viewed = trio.run(_view, httpx.URL(url), int(number), way)
    print(json.dumps({**asdict(viewed), "digests": sorted(viewed.digests)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
