"""The access log: one line for each exchange, without secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.serving import PeerGone

log = logging.getLogger("worker.access")

BURST = 1000  # lines at once,
RATE = 20.0  # and lines a second from then on; the others are only counted, since anybody can cause them
LONGEST = 200  # characters of a path


@dataclass(slots=True)
class _Exchange:
    status: int = 0
    sent: int = 0  # bytes of the body, or of messages
    code: int | None = None  # with which a websocket was closed
    done: bool = False

    def on_sent(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self.status = message["status"]
            case "http.response.body" | "websocket.http.response.body":
                self.sent += len(message.get("body", b""))
                self.done = not message.get("more_body", False)
            case "websocket.accept":
                self.status = 101
            case "websocket.send":
                self.sent += len(message.get("bytes") or message.get("text") or b"")
            case "websocket.close" if self.status:
                self.code, self.done = self.code or message.get("code", 1000), True
            case "websocket.close":
                self.status, self.done = 403, True

    def on_received(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect" and not self.done:
            self.code, self.done = message["code"], True

    def __str__(self) -> str:
        end = "" if self.done else ", broken off"
        code = f", closed with {self.code}" if self.code is not None else ""
        return f"{self.status or '-'} {self.sent} bytes{code}{end}"


class AccessLog:
    """An ASGI application: `app`, with a line in the logger `worker.access` when an exchange has ended.

    `shown` tells what of a raw path may be told. Queries and headers are not.
    """

    def __init__(self, app: ASGIApp, shown: Callable[[bytes], str]) -> None:
        self._app = app
        self._shown = shown
        self._budget = float(BURST)
        self._counted_at = 0.0
        self._left_out = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange()

        async def receive_noted() -> Message:
            message = await receive()
            exchange.on_received(message)
            return message

        async def send_noted(message: Message) -> None:
            await send(message)
            exchange.on_sent(message)

        with self._line(scope, exchange):
            await self._app(scope, receive_noted, send_noted)

    @contextmanager
    def _line(self, scope: Scope, exchange: _Exchange) -> Iterator[None]:
        path = self._shown(scope["raw_path"]) + ("?..." if scope["query_string"] else "")
        began = trio.current_time()
        try:
            yield
        except Exception as error:
            _, bugs = ExceptionGroup("", [error]).split(PeerGone)
            if bugs:
                exchange.status = exchange.status or 500  # as the server answers for it
            raise
        finally:
            if self._may_tell():
                what = scope["method"] if scope["type"] == "http" else "websocket"
                seconds = trio.current_time() - began
                log.info("%s %s %s %s, %.3f s", _address(scope), _plain(what), _plain(path), exchange, seconds)

    def _may_tell(self) -> bool:
        now = trio.current_time()
        self._budget = min(BURST, self._budget + (now - self._counted_at) * RATE)
        self._counted_at = now
        if self._budget < 1:
            self._left_out += 1
            return False
        self._budget -= 1
        if self._left_out:
            log.info("%d exchanges are not listed: they were too many", self._left_out)
            self._left_out = 0
        return True


def _address(scope: Scope) -> str:
    client = scope.get("client")
    if client is None:
        return "-"
    host, port = client
    return _plain(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _plain(text: str) -> str:
    """`text` as one word of printable ASCII characters."""
    escaped = re.sub(r"[^\x21-\x7e]", lambda found: f"\\x{ord(found[0]):02x}", text[:LONGEST])
    return escaped if len(text) <= LONGEST else f"{escaped}..."
