"""Which end a connection is, what it may hold, and what it holds (taskcluster websocktunnel, wsmux)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from worker.webhooks.wsmux.frames import HEADER

WINDOW = 4 * 1024 * 1024
IDS = 2**32


class Role(IntEnum):
    """Which end this is; the number is the first id that it opens, and the parity of all of them."""

    SERVER = 0
    CLIENT = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may hold. Both ends must have the same `window`; sizes are in bytes, times in seconds."""

    window: int = WINDOW
    accept_within: float = 30.0
    max_unaccepted: int = 200  # of those opened by either end
    max_streams: int = 1000
    max_frame: int = HEADER + WINDOW  # received; nobody has credit for more
    max_payload: int = 64 * 1024  # of a frame that we send, so that a long answer does not hold up the others
    max_unread: int = 64 * 1024 * 1024  # of all streams
    max_outgoing: int = 64 * 1024  # of all streams' data, waiting in `take_messages`: whatever is new comes behind it


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a connection holds now: numbers of streams, and bytes."""

    streams: int
    unaccepted: int
    unread: int
    outgoing: int
