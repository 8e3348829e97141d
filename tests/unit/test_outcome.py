from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import FatalWorkerFault, MalformedPayload, Problem, ResourceUnavailable, TaskFault, WorkerFault
from worker.model import COMPLETED, Cause, CauseKind, Resolution, Severity, State, Verdict
from worker.outcome import classify, combine, resolve

VERDICTS = st.builds(Verdict, st.sampled_from(Severity), st.sampled_from(["", "a", "b"]))


@given(st.lists(VERDICTS))
def test_the_worst_verdict_counts(verdicts: list[Verdict]) -> None:
    assert combine(verdicts).severity == max((v.severity for v in verdicts), default=Severity.COMPLETED)


@given(st.lists(VERDICTS))
def test_a_message_is_not_lost_to_an_equally_bad_verdict_without_one(verdicts: list[Verdict]) -> None:
    combined = combine(verdicts)
    messages = [v.message for v in verdicts if v.severity == combined.severity and v.message]
    assert combined.message == (messages[0] if messages else "")


@pytest.mark.parametrize(
    ("error", "severity"),
    [
        (TaskFault("x"), Severity.FAILED),
        (MalformedPayload([Problem("a", "x")]), Severity.MALFORMED),
        (ResourceUnavailable("x"), Severity.RESOURCE_UNAVAILABLE),
        (WorkerFault("x"), Severity.INTERNAL),
        (FatalWorkerFault("x"), Severity.INTERNAL),
        (
            ExceptionGroup("", [TaskFault("x"), ExceptionGroup("", [ResourceUnavailable("x")])]),
            Severity.RESOURCE_UNAVAILABLE,
        ),
    ],
)
def test_who_is_to_blame(error: Exception, severity: Severity) -> None:
    verdict = classify(error, "i1")
    assert verdict.severity is severity
    assert "x" in verdict.message


def test_a_bug_shows_its_incident_and_nothing_else() -> None:
    verdict = classify(RuntimeError("the token is hunter2"), "i1")
    assert verdict == Verdict(Severity.INTERNAL, "the worker failed (incident i1)")


LOST = [CauseKind.CANCELLED, CauseKind.DEADLINE, CauseKind.CLAIM_LOST]


@pytest.mark.parametrize(("kind", "severity"), list(itertools.product(LOST, Severity)))
def test_nothing_is_reported_for_a_run_that_is_not_ours(kind: CauseKind, severity: Severity) -> None:
    assert resolve(Verdict(severity, "y"), Cause(kind, "x")) == Resolution(State.ABANDONED, "x")


@pytest.mark.parametrize(
    ("verdict", "cause", "expected"),
    [
        (COMPLETED, None, "completed"),
        (Verdict(Severity.FAILED, "f"), None, "failed"),
        (Verdict(Severity.INTERMITTENT, "f"), None, "exception/intermittent-task"),
        (Verdict(Severity.MALFORMED, "f"), None, "exception/malformed-payload"),
        (COMPLETED, CauseKind.MAX_RUN_TIME, "failed"),
        (Verdict(Severity.RESOURCE_UNAVAILABLE, "f"), CauseKind.MAX_RUN_TIME, "exception/resource-unavailable"),
        (COMPLETED, CauseKind.SHUTDOWN, "exception/worker-shutdown"),
        (Verdict(Severity.FAILED, "f"), CauseKind.SHUTDOWN, "exception/worker-shutdown"),
        (Verdict(Severity.INTERNAL, "f"), CauseKind.SHUTDOWN, "exception/internal-error"),
    ],
)
def test_what_is_reported(verdict: Verdict, cause: CauseKind | None, expected: str) -> None:
    assert str(resolve(verdict, Cause(cause, "x") if cause else None)) == expected
