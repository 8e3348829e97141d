"""From what happened to what is reported: pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from worker.errors import FatalWorkerFault, MalformedPayload, ResourceUnavailable, TaskFault, WorkerFault
from worker.model import COMPLETED, Cause, CauseKind, ExceptionReason, Resolution, Severity, State, Verdict

_REASONS: dict[Severity, ExceptionReason] = {
    Severity.INTERMITTENT: "intermittent-task",
    Severity.RESOURCE_UNAVAILABLE: "resource-unavailable",
    Severity.SHUTDOWN: "worker-shutdown",
    Severity.MALFORMED: "malformed-payload",
    Severity.INTERNAL: "internal-error",
}


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; of equally bad ones the first that says something."""
    worst = COMPLETED
    for verdict in verdicts:
        if (verdict.severity, bool(verdict.message)) > (worst.severity, bool(worst.message)):
            worst = verdict
    return worst


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside of `error`, exception groups taken apart."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def classify(error: BaseException, incident: str) -> Verdict:
    """Who is to blame for `error`, the worst of it where it is a group.

    What nobody foresaw is the worker's own bug: then the message holds only the `incident` id, under which the
    worker's log has the traceback. It may hold what a task must not see.
    """
    return combine(_classify_one(leaf, incident) for leaf in leaves(error))


def _classify_one(error: BaseException, incident: str) -> Verdict:
    match error:
        case MalformedPayload():
            return Verdict(Severity.MALFORMED, str(error))
        case ResourceUnavailable():
            return Verdict(Severity.RESOURCE_UNAVAILABLE, str(error))
        case TaskFault():
            return Verdict(Severity.FAILED, str(error))
        case WorkerFault() | FatalWorkerFault():
            return Verdict(Severity.INTERNAL, f"the worker failed: {error} (incident {incident})")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Verdict(Severity.INTERNAL, f"the worker failed: its disk is full (incident {incident})")
        case _:
            return Verdict(Severity.INTERNAL, f"the worker failed (incident {incident})")


def resolve(verdict: Verdict, cause: Cause | None) -> Resolution:
    """What to report, given the plugins' verdict and what ended the run early, if anything did.

    A run that is no longer ours is not reported, whatever else happened. A task that ran out of time failed, unless
    something worse happened to it. A shutdown is never the task's fault, so it outranks a mere failure: the queue
    runs the task again.
    """
    if cause is not None and not cause.run_is_ours:
        return Resolution(State.ABANDONED, cause.message)
    if cause is not None:
        shutdown = cause.kind is CauseKind.SHUTDOWN
        verdict = combine([Verdict(Severity.SHUTDOWN if shutdown else Severity.FAILED, cause.message), verdict])
    if verdict.severity is Severity.COMPLETED:
        return Resolution(State.COMPLETED, verdict.message)
    if verdict.severity is Severity.FAILED:
        return Resolution(State.FAILED, verdict.message)
    return Resolution(State.EXCEPTION, verdict.message, _REASONS[verdict.severity])
