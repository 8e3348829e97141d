"""A live log as the interface of `plugins/livelog` has it, on sockets, whose connections can be cut at any byte."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from urllib.parse import parse_qs

import trio
from starlette.types import Receive, Scope, Send

from worker.serving import listen, port_of, serve
from worker.viewer import LogView, Viewer

PIECE = 64 * 1024
HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"X-Streaming, X-Offset"),
]
STREAMING = (b"x-streaming", b"true")


class LogServer:
    """An ASGI application: `/log/` is the log, `/artifact` leads to it while it is live, and then is the stored one.

    To ask for `/end` ends the log; the answer comes when a websocket was sent all of it and the close code.

    `asked` are the offsets that were asked for by websocket and by GET, in their order. Without `offsets` a GET brings
    the whole log, as from a server that does not know them. `artifact` is the URL of the page's artifact.
    """

    def __init__(
        self, viewer: Viewer, *, artifact: str | None = None, websockets: bool = True, offsets: bool = True
    ) -> None:
        self.content = bytearray()
        self.times: list[tuple[int, int]] = []
        self.ended = False
        self.live = True
        self.websockets = websockets
        self.offsets = offsets
        self.asked: list[tuple[str, int]] = []
        self.close_code = 1000
        self._closed = trio.Event()
        self.url = ""
        self._changed = trio.Event()
        self._view = LogView(viewer, title="The log of a test", artifact=artifact)

    def write(self, data: bytes, time: int | None = None) -> None:
        """Append to the log; `time` is in milliseconds since 1970."""
        if time is not None:
            self.times.append((len(self.content), time))
        self.content += data
        self._change()

    def end(self, close_code: int = 1000) -> None:
        """There is nothing more to come; websockets are closed with `close_code` when they have got it all."""
        self.ended, self.close_code = True, close_code
        self._change()

    def detach(self) -> None:
        """Serve it live no more: open websockets get 1001, requests 404."""
        self.live = False
        self._change()

    async def wait_asked(self, count: int) -> None:
        """Return when it was asked for `count` times."""
        while len(self.asked) < count:
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        offset = int(parse_qs(scope["query_string"].decode()).get("offset", ["0"])[0])
        if path.startswith("/log/view"):
            await self._view({**scope, "path": path.removeprefix("/log")}, receive, send)
        elif path == "/end":
            self.end()
            await self._closed.wait()
            await _answer(send, 200, b"")
        elif path == "/artifact":
            await self._artifact(send)
        elif path == "/log/times" and self.live:
            body = json.dumps({"precision": 0.001, "times": [each for each in self.times if each[0] >= offset]})
            await _answer(send, 200, body.encode())
        elif path != "/log/" or not self.live or (scope["type"] == "websocket" and not self.websockets):
            await _answer(send, 404, b"not here\n", scope["type"])
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                self.asked.append((scope["type"], offset))
                self._change()
                await (self._socket if scope["type"] == "websocket" else self._stream)(offset, send)
                nursery.cancel_scope.cancel()

    async def _pieces(self, offset: int) -> AsyncGenerator[bytes, None]:
        while self.live:
            changed = self._changed
            if piece := bytes(self.content[offset : offset + PIECE]):
                yield piece
                offset += len(piece)
            elif self.ended:
                return
            else:
                await changed.wait()

    async def _socket(self, offset: int, send: Send) -> None:
        await send({"type": "websocket.accept"})
        async with aclosing(self._pieces(offset)) as pieces:
            async for piece in pieces:
                await send({"type": "websocket.send", "bytes": piece})
        await send({"type": "websocket.close", "code": self.close_code if self.ended else 1001})
        self._closed.set()

    async def _stream(self, offset: int, send: Send) -> None:
        headers = [*HEADERS, STREAMING]
        if self.offsets:
            headers.append((b"x-offset", b"%d" % offset))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._pieces(offset if self.offsets else 0)) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.live:
            await send({"type": "http.response.body", "body": b""})

    async def _artifact(self, send: Send) -> None:
        if self.live:
            location = (b"location", f"{self.url}log/".encode())
            await send({"type": "http.response.start", "status": 303, "headers": [*HEADERS, location]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await _answer(send, 200 if self.ended else 404, bytes(self.content))


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] not in {"http.disconnect", "websocket.disconnect"}:
        pass
    scope.cancel()


async def _answer(send: Send, status: int, body: bytes, kind: str = "http") -> None:
    prefix = "websocket.http.response" if kind == "websocket" else "http.response"
    await send({"type": f"{prefix}.start", "status": status, "headers": HEADERS})
    await send({"type": f"{prefix}.body", "body": body})


class Proxy:
    """Passes TCP on, until `cut`: then its connections end in the middle of whatever they were at."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[trio.SocketStream] = set()
        self._passed = 0
        self._cut_at = [float("inf")]

    def cut_after(self, *counts: int) -> None:
        """Cut all connections when so many bytes have gone to clients, counted anew each time."""
        self._passed, self._cut_at = 0, [*counts, float("inf")]

    def cut(self) -> None:
        """Cut all connections now, without a goodbye."""
        for stream in self._open:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        self._open.clear()

    async def handle(self, client: trio.SocketStream) -> None:
        """Pass on one connection, both ways."""
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
                streams = {client, server}
                self._open |= streams
                try:
                    nursery.start_soon(self._copy, client, server, False)
                    await self._copy(server, client, True)
                    nursery.cancel_scope.cancel()
                finally:
                    self._open -= streams
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # cut, or gone by itself

    async def _copy(self, source: trio.SocketStream, target: trio.SocketStream, counted: bool) -> None:
        async for data in source:
            room = self._cut_at[0] - self._passed
            if counted and len(data) >= room:
                await target.send_all(data[: int(room)])
                del self._cut_at[0]
                self._passed = 0
                self.cut()
                return
            self._passed += len(data) if counted else 0
            await target.send_all(data)


@asynccontextmanager
async def serve_log(server: LogServer) -> AsyncGenerator[Proxy, None]:
    """Serve it, at `server.url`, for as long as the block runs; what it yields can cut connections."""
    own, public = await listen("127.0.0.1", 0), await listen("127.0.0.1", 0)
    proxy = Proxy(port_of(own))
    server.url = f"http://127.0.0.1:{port_of(public)}/"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, server, own)
        await nursery.start(partial(trio.serve_listeners, proxy.handle, public))
        yield proxy
        nursery.cancel_scope.cancel()
