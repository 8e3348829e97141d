"""Notices what the queue did to our runs: one request per interval covers them all, since nothing pushes.

Budget: one `statuses` call per interval and 1000 runs. Where a deployment does not have that method (404), or does not
let this worker use it for every task (403), at most ten `status` calls per interval, the runs taking turns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import trio

from worker.model import Cause, CauseKind, RunKey
from worker.ports import Ports
from worker.queue.errors import Forbidden, NotFound, QueueError
from worker.queue.models import Run as RunStatus
from worker.queue.retry import NO_RETRY
from worker.queue.services import Queue

log = logging.getLogger("worker")

SINGLE_CALLS = 10  # `status` calls per interval
CALL_LIMIT = 10.0  # seconds for one call: one that hangs must not hide what happens meanwhile
JITTER = 0.2  # the share by which an interval is shorter, at random, so that workers do not ask together


class Stoppable(Protocol):
    """A run that can be ended."""

    @property
    def key(self) -> RunKey:
        """Which run."""

    def stop(self, cause: Cause) -> None:
        """End it; later causes are nothing."""


def cause_of(runs: Sequence[RunStatus], run_id: int) -> Cause | None:
    """Why run `run_id` is no longer ours, by the task's status; None while it is."""
    run = next((run for run in runs if run.run_id == run_id), None)
    if run is None or run.state in {"pending", "running"}:
        return None
    match run.reason_resolved:
        case "canceled":
            kind, message = CauseKind.CANCELLED, "the task was cancelled"
        case "deadline-exceeded":
            kind, message = CauseKind.DEADLINE, "the task's deadline has passed"
        case reason:
            kind, message = CauseKind.CLAIM_LOST, f"the queue has resolved this run as {run.state}/{reason}"
    return Cause(kind, message, told_by_queue=True)


class CancelPoll:
    """Looks at the runs in `runs`, which others fill and empty, every `interval`. What fails is tried the next time."""

    def __init__(self, queue: Queue, ports: Ports, interval: timedelta, runs: Mapping[RunKey, Stoppable]) -> None:
        self._queue = queue
        self._ports = ports
        self._interval = interval.total_seconds()
        self._runs = runs
        self._singly = False
        self._turns: deque[RunKey] = deque()
        self._told = ""  # the failure that was told last

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self._interval * (1 - JITTER * self._ports.random.random()))
            if not self._runs:
                continue
            try:
                await self._look()
            except QueueError as error:
                self._tell(str(error))
            except trio.TooSlowError:
                self._tell(f"there was no answer within {CALL_LIMIT:g} s")
            else:
                self._told = ""

    def _tell(self, failure: str) -> None:
        # Once until it is another one: it may last for hours.
        if failure != self._told:
            self._told = failure
            log.warning("cancelled tasks are not noticed until the next reclaim: %s", failure)

    async def _look(self) -> None:
        if not self._singly:
            try:
                await self._look_at_all()
            except (Forbidden, NotFound) as error:
                log.warning("cancelled tasks are looked for one by one, since %s", error)
                self._singly = True
        if self._singly:
            await self._look_in_turn()

    async def _look_at_all(self) -> None:
        with trio.fail_after(CALL_LIMIT):
            tasks = await self._queue.statuses({key.task_id for key in self._runs}, policy=NO_RETRY)
        for task in tasks:
            self._stop_resolved(task.task_id, task.status.runs)

    async def _look_in_turn(self) -> None:
        for key in self._next_turns():
            try:
                with trio.fail_after(CALL_LIMIT):
                    status = await self._queue.status(key.task_id, policy=NO_RETRY)
            except (Forbidden, NotFound) as error:
                log.debug("%s", error)  # Then this run's end is noticed when it is reclaimed.
            else:
                self._stop_resolved(key.task_id, status.runs)

    def _next_turns(self) -> Iterable[RunKey]:
        waiting = set(self._turns)
        self._turns.extend(key for key in self._runs if key not in waiting)
        turns = [key for key in self._turns if key in self._runs]
        self._turns = deque(turns[SINGLE_CALLS:])
        return turns[:SINGLE_CALLS]

    def _stop_resolved(self, task_id: str, statuses: Sequence[RunStatus]) -> None:
        for key, run in list(self._runs.items()):
            if key.task_id == task_id and (cause := cause_of(statuses, key.run_id)):
                run.stop(cause)
