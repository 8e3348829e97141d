"""What each cause of an end must come to at each stage of a run. To be read by people.

claimed     the plugins are being entered
preparing   the engine makes its builder, the plugins' `prepare`
starting    the engine starts the sandbox; the processes are there
running     the sandbox runs
stopping    the commands have ended by themselves, with success; what they left running is being ended
uploading   an artifact is being sent, in `stopped`; the log is still open
reporting   the log is stored; the report, `completed`, is being sent
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    CLAIMED = "claimed"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    UPLOADING = "uploading"
    REPORTING = "reporting"


class Reason(StrEnum):
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    CLAIM_LOST = "claim lost"
    SIGTERM = "SIGTERM"
    SECOND_SIGTERM = "second SIGTERM"
    MAX_RUN_TIME = "max run time"
    PLUGIN_CRASH = "plugin crash"
    ENGINE_CRASH = "engine crash"
    OUT_OF_DISK = "out of disk"


@dataclass(frozen=True)
class End:
    """`resolution` is the run's in the queue, state and reason; `reports` counts the requests by which the worker
    reported it; `last_line` is in the log's last line, None where nothing can be written or saved."""

    resolution: tuple[str, str]
    reports: int
    last_line: str | None


@dataclass(frozen=True)
class CannotBe:
    """There is no such cell."""

    why: str


COMPLETED = ("completed", "completed")
FAILED = ("failed", "failed")
SHUTDOWN = ("exception", "worker-shutdown")
INTERNAL = ("exception", "internal-error")

# What the log of a task that has ended by itself ends with.
LAST_REMARK = "Uploading artifact public/a.txt"

# The queue knows already: nothing is reported. A report on its way when it happens is refused by the queue.
CANCELLED = End(("exception", "canceled"), 0, "was cancelled")
CANCELLED_LATE = End(("exception", "canceled"), 1, LAST_REMARK)
DEADLINE = End(("exception", "deadline-exceeded"), 0, "deadline has passed")
DEADLINE_LATE = End(("exception", "deadline-exceeded"), 1, LAST_REMARK)
# Somebody else has resolved the run, as internal-error; the queue then still takes the log.
LOST = End(INTERNAL, 0, "the queue has resolved this run")
LOST_LATE = End(INTERNAL, 1, LAST_REMARK)

# The queue has another worker run the task, unless it had ended by itself.
STOPPED = End(SHUTDOWN, 1, "told to stop")
BY_ITSELF = End(COMPLETED, 1, LAST_REMARK)
# Its artifacts were not all saved, so it did not complete, and there was no time for the log either.
CUT_OFF = End(SHUTDOWN, 1, None)

TOO_LONG = End(FAILED, 1, "maximum run time")
CRASHED = End(INTERNAL, 1, "the worker failed")
DISK_FULL = End(INTERNAL, 1, "the worker failed")

NO_CLOCK = CannotBe("its clock runs beside the sandbox alone")
NO_HOOK = CannotBe("no hook of a plugin is called while the end is reported")
NO_ENGINE_YET = CannotBe("the engine is not asked for anything before the plugins are entered")
NO_ENGINE_ANY_MORE = CannotBe("the engine has been left before the end is reported")

Row = tuple[
    End | CannotBe, End | CannotBe, End | CannotBe, End | CannotBe, End | CannotBe, End | CannotBe, End | CannotBe
]

# In the order of the stages.
# fmt: off
ROWS: Mapping[Reason, Row] = {
    # claimed, preparing, starting, running, stopping, uploading, reporting
    Reason.CANCELLED: (CANCELLED, CANCELLED, CANCELLED, CANCELLED, CANCELLED, CANCELLED, CANCELLED_LATE),
    Reason.DEADLINE: (DEADLINE, DEADLINE, DEADLINE, DEADLINE, DEADLINE, DEADLINE, DEADLINE_LATE),
    Reason.CLAIM_LOST: (LOST, LOST, LOST, LOST, LOST, LOST, LOST_LATE),
    Reason.SIGTERM: (STOPPED, STOPPED, STOPPED, STOPPED, BY_ITSELF, BY_ITSELF, BY_ITSELF),
    Reason.SECOND_SIGTERM: (CUT_OFF, CUT_OFF, CUT_OFF, CUT_OFF, CUT_OFF, CUT_OFF, BY_ITSELF),
    Reason.MAX_RUN_TIME: (NO_CLOCK, NO_CLOCK, NO_CLOCK, TOO_LONG, NO_CLOCK, NO_CLOCK, NO_CLOCK),
    Reason.PLUGIN_CRASH: (CRASHED, CRASHED, CRASHED, CRASHED, CRASHED, CRASHED, NO_HOOK),
    Reason.ENGINE_CRASH: (NO_ENGINE_YET, CRASHED, CRASHED, CRASHED, CRASHED, CRASHED, NO_ENGINE_ANY_MORE),
    Reason.OUT_OF_DISK: (DISK_FULL, DISK_FULL, DISK_FULL, DISK_FULL, BY_ITSELF, BY_ITSELF, BY_ITSELF),
}
# fmt: on


def cells() -> Iterator[tuple[Reason, Stage, End | CannotBe]]:
    """All of the table."""
    for reason, row in ROWS.items():
        for stage, end in zip(Stage, row, strict=True):
            yield reason, stage, end
