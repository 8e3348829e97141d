"""What is believed of the services' clock."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
import trio
from queue_world import CREDENTIALS, NOW, ScriptedPorts, answers, date_header, scripted
from trio.testing import MockClock

from worker.queue.client import service
from worker.queue.clock import ServiceClock, parse_date
from worker.queue.errors import Unauthorized


def answer(offset: timedelta, status: int = 200) -> httpx.Response:
    document = {"alive": True} if status == 200 else {"code": "AuthenticationFailed", "message": "Stale"}
    return httpx.Response(status, headers=date_header(offset), json=document)


async def test_clock_that_is_off_is_learnt_from_the_first_refusal() -> None:
    offset = timedelta(hours=3)
    handle, seen = answers(answer(offset, 401), answer(offset))
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
        assert deployment.clock.skew == pytest.approx(offset.total_seconds(), abs=1)
    assert f'ts="{int(NOW.timestamp() + offset.total_seconds())}"' in seen[1].headers["Authorization"]


async def test_clock_that_is_set_later_is_learnt_from_the_first_refusal_too() -> None:
    offset = timedelta(hours=3)
    handle, seen = answers(answer(timedelta()), answer(offset, 401), answer(offset))
    async with scripted(handle) as deployment:
        for _ in range(2):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
        assert deployment.clock.skew == pytest.approx(offset.total_seconds(), abs=1)
    assert len(seen) == 3


@pytest.mark.parametrize("hours", [-3, 3])
async def test_one_answer_alone_does_not_set_the_clock_by_much(hours: int) -> None:
    right, wrong = answer(timedelta()), answer(timedelta(hours=hours))
    handle, _ = answers(right, wrong, right, wrong, right)
    async with scripted(handle) as deployment:
        for _ in range(5):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
            assert abs(deployment.clock.skew) < 2


async def test_two_that_agree_do() -> None:
    offset = timedelta(hours=3)
    handle, _ = answers(answer(timedelta()), answer(offset), answer(offset + timedelta(seconds=1)))
    async with scripted(handle) as deployment:
        for _ in range(3):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
        assert deployment.clock.skew == pytest.approx(offset.total_seconds(), abs=2)


async def test_an_answer_that_was_long_on_its_way_does_not_set_the_clock() -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        ports = deployment.ports
        assert isinstance(ports, ScriptedPorts)
        late = answer(ports.moment - NOW)
        ports.moment += timedelta(minutes=1)
        return late

    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
        assert deployment.clock.skew == 0


@pytest.mark.parametrize("hours", [-1, 0, 1])
async def test_what_an_answer_that_was_long_on_its_way_left_open_the_next_one_settles(hours: int) -> None:
    offset, delay = timedelta(hours=hours), timedelta(seconds=40)

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal delay
        assert isinstance(ports, ScriptedPorts)
        ports.moment += delay
        given = answer(ports.moment - NOW + offset)
        delay = timedelta()
        return given

    async with scripted(handle) as deployment:
        ports = deployment.ports
        assert isinstance(ports, ScriptedPorts)
        for _ in range(2):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
        assert deployment.clock.skew == pytest.approx(offset.total_seconds(), abs=1)


async def test_who_sleeps_until_a_time_of_the_queues_learns_of_its_clock(autojump_clock: MockClock) -> None:
    handle, _ = answers(answer(timedelta(hours=3)))
    async with scripted(handle) as deployment, trio.open_nursery() as nursery:
        nursery.start_soon(deployment.clock.sleep_until, NOW + timedelta(hours=2))
        await trio.testing.wait_all_tasks_blocked()
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert trio.current_time() < 60


async def test_wrong_credentials_are_not_blamed_on_the_clock() -> None:
    handle, seen = answers(answer(timedelta(hours=3), 401))
    async with scripted(handle) as deployment:
        for attempts in (2, 3):
            with pytest.raises(Unauthorized):
                await service(deployment, "queue", lambda: CREDENTIALS).ping()
            assert len(seen) == attempts


NONSENSE = [
    "",
    "yesterday",
    "Mon, 20 Nov 1995 19:12:08 +99999999999999999",
    "Sat, 14 Oct 1066 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
]


@pytest.mark.parametrize("text", NONSENSE)
async def test_a_date_that_is_nonsense_says_nothing(text: str) -> None:
    assert parse_date(text) is None
    clock = ServiceClock(ScriptedPorts(answers(answer(timedelta()))[0]))
    clock.learn(NOW, text)
    assert clock.now() == NOW
