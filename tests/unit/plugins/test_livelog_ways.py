"""The ways to read a live log: from an offset, ranges, a websocket, events; over real HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from trio.testing import MockClock

from plugins.livelog.events import LONGEST_LINE, Lines
from plugins.livelog.ranges import Part, Wanted, parse_range, part_of
from plugins.livelog.sockets import CLOSE_LIMIT, show_log
from plugins.livelog.viewers import Viewers
from worker.logfile import LogFile
from worker.ports import Ports
from worker.serving import PeerGone
from worker.tasklog import TaskLog, open_tasklog
from worker.viewer import LogView, Viewer
from worker.webhooks import WebhooksConfig, open_webhooks

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
VERY_LARGE = 2**53 - 1


class Clock(Ports):
    time = datetime(2026, 1, 31, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


@dataclass
class World:
    ports: Clock
    log: TaskLog
    url: str
    client: httpx.AsyncClient
    detaching: trio.Event

    @asynccontextmanager
    async def socket(self, below: str = "") -> AsyncGenerator[trio_websocket.WebSocketConnection, None]:
        parsed = httpx.URL(self.url + below)
        # With a stream of our own, since trio-websocket leaves it open where the server was the first to close.
        async with await trio.open_tcp_stream(parsed.host, parsed.port or 80) as stream, trio.open_nursery() as nursery:
            yield await trio_websocket.wrap_client_stream(
                nursery, stream, parsed.netloc.decode(), parsed.raw_path.decode()
            )
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def world(folder: Path) -> AsyncGenerator[World, None]:
    """A log that is served until `detaching` is set."""
    ports, detaching = Clock(), trio.Event()
    with trio.fail_after(30):
        async with (
            open_tasklog(ports, folder / "log") as log,
            open_webhooks(ports, WebhooksConfig()) as webhooks,
            httpx.AsyncClient(trust_env=False) as client,
            trio.open_nursery() as nursery,
        ):

            async def serve(task_status: trio.TaskStatus[str]) -> None:
                async with webhooks.attach(Viewers(log, LogView(Viewer(), title="A log"))) as url:
                    task_status.started(url)
                    await detaching.wait()

            url = await nursery.start(serve)
            yield World(ports, log, url, client, detaching)
            detaching.set()


async def read_all(socket: trio_websocket.WebSocketConnection) -> tuple[bytes, int]:
    """What comes, and the close code."""
    got = b""
    while True:
        try:
            message = await socket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            return got, closed.reason.code if closed.reason else 0
        assert isinstance(message, bytes)
        got += message


# From an offset on


async def test_the_rest_of_a_log_from_any_offset(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"0123456789")
        await here.log.close()
        for offset in (0, 3, 10, 11):
            answer = await here.client.get(here.url, params={"offset": offset})
            assert (answer.status_code, answer.content) == (200, b"0123456789"[offset:])
            assert answer.headers["X-Offset"] == str(offset)


@pytest.mark.parametrize("path", ["", "events", "times"])
@pytest.mark.parametrize("offset", ["-1", "x", "", "1e3", "\u0661", "9" * 30])
async def test_an_offset_that_is_none_is_refused(tmp_path: Path, path: str, offset: str) -> None:
    async with world(tmp_path) as here:
        answer = await here.client.get(here.url + path, params={"offset": offset})
        assert answer.status_code == 400
        assert "offset must be a number of bytes" in answer.text
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


# Ranges


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=2-", 206, b"23456789", "bytes 2-9/10"),
        ("bytes=2-99", 206, b"23456789", "bytes 2-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_ranges_of_a_log_that_has_ended(
    tmp_path: Path, asked: str, status: int, content: bytes | None, content_range: str | None
) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"0123456789")
        await here.log.close()
        answer = await here.client.get(here.url, headers={"Range": asked})
        assert answer.status_code == status
        assert content is None or answer.content == content
        assert answer.headers.get("Content-Range") == content_range


async def test_of_a_log_that_grows_a_range_is_what_is_there(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"0123456789")
        answer = await here.client.get(here.url, headers={"Range": "bytes=4-"})
        assert (answer.status_code, answer.content) == (206, b"456789")
        assert answer.headers["Content-Range"] == "bytes 4-9/*"
        assert answer.headers["Content-Length"] == "6"


async def test_a_range_to_a_very_large_byte_follows_the_log(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"0123")
        asked = {"Range": f"bytes=2-{VERY_LARGE}"}
        async with here.client.stream("GET", here.url, headers=asked) as answer:
            assert answer.status_code == 206
            assert answer.headers["Content-Range"] == f"bytes 2-{VERY_LARGE}/*"
            chunks = answer.aiter_raw()
            assert await anext(chunks) == b"23"
            await here.log.write(b"45")
            assert await anext(chunks) == b"45"
            await here.log.close()
            assert [chunk async for chunk in chunks] == []


async def test_who_has_all_so_far_is_answered_when_there_is_more(tmp_path: Path) -> None:
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        await here.log.write(b"0123")
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await here.client.get(here.url, headers={"Range": "bytes=4-"}))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not answers
        await here.log.write(b"45")
    assert answers[0].content == b"45"


@given(st.binary(max_size=50), st.integers(0, 60) | st.none(), st.integers(0, 60) | st.none(), st.booleans())
def test_a_part_is_what_python_would_slice(data: bytes, first: int | None, last: int | None, closed: bool) -> None:
    wanted = parse_range(f"bytes={'' if first is None else first}-{'' if last is None else last}")
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert wanted is None
        return
    assert wanted == Wanted(first, last)
    part = part_of(wanted, len(data), closed=closed)
    if first is None:
        expected = data[max(0, len(data) - (last or 0)) :]
    else:
        expected = data[first:] if last is None else data[first : last + 1]
    if part is None:
        assert not expected
    elif part.whole:
        assert data[part.first : part.end] == expected
        assert len(expected) == part.end - part.first
        assert part.complete == (len(data) if closed else None)
    else:
        assert not closed
        assert part == Part(first or 0, (last or 0) + 1, None, whole=False)


# Websockets


async def test_a_websocket_shows_the_log_from_its_offset_and_says_that_it_has_ended(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"0123456789")
        async with here.socket("?offset=4") as socket:
            assert await socket.get_message() == b"456789"
            await here.log.write(b"more")
            assert await socket.get_message() == b"more"
            await here.log.close()
            assert await read_all(socket) == (b"", 1000)


async def test_a_websocket_is_told_when_the_log_is_no_longer_served(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"some")
        async with here.socket() as socket:
            assert await socket.get_message() == b"some"
            here.detaching.set()
            assert await read_all(socket) == (b"", 1001)


@pytest.mark.parametrize(("ended", "code"), [(True, 4008), (False, 1001)])
async def test_a_websocket_that_lags_is_told_why_the_rest_does_not_follow(
    tmp_path: Path, ended: bool, code: int
) -> None:
    async with world(tmp_path) as here, here.socket() as socket:
        await flood(here.log)
        await trio.testing.wait_all_tasks_blocked(0.05)  # nothing more goes into the buffers
        if ended:
            await here.log.close()
        here.detaching.set()
        got, told = await read_all(socket)
        assert 0 < len(got) < here.log.file.size
        assert told == code


@pytest.mark.parametrize(
    ("takes", "seconds", "told"), [(CLOSE_LIMIT / 2, CLOSE_LIMIT / 2, [1001]), (math.inf, CLOSE_LIMIT, [])]
)
async def test_a_frame_under_way_may_end_but_holds_up_nobody(
    takes: float, seconds: float, told: list[int], autojump_clock: MockClock
) -> None:
    """A viewer who takes a frame in `takes` seconds from the cancellation on."""
    file = LogFile(Ports(), Path("unused"))
    file.append(b"some")
    opening: list[Message] = [{"type": "websocket.connect"}]
    codes: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            await trio.sleep(1 + takes)
        elif message["type"] == "websocket.close":
            if takes == math.inf:
                raise PeerGone  # as a server does that was cancelled while it sent
            codes.append(message["code"])

    async def receive() -> Message:
        if opening:
            return opening.pop()
        await trio.sleep_forever()
        raise AssertionError

    with suppress(ExceptionGroup), trio.move_on_after(1):
        await show_log(file, 0, receive, send)
    assert codes == told
    assert trio.current_time() == 1 + seconds


async def flood(log: TaskLog) -> None:
    """More than fits into the buffers on the way."""
    for _ in range(400):
        await log.write(b"x" * 65536)


async def test_what_a_viewer_sends_is_ignored(tmp_path: Path) -> None:
    async with world(tmp_path) as here, here.socket() as socket:
        for number in range(100):
            await socket.send_message("text" if number % 2 else b"bytes")
        await here.log.write(b"0123")
        assert await socket.get_message() == b"0123"


@pytest.mark.parametrize(("path", "status"), [("?offset=x", 400), ("events", 404), ("elsewhere", 404)])
async def test_a_websocket_that_makes_no_sense_is_refused(tmp_path: Path, path: str, status: int) -> None:
    async with world(tmp_path) as here:
        answer = await here.client.get(here.url + path, headers=HANDSHAKE)
        assert answer.status_code == status


# Events


def parsed(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def test_events_have_lines_with_their_times(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"one\ntwo\n")
        here.ports.time += timedelta(seconds=1.5)
        await here.log.write(b"thr\xffee\r\nfour")
        await here.log.close()
        answer = await here.client.get(here.url + "events")
        assert answer.headers["Content-Type"] == "text/event-stream"
        *lines, end = parsed(answer.text)
        assert end == {"event": "end", "data": "{}"}
        assert [event["id"] for event in lines] == ["4", "8", "16", "20"]
        early, late = "2026-01-31T00:00:00.000Z", "2026-01-31T00:00:01.500Z"
        assert [json.loads(event["data"]) for event in lines] == [
            {"offset": 0, "time": early, "line": "one"},
            {"offset": 4, "time": early, "line": "two"},
            {"offset": 8, "time": late, "line": "thr\ufffdee\r"},
            {"offset": 16, "time": late, "line": "four"},
        ]


async def test_events_go_on_where_an_event_source_has_stopped(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"one\ntwo\nthree\n")
        await here.log.close()
        answer = await here.client.get(here.url + "events?offset=0", headers={"Last-Event-ID": "4"})
        lines = [json.loads(event["data"])["line"] for event in parsed(answer.text)[:-1]]
        assert lines == ["two", "three"]
        answer = await here.client.get(here.url + "events", headers={"Last-Event-ID": "x"})
        assert answer.status_code == 400


async def test_a_line_is_told_when_it_is_complete(tmp_path: Path) -> None:
    async with world(tmp_path) as here, here.client.stream("GET", here.url + "events") as answer:
        await here.log.write(b"one\ntw")
        chunks = answer.aiter_text()
        assert [json.loads(event["data"])["line"] for event in parsed(await anext(chunks))] == ["one"]
        await here.log.write(b"o\n")
        assert [json.loads(event["data"])["line"] for event in parsed(await anext(chunks))] == ["two"]
        await here.log.close()
        assert [parsed(chunk) async for chunk in chunks] == [[{"event": "end", "data": "{}"}]]


@given(st.binary(max_size=200).map(lambda data: re.sub(rb"[^\n]", b"x", data)), st.integers(1, 50))
def test_lines_are_all_bytes_in_order(data: bytes, size: int) -> None:
    lines = Lines(7)
    told: list[bytes] = []
    for start in range(0, len(data), size):
        told += lines.feed(data[start : start + size])
    told += lines.end()
    assert told == data.splitlines(keepends=True)
    assert lines.offset == 7 + len(data)


def test_an_endless_line_is_told_in_pieces() -> None:
    lines = Lines(0)
    told = [piece for _ in range(10) for piece in lines.feed(bytes(LONGEST_LINE - 1))]
    assert {*map(len, told)} == {LONGEST_LINE}
    assert len(b"".join([*told, *lines.feed(b"\n"), *lines.end()])) == 10 * (LONGEST_LINE - 1) + 1


# Times


async def test_times_of_a_part(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        start = int(here.ports.time.timestamp() * 1000)
        for _ in range(3):
            await here.log.write(b"0123456789")
            here.ports.time += timedelta(seconds=1)
        answer = await here.client.get(here.url + "times", params={"offset": 15})
        assert answer.json() == {"precision": 0.001, "times": [[10, start + 1000], [20, start + 2000]]}
        assert len((await here.client.get(here.url + "times")).json()["times"]) == 3


async def test_a_page_shows_the_log(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        page = await here.client.get(here.url + "view")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "A log" in page.text
        assert (await here.client.get(here.url + "view/main.js")).status_code == 200


async def test_other_paths_are_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await here.client.get(here.url + "secrets")).status_code == 404
        assert (await here.client.get(here.url + "viewer")).status_code == 404
