"""The nouns of a run, frozen and free of I/O: RunKey, Cause, Verdict, Resolution."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Literal

ExceptionReason = Literal[
    "worker-shutdown", "malformed-payload", "resource-unavailable", "internal-error", "intermittent-task"
]


@dataclass(frozen=True, slots=True)
class RunKey:
    """Which run: a task may be run more than once."""

    task_id: str
    run_id: int

    def __str__(self) -> str:
        return f"{self.task_id}/{self.run_id}"


class CauseKind(Enum):
    """Why a run is ended before it ends by itself; the value is what is said of it."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline passed"
    CLAIM_LOST = "claim lost"
    SHUTDOWN = "worker shutdown"
    MAX_RUN_TIME = "max run time exceeded"


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason to stop a run. The first one counts; `message` is the last line of the task's log.

    `told_by_queue`: not merely by our clock, so that a report has no use any more, not even one that is under way.
    """

    kind: CauseKind
    message: str
    told_by_queue: bool = False

    @property
    def run_is_ours(self) -> bool:
        """Whether the queue still expects a report. After the other causes it has resolved the run itself."""
        return self.kind in {CauseKind.SHUTDOWN, CauseKind.MAX_RUN_TIME}


class Severity(IntEnum):
    """How a run went, mildest first: the worst of the plugins' verdicts is the run's."""

    COMPLETED = 0
    FAILED = 1
    INTERMITTENT = 2
    RESOURCE_UNAVAILABLE = 3
    SHUTDOWN = 4
    MALFORMED = 5
    INTERNAL = 6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one plugin, or the run as a whole, thinks of a run, and why. A completed run needs no message."""

    severity: Severity
    message: str = ""


COMPLETED = Verdict(Severity.COMPLETED)


class State(StrEnum):
    """How a run ends for the queue; ABANDONED is reported to nobody, since the run is no longer ours."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXCEPTION = "exception"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is reported to the queue, once per run; `reason` belongs to EXCEPTION alone."""

    state: State
    message: str = ""
    reason: ExceptionReason | None = None

    def __post_init__(self) -> None:
        assert (self.reason is not None) == (self.state is State.EXCEPTION)

    def __str__(self) -> str:
        return f"{self.state.value}/{self.reason}" if self.reason else self.state.value
