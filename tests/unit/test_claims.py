from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.claims import (
    LONGEST_BACKOFF,
    MAX_CLAIM,
    Claim,
    ClaimState,
    Finish,
    StopReason,
    Wait,
    claim_times,
)


def state(capacity: int = 4, number_of_tasks: int = 0, idle_timeout: float = 0) -> ClaimState:
    return ClaimState(capacity, number_of_tasks, idle_timeout, idle_since=0)


def test_asks_for_the_free_places_and_not_for_more_than_the_queue_gives() -> None:
    assert state(4).decide(0) == Claim(4)
    assert state(100).decide(0) == Claim(MAX_CLAIM)


def test_waits_while_every_place_is_taken_and_asks_at_once_when_one_is_free() -> None:
    claims = state(2)
    claims.answered(2)
    assert claims.decide(0) == Wait(inf)
    claims.ended(5)
    assert claims.decide(5) == Claim(1)


def test_backs_off_for_longer_each_time_and_starts_over_after_an_answer() -> None:
    claims = state()
    waits = []
    for _ in range(10):
        claims.failed(0, jitter=0)
        waits.append(claims.not_before)
    assert waits == sorted(waits)
    assert waits[0] == 1
    assert waits[-1] == LONGEST_BACKOFF
    assert claims.decide(0) == Wait(LONGEST_BACKOFF)
    assert claims.decide(LONGEST_BACKOFF) == Claim(4)
    claims.answered(0)
    claims.failed(100, jitter=1)
    assert claims.decide(100) == Wait(100.5)


def test_claims_no_more_tasks_than_configured() -> None:
    claims = state(capacity=4, number_of_tasks=3)
    assert claims.decide(0) == Claim(3)
    claims.answered(2)
    assert claims.decide(0) == Claim(1)
    claims.answered(1)
    assert claims.decide(0) == Finish(StopReason.NUMBER_OF_TASKS)


def test_ends_when_idle_for_too_long_and_not_while_a_task_runs() -> None:
    claims = state(idle_timeout=10)
    claims.answered(1)
    assert claims.decide(20) == Claim(3)
    claims.ended(20)
    assert claims.decide(29) == Claim(4)
    assert claims.decide(30) == Finish(StopReason.IDLE)


def test_the_first_reason_to_stop_counts() -> None:
    claims = state()
    claims.stopping(StopReason.FAULT)
    claims.stopping(StopReason.STOPPED)
    assert claims.decide(0) == Finish(StopReason.FAULT)


class Claiming(RuleBasedStateMachine):
    """Whatever happens, the capacity is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.claims = state(capacity=5, number_of_tasks=12)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(share=st.floats(0, 1))
    def asks(self, share: float) -> None:
        match self.claims.decide(self.now):
            case Claim(tasks):
                self.claims.answered(round(tasks * share))

    @rule(jitter=st.floats(0, 1))
    def fails(self, jitter: float) -> None:
        if isinstance(self.claims.decide(self.now), Claim):
            self.claims.failed(self.now, jitter)

    @precondition(lambda self: self.claims.running > 0)
    @rule()
    def run_ends(self) -> None:
        self.claims.ended(self.now)

    @invariant()
    def is_within_its_limits(self) -> None:
        self.claims.check()
        assert self.claims.claimed <= 12
        assert self.claims.not_before <= self.now + LONGEST_BACKOFF


TestClaiming = Claiming.TestCase

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.integers(1, 100_000), st.integers(0, 3600))
def test_there_is_time_to_reclaim_and_then_to_kill(seconds: int, grace: int) -> None:
    taken_until = NOW + timedelta(seconds=seconds)
    times = claim_times(NOW, taken_until, timedelta(seconds=grace))
    assert NOW < times.reclaim_at < times.end_at < taken_until
    assert taken_until - times.end_at == min(timedelta(seconds=grace + 5), timedelta(seconds=seconds) / 2)


@pytest.mark.parametrize("grace", [5, 170, 300])
def test_a_usual_claim_is_renewed_three_minutes_before_its_run_would_be_ended(grace: int) -> None:
    times = claim_times(NOW, NOW + timedelta(minutes=20), timedelta(seconds=grace))
    assert times.end_at == NOW + timedelta(minutes=20, seconds=-5 - grace)
    assert times.end_at - times.reclaim_at == timedelta(minutes=3)


def test_a_claim_that_is_over_is_renewed_now() -> None:
    assert claim_times(NOW, NOW - timedelta(seconds=1), timedelta(seconds=5)).reclaim_at <= NOW
