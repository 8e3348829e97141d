"""What the machine tells the application.

A stream that ends in order has no event of its own: it is over when `Finished` came and `finish` was called.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a stream was aborted."""

    REFUSED = "refused by the peer"
    WITHDRAWN = "given up by the peer before it was accepted"
    NOT_ACCEPTED = "not accepted in time"
    TOO_MANY = "more streams than allowed"
    UNREAD = "more unread bytes than allowed"
    CONNECTION_LOST = "the connection was lost"


@dataclass(frozen=True, slots=True)
class Offered:
    """The peer opens a stream: `accept` it within the limit, or `abandon` it."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The peer has accepted a stream that we opened."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes, never none, that count as unread until the application says `consumed`."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CreditGained:
    """More may be sent than before: ask `sendable`."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The peer sends no more on this stream. We still may."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """The stream is gone both ways, and what is unread of it is to be thrown away.

    A stream refused as one too many was never offered, and has this event alone.
    """

    stream_id: int
    reason: Reason


Event = Offered | Accepted | Data | CreditGained | Finished | Aborted
