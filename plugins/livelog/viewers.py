"""Serves a log to those who have its URL, while it is written (facts page, section 4).

/         plain HTTP or websocket        /events   a line per event, with its time
/times    when which byte was written    /view     a page that shows it
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from plugins.livelog.answers import (
    COMMON_HEADERS,
    METHODS,
    BadRequest,
    answer,
    cancel_on_disconnect,
    offset_of,
    refuse,
)
from plugins.livelog.events import first_of, send_events
from plugins.livelog.sockets import show_log
from plugins.livelog.streaming import stream_log
from plugins.livelog.times import send_times
from worker.tasklog import TaskLog

PARTING = 0.25  # seconds after the last byte, for what a page asks then: when the last lines were written


class Viewers:
    """An ASGI application that shows one log to whoever asks."""

    def __init__(self, log: TaskLog, page: ASGIApp) -> None:
        """`page` answers what is at `/view` and below it."""
        self._log = log
        self._page = page
        self._reading = 0
        self._seen = False
        self._nobody_reads = trio.Event()
        self._nobody_reads.set()

    async def wait_read(self) -> None:
        """Return a moment after every viewer has got all of the log or has gone; at once if there never was one."""
        if self._seen:
            await self._nobody_reads.wait()
            await trio.sleep(PARTING)

    @contextmanager
    def _reader(self) -> Generator[None, None, None]:
        if not self._reading:
            self._nobody_reads = trio.Event()
        self._reading += 1
        self._seen = True
        try:
            yield
        finally:
            self._reading -= 1
            if not self._reading:
                self._nobody_reads.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Cancellation breaks the answer off, visibly for the viewer."""
        try:
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            elif scope["path"] == "/view" or scope["path"].startswith("/view/"):
                await self._page(scope, receive, send)
            elif scope["method"] in {"GET", "HEAD"}:
                await self._get(scope, receive, send)
            elif scope["method"] == "OPTIONS":
                allowed = [(b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", b"*")]
                await answer(scope, send, 204, [*COMMON_HEADERS, *allowed, (b"access-control-max-age", b"3600")])
            else:
                await refuse(scope, send, 405, "this can be read only", [(b"allow", METHODS)])
        except BadRequest as error:
            await refuse(scope, send, 400, str(error))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            await refuse(scope, send, 404, "there is no such websocket")
            return
        offset = offset_of(scope) or 0
        with self._reader():
            await show_log(self._log.file, offset, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/":
                answering = partial(stream_log, self._log.file, offset_of(scope), scope, send)
                await self._while_there(receive, answering)
            case "/events":
                await self._while_there(receive, partial(send_events, self._log, first_of(scope), scope, send))
            case "/times":
                await send_times(self._log.times, offset_of(scope) or 0, scope, send)
            case _:
                await refuse(scope, send, 404, "there is no such page")

    async def _while_there(self, receive: Receive, answering: Callable[[], Awaitable[None]]) -> None:
        with self._reader():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_on_disconnect, receive, nursery.cancel_scope)
                await answering()
                nursery.cancel_scope.cancel()
