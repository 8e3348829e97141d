"""Ends a worker that is stuck: whatever must end within some time is written down here, and missed when it does not.

A hook that shields itself cannot be cancelled, and an event loop that is blocked cannot notice it. So the table is
watched from a thread, which needs neither: it tells what hangs, shows all tasks and threads, and ends the process.
What waits for others, such as a queue that is down, is not stuck for as long as it tries: each attempt is expected to
end, not the outage.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import inf
from typing import NoReturn

import trio

from worker.tasktree import describe_tasks, describe_threads

log = logging.getLogger("worker.watchdog")

STUCK = 6  # exit code (docs/commands.md)
TELL_LIMIT = 10.0  # seconds for the dump: who reads our log may be what hangs
LATE = 1.0  # seconds by which the thread itself may be late


@dataclass(eq=False, slots=True)
class Expectation:
    """Something that must end. `due` is when it is overdue, by the watchdog's clock."""

    what: str
    due: float


class Watchdog:
    """What is expected of the worker; decides what is overdue. Whoever made it asks for that, and acts.

    `slack` seconds are added to every limit. `clock` is monotonic: a thread's in production, Trio's in a simulation.
    """

    def __init__(self, slack: float, clock: Callable[[], float]) -> None:
        self.slack = slack
        self._clock = clock
        self._expected: set[Expectation] = set()
        self._changed = threading.Condition()
        self._waiting_until = inf
        self._closed = False

    @contextmanager
    def expects(self, what: str, seconds: float = inf) -> Generator[Expectation, None, None]:
        """The block ends within `seconds`, or the worker is stuck. `limit` can say later how long it may take."""
        expectation = Expectation(what, self._clock() + seconds + self.slack)
        with self._changed:
            self._expected.add(expectation)
            self._wake(expectation)
        try:
            yield expectation
        finally:
            with self._changed:
                self._expected.discard(expectation)

    def limit(self, expectation: Expectation, seconds: float) -> None:
        """It ends within `seconds` from now, whatever was expected before."""
        with self._changed:
            expectation.due = self._clock() + seconds + self.slack
            self._wake(expectation)

    def _wake(self, expectation: Expectation) -> None:
        # Most of what is expected ends long before the thread would have to look.
        if expectation.due < self._waiting_until:
            self._changed.notify()

    def overdue(self) -> Expectation | None:
        """What should have ended first and has not."""
        first = min(self._expected, key=lambda expectation: expectation.due, default=None)
        return first if first is not None and first.due <= self._clock() else None

    async def beat(self) -> None:
        """Expect of the event loop that it goes round. Runs until cancelled."""
        while True:
            with self.expects("the event loop", self.slack / 4):
                await trio.sleep(self.slack / 4)

    # For the thread

    def wait_overdue(self) -> Expectation | None:
        """Block until something is overdue, and return it; None after `close`."""
        with self._changed:
            while not self._closed:
                if found := self.overdue():
                    return found
                due = min((expectation.due for expectation in self._expected), default=inf)
                self._waiting_until = due
                self._changed.wait(None if due == inf else min(due - self._clock(), threading.TIMEOUT_MAX))
                late = self._clock() - due
                if late > LATE:
                    # The whole process stood still, or the machine: nobody could do what was expected.
                    for expectation in self._expected:
                        expectation.due += late + self.slack
        return None

    def close(self) -> None:
        """Expect nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()


OpenWatchdog = Callable[[float], AbstractAsyncContextManager[Watchdog]]


@asynccontextmanager
async def open_watchdog(slack: float) -> AsyncGenerator[Watchdog, None]:
    """A watchdog with a thread that ends the process, with exit code 6, as soon as something is overdue."""
    watchdog = Watchdog(slack, time.monotonic)
    root = trio.lowlevel.current_root_task()
    assert root is not None

    def watch() -> None:
        if overdue := watchdog.wait_overdue():
            _end_process(overdue, root)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog
    finally:
        watchdog.close()
        thread.join()  # It does nothing more than to return.


def describe(overdue: Expectation, root: trio.lowlevel.Task) -> str:
    """What hangs, and what everything else does."""
    return "\n".join(
        [
            f"the worker is stuck and ends: overdue is {overdue.what}",
            "Tasks:",
            describe_tasks(root),
            "Threads:",
            describe_threads(),
        ]
    )


def _end_process(overdue: Expectation, root: trio.lowlevel.Task) -> NoReturn:
    def tell() -> None:
        try:
            log.critical("%s", describe(overdue, root))
        finally:
            for handler in logging.getLogger().handlers:
                handler.flush()

    # A thread of its own, since writing may block for ever, or wait for a lock that the stuck thread holds.
    telling = threading.Thread(target=tell, name="watchdog tells", daemon=True)
    telling.start()
    telling.join(TELL_LIMIT)
    os._exit(STUCK)  # Anything gentler runs cleanup, which is what hangs.
