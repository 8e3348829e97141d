"""What a viewer of a live log can make the worker hold and do at once is bounded, whatever the log is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from starlette.types import Message, Scope

from plugins.livelog.events import SILENCE, send_events
from plugins.livelog.times import send_times
from worker.linetimes import LIMIT, LineTimes
from worker.logfile import CHUNK
from worker.ports import Ports
from worker.tasklog import open_tasklog

GET: Scope = {"type": "http", "method": "GET", "headers": []}


class Sent:
    """Takes what an application sends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.grown = trio.Event()

    async def __call__(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.grown.set()
            self.grown = trio.Event()


@pytest.mark.parametrize("content", [b"\n" * CHUNK, b"\0" * CHUNK, b"12345678\n" * (CHUNK // 9)])
async def test_events_are_sent_in_pieces(tmp_path: Path, content: bytes) -> None:
    sent = Sent()
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        await log.write(content)
        await log.close()
        await send_events(log, 0, GET, sent)
    assert max(map(len, sent.bodies)) < 128 * 1024
    events = b"".join(sent.bodies).split(b"\n\n")
    assert events[-2:] == [b"event: end\ndata: {}", b""]
    datas = [json.loads(event.partition(b"\ndata: ")[2]) for event in events[:-2]]
    assert [data["offset"] for data in datas] == sorted(data["offset"] for data in datas)
    shown = "".join(data["line"] for data in datas)
    assert shown == content.decode().replace("\n", "")


async def test_times_are_sent_in_pieces() -> None:
    times, sent = LineTimes(), Sent()
    for number in range(LIMIT):
        # A whole number of milliseconds whatever the rounding.
        times.wrote(100 * number, (number + 0.5) / 1000)
    await send_times(times, 0, GET, sent)
    assert max(map(len, sent.bodies)) < 64 * 1024
    assert json.loads(b"".join(sent.bodies)) == {
        "times": [[100 * number, number] for number in range(LIMIT)],
        "precision": 0.001,
    }


async def test_no_times_yet() -> None:
    sent = Sent()
    await send_times(LineTimes(), 0, GET, sent)
    assert json.loads(b"".join(sent.bodies)) == {"times": [], "precision": 0.001}


async def test_a_line_that_grows_for_long_is_not_silent_on_the_way(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    sent = Sent()

    async def dots(write: Callable[[bytes], Awaitable[None]]) -> None:
        for _ in range(100):
            await write(b".")
            await trio.sleep(SILENCE / 10)

    async with open_tasklog(Ports(), tmp_path / "log") as log, trio.open_nursery() as nursery:
        nursery.start_soon(send_events, log, 0, GET, sent)
        await dots(log.write)
        assert sent.bodies.count(b": nothing new\n\n") in {9, 10}
        nursery.cancel_scope.cancel()
