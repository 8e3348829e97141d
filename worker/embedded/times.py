"""Times as the API writes them: RFC 3339 in UTC with milliseconds, whose order as text is their order in time."""

from __future__ import annotations

from datetime import UTC, datetime


def to_wire(moment: datetime) -> str:
    """`moment` with milliseconds and a `Z`, as every answer but claimWork's own `takenUntil` has it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def from_wire(text: str) -> datetime:
    """The moment that `text`, any RFC 3339 date and time, names. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text} is out of range") from None


def normal(text: str) -> str:
    """`text`, any RFC 3339 date and time, in the one form that compares as text. Raises ValueError."""
    return to_wire(from_wire(text))
