"""How long each step of a run may take, and the two answers to one that takes longer.

It is cancelled, and the run gets an internal error that names it. If it does not even end then, because it is shielded
or blocks the event loop, the watchdog ends the worker.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from math import inf
from typing import Annotated, TypeVar

import trio
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from worker.errors import WorkerFault
from worker.quantities import Duration, format_duration
from worker.schema import Document
from worker.watchdog import Watchdog

T = TypeVar("T")


def _at_least(seconds: float) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if value < timedelta(seconds=seconds):
            raise PydanticCustomError("duration", "expected at least {seconds} seconds", {"seconds": f"{seconds:g}"})
        return value

    return AfterValidator(check)


Limit = Annotated[Duration, _at_least(1)]


class LimitsConfig(Document):
    """The part `limits` of the config's `worker`.

    `kill` and `stuck` are the watchdog's alone, and so have lower bounds that ordinary work stays far below.
    """

    enter: Limit = timedelta(seconds=15)  # a plugin's `task_scope`, the engine's `builder`, its `result`
    prepare: Limit = timedelta(hours=2)
    stopped: Limit = timedelta(hours=2)
    finished: Limit = timedelta(hours=1)
    exit: Limit = timedelta(seconds=15)  # a plugin's `task_scope`
    clean_up: Limit = timedelta(minutes=15)  # leaving `result` and `builder`
    kill: Annotated[Duration, _at_least(15)] = timedelta(seconds=30)  # beyond killGrace
    stuck: Annotated[Duration, _at_least(5)] = timedelta(minutes=1)  # beyond any other limit


class Limiter:
    """Has steps end in time. `what` names a step: it is said in the log and by the watchdog."""

    def __init__(self, config: LimitsConfig, watchdog: Watchdog) -> None:
        self.config = config
        self.watchdog = watchdog

    @contextmanager
    def step(self, what: str, limit: timedelta) -> Generator[None, None, None]:
        """Cancels the block after `limit`; then raises WorkerFault."""
        seconds = limit.total_seconds()
        with self.watchdog.expects(what, seconds), trio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise _fault(what, limit)

    @asynccontextmanager
    async def scope(
        self, what: str, manager: AbstractAsyncContextManager[T], enter: timedelta, leave: timedelta
    ) -> AsyncGenerator[T, None]:
        """`manager`, which is cancelled when entering or leaving it takes too long; then raises WorkerFault.

        The block itself has no limit.
        """
        inside: BaseException | None = None
        limit = enter
        # One scope around all of it, since scopes must nest: whatever the manager opens, it closes within.
        with (
            self.watchdog.expects(f"{what}, entering", enter.total_seconds()) as expected,
            trio.move_on_after(enter.total_seconds()) as scope,
        ):
            async with manager as value:
                scope.deadline = inf
                self.watchdog.limit(expected, inf)
                try:
                    yield value
                except BaseException as error:
                    inside = error
                    raise
                finally:
                    expected.what, limit = f"{what}, leaving", leave
                    scope.deadline = trio.current_time() + leave.total_seconds()
                    self.watchdog.limit(expected, leave.total_seconds())
        if scope.cancelled_caught:
            raise _fault(expected.what, limit) from inside


def _fault(what: str, limit: timedelta) -> WorkerFault:
    return WorkerFault(f"{what}: took longer than {format_duration(limit)}")
