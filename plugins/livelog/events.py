"""A log as Server-Sent Events, one per line, with the time at which the line began (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import trio
from starlette.types import Scope, Send

from plugins.livelog.answers import CONTENT_HEADERS, Header, answer, header, offset_of, parse_offset
from plugins.livelog.streaming import PAUSE
from worker.linetimes import LineTimes
from worker.logfile import Follower
from worker.tasklog import TaskLog

LONGEST_LINE = 16 * 1024  # bytes; of a longer one several events are made
BATCH = 16 * 1024  # bytes of lines and of what an event has besides, about, that are sent at once
ENVELOPE = 80  # bytes that an event has besides its line, about
SILENCE = 15.0  # seconds after which a comment is sent: proxies end what is silent for long

HEADERS: list[Header] = [*CONTENT_HEADERS, (b"content-type", b"text/event-stream"), (b"x-streaming", b"true")]


class Lines:
    """Cuts a stream of bytes into lines, without I/O. `offset` is that of the first byte that is not told yet."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that are complete now, `\\n` included; and pieces of one that is too long, without."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._pieces(line + b"\n")
        while len(rest) > LONGEST_LINE:
            yield self._told(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._rest = rest

    def end(self) -> Iterator[bytes]:
        """The last line, if it has no `\\n`."""
        if self._rest:
            yield self._told(self._rest)
        self._rest = b""

    def _pieces(self, line: bytes) -> Iterator[bytes]:
        for start in range(0, len(line), LONGEST_LINE):
            yield self._told(line[start : start + LONGEST_LINE])

    def _told(self, line: bytes) -> bytes:
        self.offset += len(line)
        return line


def first_of(scope: Scope) -> int:
    """The offset at which a viewer wants to begin: an `EventSource` that comes again says so. Raises BadRequest."""
    seen = header(scope, b"last-event-id")
    return (offset_of(scope) or 0) if seen is None else parse_offset(seen, "Last-Event-ID")


async def send_events(log: TaskLog, offset: int, scope: Scope, send: Send) -> None:
    """All lines from the offset on, then the event `end`."""
    if scope["method"] == "HEAD":
        await answer(scope, send, 200, HEADERS)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    follower, lines = Follower(log.file, offset, pause=PAUSE), Lines(offset)
    sent = trio.current_time()
    while True:
        chunk = None
        with trio.move_on_at(sent + SILENCE):
            chunk = await anext(follower, b"")
        if chunk == b"":
            break
        for body in _bodies(log.times, lines.offset, lines.feed(chunk)) if chunk else [b": nothing new\n\n"]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            sent = trio.current_time()
    last = b"".join(_bodies(log.times, lines.offset, lines.end())) + b"event: end\ndata: {}\n\n"
    await send({"type": "http.response.body", "body": last})


def _bodies(times: LineTimes, offset: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The events of `lines`, the first of which begins at `offset`, in pieces.

    A piece of a log that is all line ends gives eighty times as many bytes: these are neither made without a pause for
    others nor held for a viewer who is slow.
    """
    body: list[bytes] = []
    size = 0
    for line in lines:
        time = datetime.fromtimestamp(times.at(offset), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = line.removesuffix(b"\n").decode(errors="replace")
        data = json.dumps({"offset": offset, "time": time, "line": text})
        offset += len(line)
        body.append(f"id: {offset}\ndata: {data}\n\n".encode())
        size += ENVELOPE + len(line)
        if size >= BATCH:
            yield b"".join(body)
            body, size = [], 0
    if body:
        yield b"".join(body)
