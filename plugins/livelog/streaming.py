"""A log as plain HTTP: as it is written, from any byte on, or a range of it."""

from __future__ import annotations

from starlette.types import Scope, Send

from plugins.livelog.answers import CONTENT_HEADERS, Header, answer, header, refuse
from plugins.livelog.ranges import Part, Wanted, parse_range, part_of
from worker.logfile import Follower, LogFile

PAUSE = 0.05  # seconds in which output is gathered: each send costs much more than the bytes in it

TEXT_HEADERS: list[Header] = [*CONTENT_HEADERS, (b"content-type", b"text/plain; charset=utf-8")]
LOG_HEADERS: list[Header] = [*TEXT_HEADERS, (b"x-streaming", b"true"), (b"accept-ranges", b"bytes")]


async def stream_log(file: LogFile, offset: int | None, scope: Scope, send: Send) -> None:
    """Answer a GET or HEAD: 200 and all from the query's offset on, if it has one, or what a `Range` names."""
    # With an offset of its own a request has said what it wants; and the log has no validator to match (`If-Range`).
    ranged = header(scope, b"range") if offset is None and header(scope, b"if-range") is None else None
    wanted = parse_range(ranged) if ranged and scope["method"] == "GET" else None
    if wanted is not None:
        await _send_part(file, wanted, scope, send)
        return
    headers = [*LOG_HEADERS, (b"x-offset", str(offset or 0).encode())]
    if scope["method"] == "HEAD":
        await answer(scope, send, 200, headers)
    else:
        await _send_log(send, 200, headers, Follower(file, offset or 0, pause=PAUSE))


async def _send_part(file: LogFile, wanted: Wanted, scope: Scope, send: Send) -> None:
    part = await _part(file, wanted)
    if part is None:
        await refuse(scope, send, 416, "the log has no such bytes", [(b"content-range", b"bytes */%d" % file.size)])
        return
    headers = [*LOG_HEADERS, (b"content-range", part.content_range.encode())]
    if part.whole:
        headers.append((b"content-length", b"%d" % (part.end - part.first)))
    await _send_log(send, 206, headers, Follower(file, part.first, end=part.end, pause=PAUSE))


async def _part(file: LogFile, wanted: Wanted) -> Part | None:
    """Waits for the first byte: who has all of the log so far and asks for more is answered when there is more."""
    if wanted.first is not None:
        await file.wait_size(wanted.first + 1)
    return part_of(wanted, file.size, closed=file.closed)


async def _send_log(send: Send, status: int, headers: list[Header], follower: Follower) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    async for chunk in follower:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
