"""One run as its engine and its plugins see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.model import Cause, RunKey
from worker.queue.models import TaskDefinition
from worker.queue.services import Queue
from worker.schema import Slice
from worker.tasklog import TaskLog

P = TypeVar("P", bound=Slice, covariant=True)


@dataclass(frozen=True, slots=True)
class Run(Generic[P]):
    """`payload` is the slice that its holder owns. `queue` signs with the run's own credentials, always the newest.

    `stop(cause)` ends the run's execution; the first cause counts, later ones are nothing. It returns at once.
    """

    key: RunKey
    task: TaskDefinition
    payload: P
    log: TaskLog
    queue: Queue
    stop: Callable[[Cause], None]
