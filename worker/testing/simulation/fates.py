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
DATES = ("date is missing", "date is off", "date is nonsense", "date is hours off", "date is beyond all bounds")
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
    b"[" * 100_000,  # more in one another than a parser can follow
)
BEYOND = (
    b"Fri, 31 Dec 9999 23:59:59 GMT",
    b"Mon, 01 Jan 0001 00:00:00 +2300",
    b"Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
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


def dated(headers: Headers, fault: str, chaos: Chaos) -> Headers:
    """The headers of an answer, with what a proxy makes of its Date."""
    date = next((value for name, value in headers if name == b"date"), b"")
    others = [(name, value) for name, value in headers if name != b"date"]
    match fault:
        case "date is missing":
            return others
        case "date is nonsense":
            return [*others, (b"date", b"yesterday")]
        case "date is beyond all bounds":
            return [*others, (b"date", chaos.one(BEYOND))]
        case "date is off" | "date is hours off":
            seconds = -1.0 if fault == "date is off" else chaos.random.uniform(-30_000, 30_000)
            told = parsedate_to_datetime(date.decode()) + timedelta(seconds=seconds)
            return [*others, (b"date", format_datetime(told, usegmt=True).encode())]
    return headers
