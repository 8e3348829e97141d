"""`logs` and what may happen to it on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from worker.cli.common import Failure, Session
from worker.cli.following import ATTEMPTS, LogCopy
from worker.http import open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import Unavailable
from worker.serving import listen, port_of

KEY = RunKey("A" * 22, 0)
SECRET = "f2d1c0"

Answer = Callable[[trio.SocketStream, str], Awaitable[None]]


@dataclass
class Queue:
    """Knows where the log is, as long as it is there."""

    url: str = ""
    state: str = "running"
    away: int = 0  # for so many calls more

    def _answer(self, **values: object) -> Any:
        if self.away:
            self.away -= 1
            raise Unavailable("queue.call", 5, "no connection")
        return SimpleNamespace(**values)

    async def status(self, _task_id: str) -> Any:
        await trio.lowlevel.checkpoint()
        return self._answer(state=self.state)

    async def get_artifact(self, _key: RunKey, _name: str) -> Any:
        await trio.lowlevel.checkpoint()
        return self._answer(url=self.url)


@dataclass
class World:
    queue: Queue
    copy: LogCopy
    asked: list[str] = field(default_factory=list)  # ranges, one for each connection
    got: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def world(answers: Sequence[Answer], *, patience: float = 60) -> AsyncGenerator[World, None]:
    """Connections are answered one way after the other, the last way again and again."""

    async def handle(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        ranges = [line.partition(": ")[2] for line in head.decode().splitlines() if line.lower().startswith("range")]
        here.asked.append("".join(ranges))
        async with stream:
            await answers[min(len(here.asked), len(answers)) - 1](stream, here.asked[-1])

    with trio.fail_after(30):
        async with open_http(Ports()) as http, trio.open_nursery() as nursery:
            listeners = await listen("127.0.0.1", 0)
            queue, got = Queue(f"http://127.0.0.1:{port_of(listeners)}/{SECRET}/"), bytearray()
            session = Session(queue, http, Ports())  # type: ignore[arg-type]  # has what is used
            copy = LogCopy(session, KEY, "public/logs/live.log", got.extend, patience=patience, pause=0.001)
            here = World(queue, copy, got=got)
            await nursery.start(trio.serve_listeners, handle, listeners)
            yield here
            nursery.cancel_scope.cancel()


def part(content: bytes, first: int = 0) -> Answer:
    """A range of a live log, whole, or all of it where no range is asked for."""

    async def send(stream: trio.SocketStream, asked: str) -> None:
        ranged = f"206 Partial Content\r\nContent-Range: bytes {first}-{first + len(content) - 1}/*"
        head = ranged if asked else "200 OK"
        await stream.send_all(answer(head, f"Content-Length: {len(content)}") + content)

    return send


def answer(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "X-Streaming: true", "Connection: close", *headers, "", ""]).encode()


async def silence_that_is_cut(_stream: trio.SocketStream, _asked: str) -> None:
    await trio.lowlevel.checkpoint()


async def gateway_timeout(stream: trio.SocketStream, _asked: str) -> None:
    await stream.send_all(answer("504 Gateway Timeout", "Content-Length: 0"))


async def gone(stream: trio.SocketStream, _asked: str) -> None:
    await stream.send_all(answer("404 Not Found", "Content-Length: 0"))


async def no_more(stream: trio.SocketStream, _asked: str) -> None:
    await stream.send_all(answer("416 Range Not Satisfiable", "Content-Length: 0"))


async def test_what_there_is_of_a_running_tasks_log_has_an_end() -> None:
    async with world([part(b"what there is")]) as here:
        await here.copy.run(whole=False)
        assert here.got == b"what there is"
        assert here.asked == ["bytes=0-"]


async def test_what_there_is_is_asked_for_again_where_it_was_cut() -> None:
    async def cut(stream: trio.SocketStream, _asked: str) -> None:
        head = answer("206 Partial Content", "Content-Range: bytes 0-12/*", "Content-Length: 13")
        await stream.send_all(head + b"what")

    async with world([cut, part(b"what there is")]) as here:
        await here.copy.run(whole=False)
        assert here.got == b"what there is"


@pytest.mark.parametrize("broken", [silence_that_is_cut, gateway_timeout])
async def test_a_task_may_be_silent_for_longer_than_a_proxy_waits(broken: Answer) -> None:
    answers = [part(b"one "), *[broken] * (2 * ATTEMPTS), part(b"two", 4), no_more]
    async with world(answers, patience=0) as here:
        await here.copy.run(whole=True)
        assert here.got == b"one two"
        assert here.asked[2].startswith("bytes=4-")


async def test_the_queue_may_be_away_meanwhile() -> None:
    async with world([part(b"one "), part(b"two", 4), no_more]) as here:
        here.queue.away = 5
        await here.copy.run(whole=True)
        assert here.got == b"one two"


async def test_a_log_that_is_not_stored_has_come_when_its_worker_has_let_go_of_it() -> None:
    async with world([part(b"all"), gone]) as here:
        here.queue.state = "completed"
        await here.copy.run(whole=True)
        assert here.got == b"all"


async def test_a_log_that_was_cut_and_cannot_be_had_any_more_is_an_error_that_tells_no_secret() -> None:
    async def cut(stream: trio.SocketStream, _asked: str) -> None:
        await stream.send_all(answer("200 OK", "Content-Length: 13") + b"what")

    async with world([cut, gone]) as here:
        here.queue.state = "completed"
        with pytest.raises(Failure, match="404") as raised:
            await here.copy.run(whole=True)
        assert here.got == b"what"
        assert SECRET not in str(raised.value)
        assert "127.0.0.1" in str(raised.value)


async def test_a_range_that_begins_later_than_asked_is_refused() -> None:
    async with world([part(b"one "), part(b"three", 7)]) as here:
        with pytest.raises(Failure, match="another range"):
            await here.copy.run(whole=True)
        assert here.got == b"one "
