from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio
from pydantic import ValidationError
from trio.testing import MockClock

from worker.errors import WorkerFault
from worker.limits import Limiter, LimitsConfig
from worker.watchdog import Watchdog

MINUTE = timedelta(minutes=1)


def limiter() -> Limiter:
    return Limiter(LimitsConfig(), Watchdog(10, trio.current_time))


async def test_a_step_that_takes_too_long_is_named(autojump_clock: MockClock) -> None:
    message = "plugin a: stopped: took longer than 1 minute"
    with pytest.raises(WorkerFault, match=message), limiter().step("plugin a: stopped", MINUTE):
        await trio.sleep_forever()
    assert trio.current_time() == 60


@asynccontextmanager
async def slow(enter: float, leave: float) -> AsyncGenerator[str, None]:
    async with trio.open_nursery() as nursery:  # which has scopes of its own open while the block runs
        await trio.sleep(enter)
        yield "value"
        await trio.sleep(leave)
        nursery.cancel_scope.cancel()


async def test_a_scope_within_its_limits_is_left_alone(autojump_clock: MockClock) -> None:
    async with limiter().scope("it", slow(50, 50), MINUTE, MINUTE) as value:
        assert value == "value"
        await trio.sleep(80_000)


@pytest.mark.parametrize(("enter", "leave", "what"), [(70, 0, "entering"), (0, 70, "leaving")])
async def test_a_scope_that_takes_too_long_is_named(
    autojump_clock: MockClock, enter: float, leave: float, what: str
) -> None:
    with pytest.raises(WorkerFault, match=f"it, {what}: took longer than 1 minute"):
        async with limiter().scope("it", slow(enter, leave), MINUTE, MINUTE):
            await trio.sleep(1000)


async def test_a_scope_passes_on_what_is_raised_inside(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(KeyError):
        async with limiter().scope("it", slow(0, 0), MINUTE, MINUTE):
            raise KeyError


async def test_what_does_not_heed_its_limit_is_overdue(autojump_clock: MockClock) -> None:
    watchdog = (limits := limiter()).watchdog

    async def shielded() -> None:
        with limits.step("plugin a: stopped", MINUTE), trio.CancelScope(shield=True):
            await trio.sleep(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shielded)
        await trio.sleep(60 + 9)
        assert watchdog.overdue() is None
        await trio.sleep(2)
        assert (overdue := watchdog.overdue()) is not None
        assert overdue.what == "plugin a: stopped"
    assert watchdog.overdue() is None


def test_limits_have_lower_bounds() -> None:
    with pytest.raises(ValidationError, match="expected at least 15 seconds"):
        LimitsConfig(kill=timedelta(seconds=1))
