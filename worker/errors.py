"""Who is to blame. Anything that is none of these is a bug of the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document: where (`command[0]`, empty for the whole) and what was expected."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class TaskFault(Exception):
    """The task did this to itself: it fails. The message is for the task's author."""


class MalformedPayload(Exception):
    """The task asks for what cannot be: exception/malformed-payload. Nothing of it is run."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class ResourceUnavailable(Exception):
    """A service or a resource that the run needs is not to be had, retries included: exception/resource-unavailable."""


class WorkerFault(Exception):
    """The worker or its machine failed this run; other runs may go on: exception/internal-error."""


class FatalWorkerFault(Exception):
    """The worker or its machine cannot be trusted with any task: internal-error, and the worker stops."""
