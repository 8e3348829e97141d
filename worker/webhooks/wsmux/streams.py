"""One stream: its states as tables, and its credit both ways (taskcluster websocktunnel, wsmux).

             we open                                  the peer opens
    OPENING ── ACK received ──┐          ┌── ACK sent ── OFFERED
       │                      └── OPEN ──┘                  │
       │         FIN sent ──┘            └── FIN received   │
       │         SENT_FIN                    GOT_FIN        │
       │            └─ FIN received    FIN sent ─┘          │
       └── FIN, either way ─────── ENDED ── FIN received ───┘

The protocol has no reset. A FIN before the ACK says that the stream will not be: nobody sends it to close one half, as
the opener sends nothing before the ACK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from worker.webhooks.wsmux.frames import MAX_U32, Ack, Dat, Fin, Frame, ProtocolError, Syn


class LocalProtocolError(Exception):
    """We were about to break the protocol, and nothing was sent: a bug of the caller, or the stream is gone."""


class State(Enum):
    """Where a stream stands."""

    OPENING = auto()
    OFFERED = auto()
    OPEN = auto()
    SENT_FIN = auto()
    GOT_FIN = auto()
    ENDED = auto()


Transitions = Mapping[State, Mapping[type[Frame], State]]

# What is not in a table must not happen in that state. An ACK may come for as long as the stream is known, since the
# peer's application may read after both have sent FIN.
ON_RECEIVED: Transitions = {
    State.OPENING: {Ack: State.OPEN, Fin: State.ENDED},
    State.OFFERED: {Fin: State.ENDED},
    State.OPEN: {Dat: State.OPEN, Ack: State.OPEN, Fin: State.GOT_FIN},
    State.SENT_FIN: {Dat: State.SENT_FIN, Ack: State.SENT_FIN, Fin: State.ENDED},
    State.GOT_FIN: {Ack: State.GOT_FIN},
    State.ENDED: {Ack: State.ENDED},
}
ON_SENT: Transitions = {
    State.OPENING: {Fin: State.ENDED},
    State.OFFERED: {Ack: State.OPEN},
    State.OPEN: {Dat: State.OPEN, Ack: State.OPEN, Fin: State.SENT_FIN},
    State.SENT_FIN: {Ack: State.SENT_FIN},
    State.GOT_FIN: {Dat: State.GOT_FIN, Fin: State.ENDED},
    State.ENDED: {},
}

UNACCEPTED = frozenset({State.OPENING, State.OFFERED})
NAMES: Mapping[type[Frame], str] = {Dat: "DAT", Syn: "SYN", Ack: "ACK", Fin: "FIN"}


@dataclass(slots=True)
class Stream:
    """A stream and its account, in bytes.

    For as long as the peer may send, `window` is what it may still send, and what is unread, and what was consumed but
    not yet acknowledged.
    """

    id: int
    state: State
    window: int
    credit: int = 0  # what we may send
    granted: int = 0  # what the peer may send
    unread: int = 0
    unacknowledged: int = 0

    def may_send(self, kind: type[Frame]) -> bool:
        """Whether the state allows it."""
        return kind in ON_SENT[self.state]

    def sending(self, frame: Frame) -> None:
        """The frame is about to be sent. Raises `LocalProtocolError` where it must not be."""
        if not self.may_send(type(frame)):
            raise LocalProtocolError(f"{NAMES[type(frame)]} on stream {self.id}, which is {self.state.name}")
        match frame:
            case Dat(data=data):
                if len(data) > self.credit:
                    raise LocalProtocolError(f"{len(data)} bytes on stream {self.id}, with credit for {self.credit}")
                self.credit -= len(data)
            case Ack(amount=amount):
                self.granted += amount
                if self.state is State.OFFERED:
                    self.credit = self.window  # both ends start with the same, and the opener sends no ACK for it
        self.state = ON_SENT[self.state][type(frame)]

    def received(self, frame: Frame) -> None:
        """The peer sent the frame. Raises `ProtocolError` where it must not have."""
        after = ON_RECEIVED[self.state].get(type(frame))
        if after is None:
            raise ProtocolError(f"{NAMES[type(frame)]} on stream {self.id}, which is {self.state.name}")
        match frame:
            case Dat(data=data):
                if len(data) > self.granted:
                    raise ProtocolError(f"{len(data)} bytes on stream {self.id}, with credit for {self.granted}")
                self.granted -= len(data)
                self.unread += len(data)
            case Ack(amount=amount):
                if self.credit + amount > MAX_U32:
                    raise ProtocolError(f"ACK of {amount} on stream {self.id}: a credit above {MAX_U32}")
                self.credit += amount
        self.state = after

    def consumed(self, count: int) -> int:
        """The application has consumed so many unread bytes; returns how many to acknowledge now, 0 for later.

        An ACK waits until a quarter of the window is consumed: that keeps their number low, and the peer never stands
        still for it, since it may send three quarters of the window whenever nothing is unread.
        """
        if not 0 <= count <= self.unread:
            raise LocalProtocolError(f"{count} bytes consumed of stream {self.id}, with {self.unread} unread")
        self.unread -= count
        if Dat not in ON_RECEIVED[self.state]:
            return 0
        self.unacknowledged += count
        if self.unacknowledged < max(1, self.window // 4):
            return 0
        amount, self.unacknowledged = self.unacknowledged, 0
        return amount

    def check(self) -> None:
        """What holds at all times."""
        assert min(self.credit, self.granted, self.unread, self.unacknowledged) >= 0, self
        assert self.credit <= MAX_U32, self
        if Dat in ON_RECEIVED[self.state]:
            assert self.granted + self.unread + self.unacknowledged == self.window, self
        if self.state in UNACCEPTED:
            assert self.credit == self.unread == 0, self
