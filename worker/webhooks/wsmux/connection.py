"""One end of a connection: websocket messages and the application's calls in, events and messages out.

Protocol: taskcluster websocktunnel, wsmux. No I/O and no clock: `now` is in monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

from worker.webhooks.wsmux.events import Aborted, Accepted, CreditGained, Data, Event, Finished, Offered, Reason
from worker.webhooks.wsmux.frames import (
    Ack,
    Dat,
    Fin,
    Frame,
    ProtocolError,
    Syn,
    decode,
    describe,
    encode,
)
from worker.webhooks.wsmux.limits import IDS, Limits, Role, Statistics
from worker.webhooks.wsmux.streams import UNACCEPTED, LocalProtocolError, State, Stream

HISTORY = 32  # frames
HEAD = 9  # bytes of a frame that the history keeps


class Connection:
    """One end of a multiplexed websocket.

    The caller sends what `take_messages` gives after each call and before the next message is received, so that what a
    peer makes us answer does not pile up; and calls `expire` when `deadline` has come. When `receive` raises
    `ProtocolError`, or the websocket ends, it calls `connection_lost`.
    """

    def __init__(self, role: Role, limits: Limits | None = None) -> None:
        self.role = role
        self.limits = limits or Limits()
        self._streams: dict[int, Stream] = {}
        self._deadlines: dict[int, float] = {}  # of what is not accepted yet, the earliest first
        self._next_id: int = role
        self._unread = 0
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._over = False
        self._history: deque[tuple[str, bytes, int]] = deque(maxlen=HISTORY)

    # From the peer

    def receive(self, message: bytes | str, now: float) -> list[Event]:
        """A websocket message has come. Raises `ProtocolError` where it must not have; then the connection is over.

        A frame of a stream that is not known, other than SYN, is ignored: it was on its way when the stream ended.
        """
        if self._over:
            raise LocalProtocolError("the connection is over")
        if isinstance(message, bytes):
            self._history.append(("<", message[:HEAD], len(message)))
        try:
            return list(self._received(decode(message, self.limits.max_frame), now))
        except ProtocolError:
            self._over = True
            raise

    def _received(self, frame: Frame, now: float) -> Iterator[Event]:
        if isinstance(frame, Syn):
            yield self._offered(frame.stream_id, now)
            return
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            return
        before = stream.state
        stream.received(frame)
        match frame:
            case Ack(stream_id):
                yield Accepted(stream_id) if before is State.OPENING else CreditGained(stream_id)
            case Fin(stream_id) if before in UNACCEPTED:
                self._forget(stream)
                yield Aborted(stream_id, Reason.REFUSED if before is State.OPENING else Reason.WITHDRAWN)
            case Fin(stream_id):
                yield Finished(stream_id)
            case Dat(stream_id, data) if data:
                self._unread += len(data)
                yield from self._keep_unread_limit()
                if stream_id in self._streams:
                    yield Data(stream_id, data)
        self._settled(stream)

    def _offered(self, stream_id: int, now: float) -> Event:
        if self._is_ours(stream_id):
            raise ProtocolError(f"SYN of stream {stream_id}, an id of ours")
        if stream_id in self._streams:
            raise ProtocolError(f"SYN of stream {stream_id}, which is {self._streams[stream_id].state.name}")
        stream = Stream(stream_id, State.OFFERED, self.limits.window)
        if self._is_full(ours=False):
            self._drop(stream)
            return Aborted(stream_id, Reason.TOO_MANY)
        self._add(stream, now)
        return Offered(stream_id)

    def _keep_unread_limit(self) -> Iterator[Event]:
        # Who reads least of what it was sent gives way, so that a few of these do not end the others.
        while self._unread > self.limits.max_unread:
            worst = max(self._streams.values(), key=lambda stream: stream.unread)
            self._drop(worst)
            yield Aborted(worst.id, Reason.UNREAD)

    # Time

    def deadline(self) -> float:
        """When `expire` has something to do; infinity for never."""
        return next(iter(self._deadlines.values()), inf)

    def expire(self, now: float) -> list[Event]:
        """Abort the streams that were not accepted in time, be it by the peer or by the application."""
        late = [stream_id for stream_id, deadline in self._deadlines.items() if deadline <= now]
        for stream_id in late:
            self._drop(self._streams[stream_id])
        return [Aborted(stream_id, Reason.NOT_ACCEPTED) for stream_id in late]

    def connection_lost(self) -> list[Event]:
        """The websocket has ended, or is about to be closed: so have all streams. What was to be sent is dropped.

        A stream that both ends had finished is not aborted, though some of it may be unread.
        """
        aborted = [stream.id for stream in self._streams.values() if stream.state is not State.ENDED]
        self._over = True
        self._streams.clear()
        self._deadlines.clear()
        self._outgoing.clear()
        self._unread = self._outgoing_bytes = 0
        return [Aborted(stream_id, Reason.CONNECTION_LOST) for stream_id in aborted]

    # From the application

    def open(self, now: float) -> int:
        """Open a stream; returns its id. It can be used when `Accepted` came."""
        if self._over:
            raise LocalProtocolError("the connection is over")
        if self._is_full(ours=True):
            raise LocalProtocolError("as many streams are open as are allowed")
        while self._next_id in self._streams:
            self._next_id = (self._next_id + 2) % IDS
        stream = Stream(self._next_id, State.OPENING, self.limits.window, granted=self.limits.window)
        self._next_id = (self._next_id + 2) % IDS
        self._add(stream, now)
        self._put(Syn(stream.id))
        return stream.id

    def accept(self, stream_id: int) -> None:
        """Accept a stream that was `Offered`."""
        stream = self._known(stream_id)
        if stream.state is not State.OFFERED:
            raise LocalProtocolError(f"stream {stream_id} cannot be accepted, as it is {stream.state.name}")
        self._send(stream, Ack(stream_id, stream.window))
        del self._deadlines[stream_id]

    def credit(self, stream_id: int) -> int:
        """How many bytes the peer takes: 0 for now, or for good."""
        stream = self._streams.get(stream_id)
        return stream.credit if stream is not None and stream.may_send(Dat) else 0

    def sendable(self, stream_id: int) -> int:
        """How many bytes `send` takes now: 0 while there is no `credit`, or while messages are to be taken."""
        room = self.limits.max_outgoing - self._outgoing_bytes
        return max(0, min(self.credit(stream_id), self.limits.max_payload, room))

    def send(self, stream_id: int, data: bytes) -> None:
        """Send bytes, in one frame: no more than `sendable` says."""
        stream = self._known(stream_id)
        if stream.may_send(Dat) and len(data) > self.sendable(stream_id):
            raise LocalProtocolError(
                f"{len(data)} bytes on stream {stream_id}, where {self.sendable(stream_id)} are sendable"
            )
        self._send(stream, Dat(stream_id, data))

    def finish(self, stream_id: int) -> None:
        """Send no more on this stream, after what was sent. The peer still may, until its own FIN or an `abandon`."""
        stream = self._known(stream_id)
        if stream.state in UNACCEPTED:
            raise LocalProtocolError(f"stream {stream_id} cannot be finished, as it is {stream.state.name}")
        self._send(stream, Fin(stream_id))
        self._settled(stream)

    def consumed(self, stream_id: int, count: int) -> None:
        """The application is done with so many bytes of `Data`: the peer may send as many more.

        Of a stream that is gone this is taken in silence, as is `abandon`: it may go while the application works.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        amount = stream.consumed(count)
        self._unread -= count
        if amount:
            self._send(stream, Ack(stream_id, amount))
        self._settled(stream)

    def abandon(self, stream_id: int) -> None:
        """Have no more to do with a stream, whatever its state: finish it, and ignore what still comes.

        One that was offered is refused, by accepting and finishing it: then its opener knows at once.
        """
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)

    def take_messages(self) -> list[bytes]:
        """The websocket messages to send, in order. After that there is room for more in `sendable`."""
        messages = list(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        return messages

    # For people

    def statistics(self) -> Statistics:
        """What is held now."""
        return Statistics(len(self._streams), len(self._deadlines), self._unread, self._outgoing_bytes)

    def history(self) -> list[str]:
        """The last frames, received (<) and made for sending (>), the oldest first."""
        return [f"{way} {describe(head, size)}" for way, head, size in self._history]

    def check(self) -> None:
        """What holds at all times; slow, for tests."""
        for stream in self._streams.values():
            stream.check()
            assert (stream.state in UNACCEPTED) == (stream.id in self._deadlines), stream
            assert stream.state is not State.ENDED or stream.unread, stream
        assert self._deadlines.keys() <= self._streams.keys()
        assert list(self._deadlines.values()) == sorted(self._deadlines.values())
        assert len(self._streams) <= self.limits.max_streams
        assert self._unread == sum(stream.unread for stream in self._streams.values()) <= self.limits.max_unread
        assert self._outgoing_bytes == sum(map(len, self._outgoing))

    # The parts

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self.role

    def _is_full(self, *, ours: bool) -> bool:
        unaccepted = sum(self._is_ours(stream_id) == ours for stream_id in self._deadlines)
        return unaccepted >= self.limits.max_unaccepted or len(self._streams) >= self.limits.max_streams

    def _known(self, stream_id: int) -> Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(f"stream {stream_id} is gone")
        return stream

    def _add(self, stream: Stream, now: float) -> None:
        self._streams[stream.id] = stream
        self._deadlines[stream.id] = now + self.limits.accept_within

    def _send(self, stream: Stream, frame: Frame) -> None:
        stream.sending(frame)
        self._put(frame)

    def _put(self, frame: Frame) -> None:
        message = encode(frame)
        self._history.append((">", message[:HEAD], len(message)))
        self._outgoing.append(message)
        self._outgoing_bytes += len(message)

    def _drop(self, stream: Stream) -> None:
        if stream.state is State.OFFERED:
            self._send(stream, Ack(stream.id, stream.window))
        if stream.may_send(Fin):
            self._send(stream, Fin(stream.id))
        self._forget(stream)

    def _settled(self, stream: Stream) -> None:
        # An accepted stream no longer has a deadline; one that has ended is kept for as long as it counts as unread.
        if stream.state not in UNACCEPTED:
            self._deadlines.pop(stream.id, None)
        if stream.state is State.ENDED and not stream.unread:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._deadlines.pop(stream.id, None)
        self._unread -= stream.unread
        stream.unread = 0
