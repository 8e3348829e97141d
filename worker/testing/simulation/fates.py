"""What can happen to one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from types import MappingProxyType

from worker.testing.simulation.chaos import Chaos
from worker.testing.simulation.exchange import Headers

# The likeliest to hide the others last. Each request meets one of them at most.
BEFORE = (
    "connect refused",
    "request dropped",
    "reset in request body",
    "error before the queue",
    "429 before the queue",
)
AFTER = (
    "response lost",
    "reset after commit",
    "error after commit",
    "reset in response body",
    "truncated answer",
    "nonsense answer",
)
DATES = ("date is missing", "date is off", "date is nonsense")
AT_STORAGE = ("storage 400", "storage 403", "storage 500", "storage stalls")

# The status of what is answered before the request reaches the queue or its storage.
EARLY: Mapping[str, int] = MappingProxyType(
    {
        "error before the queue": 503,
        "outage 503": 503,
        "429 before the queue": 429,
        "storage 400": 400,
        "storage 403": 403,
        "storage 500": 500,
    }
)
NONSENSE = (
    b"<html><body>Welcome to our portal</body></html>",
    b"{}",
    b"null",
    b"[]",
    b"",
    b'{"status": 7}',
    b"\xff\xfe",
)

LONGEST_WAY_BACK = 20.0  # seconds that an answer takes: a claim must not be over when the worker hears of it


@dataclass
class Fate:
    """What happens to one request; times in seconds."""

    fault: str = ""
    there: float = 0.001
    back: float = 0.001
    twice: float | None = None  # after which time it arrives once more
    date: str = ""  # what is wrong with the answer's Date


def draw(chaos: Chaos, *, to_storage: bool) -> Fate:
    """Draw what will happen to a request."""
    fate = Fate(there=chaos.between(0.0005, 0.05), back=chaos.between(0.0005, 0.05))
    fate.fault = chaos.first_of((*BEFORE, *(AT_STORAGE if to_storage else ()), *AFTER))
    if chaos.strikes("latency"):
        fate.there = chaos.between(0.1, 40)
    if chaos.strikes("latency"):
        fate.back = min(chaos.between(0.1, 40), LONGEST_WAY_BACK)
    if chaos.drawn("duplicate"):
        fate.twice = chaos.between(0, 30)
    fate.date = chaos.first_of(DATES)
    return fate


def dated(headers: Headers, fault: str) -> Headers:
    """The headers of an answer, with what a proxy makes of its Date."""
    date = next((value for name, value in headers if name == b"date"), b"")
    others = [(name, value) for name, value in headers if name != b"date"]
    match fault:
        case "date is missing":
            return others
        case "date is nonsense":
            return [*others, (b"date", b"yesterday")]
        case "date is off":
            earlier = parsedate_to_datetime(date.decode()) - timedelta(seconds=1)
            return [*others, (b"date", format_datetime(earlier, usegmt=True).encode())]
    return headers
