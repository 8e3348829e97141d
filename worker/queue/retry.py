"""When to try again: the decision is a pure function, the loop around it is short."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import trio

from worker.queue.clock import parse_date

T = TypeVar("T")

TOO_MANY_REQUESTS = 429
_NOT_YET = {408, 425, TOO_MANY_REQUESTS}  # the request came too slowly (RFC 9110, 15.5.9), or too early (RFC 8470)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to insist; times in seconds. The waits between attempts double from `first` to `longest`.

    Each is shortened by up to a half, at random, so that clients that failed together do not come back together.
    """

    attempts: int = 10
    total: float = 120.0  # no attempt begins later than this after the first
    first: float = 0.2
    longest: float = 30.0
    retry_after: float = 60.0  # the most that a `Retry-After` may ask for


NO_RETRY = RetryPolicy(attempts=1)


@dataclass(frozen=True, slots=True)
class Transient:
    """Why an attempt failed in a way that another one may not, and the seconds that the server asked to wait."""

    reason: str
    retry_after: float | None = None


def is_transient(status: int) -> bool:
    """Whether an answer's status says: try again. Never so for other 4xx."""
    return status in _NOT_YET or status >= 500


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3): a number or a date; else None."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = parse_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def wait_before_next(
    policy: RetryPolicy, attempt: int, elapsed: float, retry_after: float | None, jitter: float
) -> float | None:
    """Seconds to wait after attempt number `attempt` (from 1) has failed, or None to give up.

    `elapsed` counts from the start of the first attempt; `jitter` is a random number from 0 to 1.
    """
    if attempt >= policy.attempts:
        return None
    # The exponent is bounded because a float is; a wait of 2 ** 60 is cut to `longest` anyhow.
    wait = min(policy.longest, policy.first * 2.0 ** min(attempt - 1, 60)) * (1 - jitter / 2)
    if retry_after is not None:
        wait = max(wait, min(retry_after, policy.retry_after))
    return wait if elapsed + wait <= policy.total else None


async def retrying(
    attempt: Callable[[int], Awaitable[T | Transient]], policy: RetryPolicy, randomness: random.Random
) -> tuple[T | Transient, int]:
    """Call `attempt`, with its number from 1, until it gives anything but a `Transient` or the policy ends it.

    Returns the last result and the number of attempts. Cancellation ends it in an attempt or between two.
    """
    started = trio.current_time()
    number = 1
    while True:
        result = await attempt(number)
        if not isinstance(result, Transient):
            return result, number
        elapsed = trio.current_time() - started
        wait = wait_before_next(policy, number, elapsed, result.retry_after, randomness.random())
        if wait is None:
            return result, number
        await trio.sleep(wait)
        number += 1
