r"""When to claim, to reclaim and to stop: decisions without I/O. Times are monotonic seconds unless they are datetimes.

state \ asked        free places        none free        stopping, enough, or idle for too long
in back-off          WAIT until over    WAIT for a run   FINISH
otherwise            CLAIM              WAIT for a run   FINISH
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import inf

MAX_CLAIM = 32  # tasks in one claim (schemas/queue/v1/claim-work-request.json)
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0

RECLAIM_LEAD = timedelta(minutes=3)
END_MARGIN = timedelta(seconds=5)


class StopReason(StrEnum):
    """Why a worker claims no more."""

    STOPPED = "told to stop"
    NUMBER_OF_TASKS = "has run as many tasks as configured"
    IDLE = "has been idle for as long as configured"
    FAULT = "cannot be trusted with tasks any more"


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask for so many tasks."""

    tasks: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until that time, or until something happens."""

    until: float = inf


@dataclass(frozen=True, slots=True)
class Finish:
    """Claim no more."""

    reason: StopReason


@dataclass
class ClaimState:
    """What the decision rests on. `number_of_tasks` and `idle_timeout` are unlimited where they are 0."""

    capacity: int
    number_of_tasks: int
    idle_timeout: float
    idle_since: float
    running: int = 0
    claimed: int = 0
    failures: int = 0
    not_before: float = -inf
    stop: StopReason | None = None

    def decide(self, now: float) -> Claim | Wait | Finish:
        """What to do next."""
        self.check()
        if self.stop is not None:
            return Finish(self.stop)
        left = self.number_of_tasks - self.claimed if self.number_of_tasks else MAX_CLAIM
        if left <= 0:
            return Finish(StopReason.NUMBER_OF_TASKS)
        if self.idle_timeout and self.running == 0 and now >= self.idle_since + self.idle_timeout:
            return Finish(StopReason.IDLE)
        free = self.capacity - self.running
        if free <= 0:
            return Wait()
        if now < self.not_before:
            return Wait(self.not_before)
        return Claim(min(free, left, MAX_CLAIM))

    def check(self) -> None:
        """What holds at all times."""
        assert 0 <= self.running <= self.capacity, self
        assert self.running <= self.claimed, self

    def answered(self, tasks: int) -> None:
        """A claim brought so many tasks."""
        self.failures = 0
        self.running += tasks
        self.claimed += tasks

    def failed(self, now: float, jitter: float) -> None:
        """A claim failed; the next waits for longer each time, by a half at random (`jitter`, from 0 to 1)."""
        wait = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.failures, 10))
        self.failures += 1
        self.not_before = now + wait * (1 - jitter / 2)

    def postponed(self, until: float) -> None:
        """Something other than the queue forbids to claim before `until`."""
        self.not_before = max(self.not_before, until)

    def ended(self, now: float) -> None:
        """A run has ended."""
        self.running -= 1
        self.idle_since = now

    def stopping(self, reason: StopReason) -> None:
        """Claim no more; the first reason counts."""
        self.stop = self.stop or reason


@dataclass(frozen=True, slots=True)
class ClaimTimes:
    """When to reclaim, and when a run that could not be reclaimed is ended, so that nothing executes past the claim."""

    reclaim_at: datetime
    end_at: datetime


def claim_times(now: datetime, taken_until: datetime, kill_grace: timedelta) -> ClaimTimes:
    """When to end the run: so early that there is time for killing, though that is a half of what is left of the claim
    at most. When to reclaim: three minutes before that, or after two thirds of the time until then.

    The later of both counts, so that several attempts fit, whatever the deployment's claim timeout is.
    """
    left = max(timedelta(), taken_until - now)
    end_at = taken_until - min(kill_grace + END_MARGIN, left / 2)
    return ClaimTimes(max(end_at - RECLAIM_LEAD, now + (end_at - now) * 2 / 3), end_at)
