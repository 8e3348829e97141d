"""When a call is tried again, and after how long."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from worker.queue.retry import (
    NO_RETRY,
    RetryPolicy,
    Transient,
    is_transient,
    parse_retry_after,
    retrying,
    wait_before_next,
)

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
FRACTIONS = st.floats(0, 1)
RETRY_AFTER = st.none() | st.floats(0, 1e9)


@given(st.integers(1, 2000), st.floats(0, 1e6), RETRY_AFTER, FRACTIONS)
def test_waits_are_within_the_policy(attempt: int, elapsed: float, retry_after: float | None, jitter: float) -> None:
    policy = RetryPolicy()
    wait = wait_before_next(policy, attempt, elapsed, retry_after, jitter)
    if wait is not None:
        assert attempt < policy.attempts
        assert elapsed + wait <= policy.total
        assert 0 < wait <= max(policy.longest, policy.retry_after)


@given(st.integers(1, 2000), FRACTIONS)
def test_waits_double_up_to_the_longest_and_are_shortened_by_half_at_most(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(attempts=10_000, total=1e9)
    full = min(policy.longest, policy.first * 2.0 ** min(attempt - 1, 100))
    wait = wait_before_next(policy, attempt, 0, None, jitter)
    assert wait is not None
    assert full / 2 <= wait <= full


def test_server_may_ask_for_a_longer_wait_but_not_for_any() -> None:
    policy = RetryPolicy(attempts=3, total=1000, retry_after=60)
    assert wait_before_next(policy, 1, 0, 7, 0) == 7
    assert wait_before_next(policy, 1, 0, 0, 0) == policy.first
    assert wait_before_next(policy, 1, 0, 1e6, 0) == 60


def test_gives_up_by_number_and_by_time() -> None:
    policy = RetryPolicy(attempts=3, total=10)
    assert wait_before_next(policy, 2, 9, None, 0) is not None
    assert wait_before_next(policy, 3, 0, None, 0) is None
    assert wait_before_next(policy, 1, 9.9, None, 0) is None
    assert wait_before_next(policy, 1, 0, 11, 0) is None
    assert wait_before_next(NO_RETRY, 1, 0, None, 0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5),
        (" 120 ", 120),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30),
        (format_datetime(NOW - timedelta(seconds=30), usegmt=True), 0),
        ("soon", None),
        ("-1", None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text())
def test_any_retry_after_is_survived(value: str) -> None:
    parse_retry_after(value, NOW)


def test_of_4xx_only_those_that_ask_for_another_attempt_are_transient() -> None:
    assert [status for status in range(200, 500) if is_transient(status)] == [408, 425, 429]
    assert all(is_transient(status) for status in range(500, 600))


async def test_waits_between_attempts_grow(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def attempt(number: int) -> Transient | str:
        assert number == len(times) + 1
        times.append(trio.current_time())
        return "done" if number == 6 else Transient("not yet")

    assert await retrying(attempt, RetryPolicy(), random.Random(1)) == ("done", 6)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(0.1 * 2**n <= wait <= 0.2 * 2**n + 1e-9 for n, wait in enumerate(waits))


async def test_last_failure_is_returned(autojump_clock: MockClock) -> None:
    async def attempt(number: int) -> Transient:
        return Transient(f"failure {number}")

    assert await retrying(attempt, RetryPolicy(attempts=3), random.Random(1)) == (Transient("failure 3"), 3)


async def test_cancellation_ends_a_wait(autojump_clock: MockClock) -> None:
    async def attempt(_number: int) -> Transient:
        return Transient("never", retry_after=30)

    with trio.move_on_after(10) as scope:
        await retrying(attempt, RetryPolicy(), random.Random(1))
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(10)
