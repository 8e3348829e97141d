"""The headers of a log's answers, and those answers that are short."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs

import trio
from starlette.types import Receive, Scope, Send

Header = tuple[bytes, bytes]

METHODS = b"GET, HEAD, OPTIONS"
COMMON_HEADERS: list[Header] = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"X-Streaming, X-Offset, Content-Range"),
]
CONTENT_HEADERS: list[Header] = [
    *COMMON_HEADERS,
    # What a task writes is not for a browser to guess a type from, nor for a proxy to keep or to change.
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store, no-transform"),
    # Nor to gather (nginx, ngx_http_proxy_module).
    (b"x-accel-buffering", b"no"),
    (b"referrer-policy", b"no-referrer"),
]


class BadRequest(Exception):
    """The text tells the viewer what is wrong."""


def offset_of(scope: Scope) -> int | None:
    """The query's `offset`, None without one. Raises BadRequest."""
    values = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("offset")
    if values is None:
        return None
    return parse_offset(values[-1], "the query's offset")


def parse_offset(text: str, what: str) -> int:
    """A number of bytes. Raises BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadRequest(f"{what} must be a number of bytes, not negative")
    return int(text)


def header(scope: Scope, name: bytes) -> str | None:
    """The request's header of that name, in lower case."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def answer(scope: Scope, send: Send, status: int, headers: Iterable[Header], body: bytes = b"") -> None:
    """The whole answer; also to a websocket's opening, which it refuses (ASGI, `websocket.http.response`)."""
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{prefix}.start", "status": status, "headers": list(headers)})
    await send({"type": f"{prefix}.body", "body": b"" if scope.get("method") == "HEAD" else body})


async def refuse(scope: Scope, send: Send, status: int, reason: str, headers: Iterable[Header] = ()) -> None:
    """Say in a line why not."""
    body = reason.encode() + b"\n"
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await answer(scope, send, status, [*CONTENT_HEADERS, *own, *headers], body)


async def cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel `scope` when the viewer has gone: of one who reads a silent log nothing else tells."""
    while (await receive())["type"] not in {"http.disconnect", "websocket.disconnect"}:
        pass
    scope.cancel()
