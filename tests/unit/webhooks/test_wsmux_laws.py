"""Two machines, each the other's peer, whatever is sent in whichever pieces and order; and a hostile peer by seeds."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.testing.wsmux_fuzz import fuzz
from worker.webhooks.wsmux import (
    Aborted,
    Accepted,
    Connection,
    Data,
    Event,
    Finished,
    Limits,
    Offered,
    Reason,
    Role,
    Statistics,
)
from worker.webhooks.wsmux.frames import Ack, Frame, encode
from worker.webhooks.wsmux.streams import Stream

LIMITS = Limits(window=50, max_streams=6, max_unaccepted=4, max_payload=20, max_unread=300, max_outgoing=100)
NOTHING = Statistics(0, 0, 0, 0)


class End:
    """An application on one end, which knows what it sent and received."""

    def __init__(self, role: Role) -> None:
        self.machine = Connection(role, LIMITS)
        self.wire: deque[bytes] = deque()  # what is on its way to the other end
        self.offered: list[int] = []
        self.sent: dict[int, bytearray] = {}
        self.got: dict[int, bytearray] = {}
        self.unread: dict[int, int] = {}
        self.accepted: set[int] = set()
        self.finished: set[int] = set()
        self.peer_finished: set[int] = set()
        self.gone: set[int] = set()

    def opened(self, stream_id: int) -> None:
        self.sent[stream_id], self.got[stream_id], self.unread[stream_id] = bytearray(), bytearray(), 0

    def flush(self) -> None:
        self.wire.extend(self.machine.take_messages())

    def told(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Offered(stream_id):
                    self.offered.append(stream_id)
                    self.opened(stream_id)
                case Accepted(stream_id):
                    self.accepted.add(stream_id)
                case Data(stream_id, data):
                    assert stream_id not in self.peer_finished
                    self.got[stream_id] += data
                    self.unread[stream_id] += len(data)
                case Finished(stream_id):
                    self.peer_finished.add(stream_id)
                case Aborted(stream_id):
                    self.gone.add(stream_id)
                    if stream_id in self.offered:
                        self.offered.remove(stream_id)


class Pair(RuleBasedStateMachine):
    """Everything that two applications can do, with messages that wait as long as they like, and then the quiet end."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(Role.SERVER), End(Role.CLIENT))
        self.now = 0.0
        self.number = 0

    def streams(self, which: int) -> list[int]:
        end = self.ends[which]
        return [stream_id for stream_id in end.sent if stream_id not in end.gone]

    @rule(which=st.integers(0, 1))
    def opens(self, which: int) -> None:
        end = self.ends[which]
        held = end.machine.statistics()
        if held.streams < LIMITS.max_streams and held.unaccepted < LIMITS.max_unaccepted:
            end.opened(end.machine.open(self.now))

    @rule(which=st.integers(0, 1), messages=st.integers(1, 5))
    def delivers(self, which: int, messages: int) -> None:
        end, other = self.ends[which], self.ends[1 - which]
        end.flush()
        for _ in range(min(messages, len(end.wire))):
            other.told(other.machine.receive(end.wire.popleft(), self.now))

    @precondition(lambda self: any(end.offered for end in self.ends))
    @rule(which=st.integers(0, 1))
    def accepts(self, which: int) -> None:
        end = self.ends[which]
        if end.offered:
            end.machine.accept(end.offered.pop(0))

    @rule(which=st.integers(0, 1), pick=st.integers(0, 5), size=st.integers(1, 30))
    def sends(self, which: int, pick: int, size: int) -> None:
        end, streams = self.ends[which], self.streams(which)
        if not streams:
            return
        stream_id = streams[pick % len(streams)]
        size = min(size, end.machine.sendable(stream_id))
        if size:
            self.number += 1
            data = (b"%d." % self.number * size)[:size]
            end.machine.send(stream_id, data)
            end.sent[stream_id] += data

    @rule(which=st.integers(0, 1), pick=st.integers(0, 5), share=st.floats(0, 1))
    def consumes(self, which: int, pick: int, share: float) -> None:
        end, streams = self.ends[which], self.streams(which)
        if streams:
            stream_id = streams[pick % len(streams)]
            count = round(end.unread[stream_id] * share)
            end.unread[stream_id] -= count
            end.machine.consumed(stream_id, count)

    @rule(which=st.integers(0, 1), pick=st.integers(0, 5))
    def finishes(self, which: int, pick: int) -> None:
        end, streams = self.ends[which], self.streams(which)
        if streams:
            self.finish(end, streams[pick % len(streams)])

    def finish(self, end: End, stream_id: int) -> None:
        ours = stream_id % 2 == end.machine.role
        accepted = stream_id in end.accepted if ours else stream_id not in end.offered
        if accepted and stream_id not in end.finished:
            end.machine.finish(stream_id)
            end.finished.add(stream_id)

    @rule(which=st.integers(0, 1), pick=st.integers(0, 20))
    def abandons(self, which: int, pick: int) -> None:
        end, streams = self.ends[which], self.streams(which)
        if pick < len(streams):
            end.machine.abandon(streams[pick])
            end.told([Aborted(streams[pick], Reason.REFUSED)])

    @rule(seconds=st.sampled_from([0.5, 20.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for end in self.ends:
            end.told(end.machine.expire(self.now))

    @invariant()
    def nothing_is_broken(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            end.machine.check()
            held = end.machine.statistics()
            assert held.outgoing <= LIMITS.max_outgoing + 500  # control frames of what is open come on top
            for stream_id, got in end.got.items():
                sent = other.sent.get(stream_id, b"")
                assert sent.startswith(got)
                if stream_id in end.peer_finished and stream_id not in other.gone:
                    assert got == sent
                # The window bounds what the sender is ahead of the reader, wherever the bytes are.
                if stream_id not in end.gone:
                    assert len(sent) - len(got) + end.unread[stream_id] <= LIMITS.window

    def teardown(self) -> None:
        # In quiet everything comes through and ends, and nothing is left of it.
        for _ in range(100):
            for which, end in enumerate(self.ends):
                self.delivers(which, 1000)
                while end.offered:
                    self.accepts(which)
                for stream_id in self.streams(which):
                    end.machine.consumed(stream_id, end.unread[stream_id])
                    end.unread[stream_id] = 0
                    self.finish(end, stream_id)
            if not any(end.machine.statistics().streams or end.machine.statistics().outgoing for end in self.ends):
                break
        self.nothing_is_broken()
        for which, (end, other) in enumerate((self.ends, self.ends[::-1])):
            whole = [stream_id for stream_id in self.streams(which) if stream_id not in other.gone]
            for stream_id in whole:
                assert end.got[stream_id] == other.sent[stream_id]
                assert stream_id in end.peer_finished
            # Of a stream that one end abandoned, the other may have no credit left: it ends with the connection.
            half = [i for i in end.sent if i in other.gone and i not in end.gone]
            assert end.machine.statistics().streams <= len(half)
            end.machine.connection_lost()
            assert end.machine.statistics() == NOTHING


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def exchange(ends: tuple[Connection, Connection]) -> list[Event]:
    """Carry all messages over, until there are none; returns what the second end was told."""
    told: list[Event] = []
    while True:
        there, back = ends[0].take_messages(), ends[1].take_messages()
        if not there and not back:
            return told
        for message in there:
            told += ends[1].receive(message, 0)
        for message in back:
            ends[0].receive(message, 0)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 60), st.data())
def test_all_bytes_come_through_a_window_of_any_size(data: bytes, window: int, draw: st.DataObject) -> None:
    limits = Limits(window=window, max_payload=17)
    sender, receiver = Connection(Role.CLIENT, limits), Connection(Role.SERVER, limits)
    stream_id = sender.open(0)
    exchange((sender, receiver))
    receiver.accept(stream_id)
    exchange((sender, receiver))
    got, at, unread, finished = b"", 0, 0, False
    rounds = 0
    while not finished:
        rounds += 1
        assert rounds <= 3 * len(data) + 3, "it stands still"
        most = sender.sendable(stream_id)
        if at == len(data):
            sender.finish(stream_id)
        elif most:
            size = draw.draw(st.integers(1, most))
            sender.send(stream_id, data[at : at + size])
            at += len(data[at : at + size])
        for event in exchange((sender, receiver)):
            if isinstance(event, Data):
                got += event.data
                unread += len(event.data)
            finished = finished or isinstance(event, Finished)
        assert unread <= window
        count = unread if not most else draw.draw(st.integers(0, unread))
        receiver.consumed(stream_id, count)
        unread -= count
        exchange((sender, receiver))
    assert got == data


def test_nothing_grows_with_the_number_of_streams_that_have_been() -> None:
    server, client = Connection(Role.SERVER), Connection(Role.CLIENT)
    for _ in range(2000):
        stream_id = server.open(0)
        exchange((server, client))
        client.accept(stream_id)
        client.send(stream_id, b"hello")
        client.finish(stream_id)
        exchange((client, server))
        server.consumed(stream_id, 5)
        server.finish(stream_id)
        exchange((server, client))
    for end in (server, client):
        assert end.statistics() == NOTHING
        assert len(end.history()) == 32


# Fuzzing


def test_20_000_sequences_of_a_hostile_peer() -> None:
    happened = fuzz(range(20_000))
    assert happened["sequence"] == 20_000
    # All that can happen did, and often.
    kinds = ("dat", "syn", "ack", "fin", "ignored", "malformed", "call", "refused call", "ended")
    events = ("Offered", "Accepted", "Data", "CreditGained", "Finished", "Aborted")
    reasons = (reason.name for reason in Reason if reason is not Reason.CONNECTION_LOST)
    assert min(happened[what] for what in (*kinds, *events, *reasons)) > 200, happened


@pytest.mark.full
def test_1_000_000_sequences_of_a_hostile_peer() -> None:
    assert fuzz(range(1_000_000))["sequence"] == 1_000_000


class AcksTooMuch(Connection):
    def _put(self, frame: Frame) -> None:
        super()._put(Ack(frame.stream_id, frame.amount + 1) if isinstance(frame, Ack) else frame)


class TakesTooMuch(Connection):
    def _add(self, stream: Stream, now: float) -> None:
        super()._add(stream, now)
        stream.granted += 1


class SendsTwice(Connection):
    def _put(self, frame: Frame) -> None:
        super()._put(frame)
        self._outgoing.append(encode(frame))


class ForgetsToForget(Connection):
    def _forget(self, stream: Stream) -> None:
        self._deadlines.pop(stream.id, None)


@pytest.mark.parametrize("broken", [AcksTooMuch, TakesTooMuch, SendsTwice, ForgetsToForget])
def test_the_fuzzer_finds_machines_that_are_broken(broken: type[Connection]) -> None:
    with pytest.raises(AssertionError, match="seed"):
        fuzz(range(500), broken)
