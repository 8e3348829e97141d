"""Serves a log over HTTP while it is written (facts page, section 4)."""

from __future__ import annotations

import trio
from starlette.types import Receive, Scope, Send

from worker.tasklog import CHUNK, TaskLog

PAUSE = 0.05  # seconds in which output is gathered: each send costs much more than the bytes in it

METHODS = b"GET, HEAD, OPTIONS"
COMMON_HEADERS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"X-Streaming"),
]
LOG_HEADERS = [
    *COMMON_HEADERS,
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"x-streaming", b"true"),
    # What a task writes is not for a browser to guess a type from, nor for a proxy to keep or to change.
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store, no-transform"),
]


class Viewers:
    """An ASGI application that shows one log to whoever asks: from byte 0 on, as it is written, until it is closed."""

    def __init__(self, log: TaskLog) -> None:
        self._log = log
        self._reading = 0
        self._nobody_reads = trio.Event()
        self._nobody_reads.set()

    async def wait_read(self) -> None:
        """Return when every viewer has got all of the log or has gone."""
        await self._nobody_reads.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Cancellation breaks the answer off, visibly for the viewer."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        match scope["method"]:
            case "GET":
                await self._show(receive, send)
            case "HEAD":
                await _answer(send, 200, LOG_HEADERS)
            case "OPTIONS":
                allowed = [(b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", b"*")]
                await _answer(send, 204, [*COMMON_HEADERS, *allowed, (b"access-control-max-age", b"3600")])
            case _:
                await _answer(send, 405, [*COMMON_HEADERS, (b"allow", METHODS), (b"content-length", b"0")])

    async def _show(self, receive: Receive, send: Send) -> None:
        if not self._reading:
            self._nobody_reads = trio.Event()
        self._reading += 1
        try:
            async with trio.open_nursery() as nursery:
                # A viewer of a silent log would else be noticed to have gone only when something is written.
                nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
                await self._stream(send)
                nursery.cancel_scope.cancel()
        finally:
            self._reading -= 1
            if not self._reading:
                self._nobody_reads.set()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": LOG_HEADERS})
        offset = 0
        while chunk := await self._log.read(offset):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            offset += len(chunk)
            if len(chunk) < CHUNK and not self._log.closed:
                await trio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": b""})


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
