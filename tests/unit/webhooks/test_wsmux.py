"""Each rule of the multiplexing protocol (taskcluster websocktunnel, wsmux), without a socket."""

from __future__ import annotations

import ast
from math import inf
from pathlib import Path

import pytest

from worker.webhooks import wsmux
from worker.webhooks.wsmux import (
    CLOSE_CODE,
    Aborted,
    Accepted,
    Connection,
    CreditGained,
    Data,
    Event,
    Finished,
    Limits,
    LocalProtocolError,
    Offered,
    ProtocolError,
    Reason,
    Role,
    Statistics,
)

MIB = 1024 * 1024
NOTHING = Statistics(0, 0, 0, 0)


def dat(stream_id: int, data: bytes) -> bytes:
    return b"\x00" + stream_id.to_bytes(4, "little") + data


def syn(stream_id: int) -> bytes:
    return b"\x01" + stream_id.to_bytes(4, "little")


def ack(stream_id: int, amount: int) -> bytes:
    return b"\x02" + stream_id.to_bytes(4, "little") + amount.to_bytes(4, "little")


def fin(stream_id: int) -> bytes:
    return b"\x03" + stream_id.to_bytes(4, "little")


def worker(**limits: float) -> Connection:
    return Connection(Role.CLIENT, Limits(**limits))  # type: ignore[arg-type]  # all are numbers


def with_stream(**limits: float) -> Connection:
    """A worker whose peer has opened stream 0, which is accepted."""
    connection = worker(**limits)
    assert connection.receive(syn(0), 0) == [Offered(0)]
    connection.accept(0)
    connection.take_messages()
    return connection


def refuses(connection: Connection, message: bytes | str, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        connection.receive(message, 0)


# Frames


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "less than its header"),
        (b"\x00\x00\x00\x00", "less than its header"),
        (b"\x04\x00\x00\x00\x00", "unknown type 4"),
        (syn(2) + b"x", "1 bytes of payload, not 0"),
        (fin(0) + b"x", "1 bytes of payload, not 0"),
        (ack(0, 1)[:-1], "3 bytes of payload, not 4"),
        (ack(0, 1) + b"x", "5 bytes of payload, not 4"),
        (dat(0, bytes(96)), "101 bytes, where 100 are the limit"),
        ("text", "text message"),
    ],
)
def test_a_malformed_frame_ends_the_connection(message: bytes | str, words: str) -> None:
    connection = with_stream(max_frame=100)
    refuses(connection, message, words)
    assert CLOSE_CODE == 1008
    assert connection.connection_lost() == [Aborted(0, Reason.CONNECTION_LOST)]
    with pytest.raises(LocalProtocolError, match="over"):
        connection.receive(fin(0), 0)


def test_the_frames_are_those_of_the_wire() -> None:
    server = Connection(Role.SERVER)
    server.open(0)
    server.receive(ack(0, 100), 0)
    server.send(0, b"GET /")
    server.finish(0)
    server.receive(dat(0, bytes(2 * MIB)), 0)
    server.consumed(0, 2 * MIB)
    assert server.take_messages() == [
        bytes([1, 0, 0, 0, 0]),
        bytes([0, 0, 0, 0, 0]) + b"GET /",
        bytes([3, 0, 0, 0, 0]),
        bytes([2, 0, 0, 0, 0, 0, 0, 0x20, 0]),
    ]


def test_the_largest_frame_that_there_is_credit_for_is_taken() -> None:
    assert with_stream().receive(dat(0, bytes(4 * MIB)), 0) == [Data(0, bytes(4 * MIB))]


# Opening and accepting


@pytest.mark.parametrize(("role", "ids"), [(Role.SERVER, [0, 2, 4]), (Role.CLIENT, [1, 3, 5])])
def test_the_server_opens_even_ids_and_the_client_odd_ones(role: Role, ids: list[int]) -> None:
    connection = Connection(role)
    assert [connection.open(0) for _ in ids] == ids
    assert connection.take_messages() == [syn(stream_id) for stream_id in ids]


def test_ids_begin_anew_after_the_last_and_pass_over_those_in_use() -> None:
    connection = Connection(Role.SERVER)
    connection._next_id = 2**32 - 2
    assert connection.open(0) == 2**32 - 2
    assert connection.open(0) == 0
    connection._next_id = 2**32 - 2
    assert connection.open(0) == 2


def test_accepting_grants_the_window_and_gives_as_much_credit() -> None:
    connection = worker()
    connection.receive(syn(0), 0)
    assert connection.sendable(0) == 0
    connection.accept(0)
    assert connection.take_messages() == [ack(0, 4 * MIB)]
    sent = 0
    while size := connection.sendable(0):
        connection.send(0, bytes(size))
        connection.take_messages()
        sent += size
        assert sent <= 4 * MIB
    assert sent == 4 * MIB


def test_the_opener_sends_nothing_before_the_ack_and_as_much_as_it_says_afterwards() -> None:
    connection = Connection(Role.SERVER)
    stream_id = connection.open(0)
    assert connection.sendable(stream_id) == 0
    with pytest.raises(LocalProtocolError, match="DAT on stream 0, which is OPENING"):
        connection.send(stream_id, b"x")
    with pytest.raises(LocalProtocolError, match="cannot be finished"):
        connection.finish(stream_id)
    assert connection.receive(ack(stream_id, 7), 0) == [Accepted(stream_id)]
    assert connection.sendable(stream_id) == 7


def test_what_the_peer_does_not_accept_within_30_s_is_withdrawn() -> None:
    connection = Connection(Role.SERVER)
    assert connection.deadline() == inf
    connection.open(100)
    connection.open(101)
    assert connection.deadline() == 130
    assert connection.expire(129) == []
    connection.take_messages()
    assert connection.expire(130) == [Aborted(0, Reason.NOT_ACCEPTED)]
    assert connection.take_messages() == [fin(0)]
    assert connection.deadline() == 131
    assert connection.receive(ack(2, 1), 131) == [Accepted(2)]
    assert connection.deadline() == inf
    assert connection.receive(ack(0, 1), 131) == []  # it was on its way


def test_what_the_application_does_not_accept_within_30_s_is_refused() -> None:
    connection = worker()
    connection.receive(syn(0), 100)
    assert connection.deadline() == 130
    assert connection.expire(130) == [Aborted(0, Reason.NOT_ACCEPTED)]
    assert connection.take_messages() == [ack(0, 4 * MIB), fin(0)]
    with pytest.raises(LocalProtocolError, match="stream 0 is gone"):
        connection.accept(0)


def test_a_fin_before_the_ack_withdraws_or_refuses() -> None:
    connection = worker()
    connection.receive(syn(0), 0)
    assert connection.receive(fin(0), 0) == [Aborted(0, Reason.WITHDRAWN)]
    connection.open(0)
    assert connection.receive(fin(1), 0) == [Aborted(1, Reason.REFUSED)]
    assert connection.deadline() == inf


@pytest.mark.parametrize("message", [dat(0, b"x"), ack(0, 1)])
def test_nothing_else_may_come_before_the_ack(message: bytes) -> None:
    connection = worker()
    connection.receive(syn(0), 0)
    refuses(connection, message, "which is OFFERED")
    connection = Connection(Role.SERVER)
    connection.open(0)
    refuses(connection, dat(0, b"x"), "DAT on stream 0, which is OPENING")


def test_the_peer_opens_no_id_of_ours_and_none_twice() -> None:
    refuses(worker(), syn(1), "an id of ours")
    refuses(with_stream(), syn(0), "SYN of stream 0, which is OPEN")


def test_of_unaccepted_streams_200_are_kept_and_the_next_is_refused() -> None:
    connection = worker()
    for number in range(200):
        assert connection.receive(syn(2 * number), 0) == [Offered(2 * number)]
    assert connection.receive(syn(400), 0) == [Aborted(400, Reason.TOO_MANY)]
    assert connection.take_messages() == [ack(400, 4 * MIB), fin(400)]
    assert connection.open(0) == 1  # the peer's do not count for ours
    connection.accept(0)
    assert connection.receive(syn(402), 0) == [Offered(402)]


def test_no_more_than_200_are_opened_before_they_are_accepted() -> None:
    connection = Connection(Role.SERVER)
    for _ in range(200):
        connection.open(0)
    with pytest.raises(LocalProtocolError, match="as many"):
        connection.open(0)
    connection.receive(ack(0, 1), 0)
    connection.open(0)


def test_the_number_of_streams_is_limited_whoever_opened_them() -> None:
    connection = with_stream(max_streams=2)
    connection.open(0)
    assert connection.receive(syn(2), 0) == [Aborted(2, Reason.TOO_MANY)]
    with pytest.raises(LocalProtocolError, match="as many"):
        connection.open(0)
    connection.abandon(0)
    assert connection.receive(syn(2), 0) == [Offered(2)]


# Credit


def test_no_more_than_the_credit_is_sent_and_an_ack_adds_to_it() -> None:
    connection = with_stream(window=10)
    connection.send(0, b"123456")
    assert connection.sendable(0) == 4
    with pytest.raises(LocalProtocolError, match="5 bytes on stream 0, where 4 are sendable"):
        connection.send(0, b"12345")
    connection.send(0, b"1234")
    assert connection.sendable(0) == 0
    assert connection.receive(ack(0, 3), 0) == [CreditGained(0)]
    assert connection.sendable(0) == 3


def test_the_peer_may_not_exceed_its_credit() -> None:
    connection = with_stream(window=10)
    connection.receive(dat(0, b"123456"), 0)
    refuses(connection, dat(0, b"12345"), "5 bytes on stream 0, with credit for 4")


def test_what_was_received_is_acknowledged_when_it_was_consumed_and_not_before() -> None:
    connection = with_stream(window=100)
    connection.receive(dat(0, bytes(100)), 0)
    assert connection.take_messages() == []
    connection.consumed(0, 24)
    assert connection.take_messages() == []  # less than a quarter waits
    connection.consumed(0, 1)
    assert connection.take_messages() == [ack(0, 25)]
    connection.consumed(0, 75)
    assert connection.take_messages() == [ack(0, 75)]
    assert connection.receive(dat(0, bytes(100)), 0) == [Data(0, bytes(100))]


def test_a_peer_without_credit_gets_some_as_soon_as_nothing_is_unread() -> None:
    connection = with_stream(window=1)
    for _ in range(3):
        connection.receive(dat(0, b"x"), 0)
        connection.consumed(0, 1)
        assert connection.take_messages() == [ack(0, 1)]


def test_no_more_can_be_consumed_than_was_received() -> None:
    connection = with_stream()
    connection.receive(dat(0, b"xx"), 0)
    for count in (3, -1):
        with pytest.raises(LocalProtocolError, match="2 unread"):
            connection.consumed(0, count)


def test_credit_is_a_number_of_32_bits() -> None:
    connection = with_stream(window=10)
    connection.receive(ack(0, 2**32 - 1 - 10), 0)
    refuses(connection, ack(0, 1), "a credit above")


def test_empty_frames_change_nothing() -> None:
    connection = with_stream()
    before = connection.statistics()
    assert connection.receive(dat(0, b""), 0) == []
    assert connection.statistics() == before


# Limits on bytes


def test_a_frame_of_ours_is_no_larger_than_the_limit_so_that_streams_take_turns() -> None:
    assert with_stream().sendable(0) == 64 * 1024


def test_what_waits_to_be_sent_is_limited_until_it_is_taken() -> None:
    connection = with_stream(max_outgoing=100)
    connection.send(0, bytes(90))
    assert connection.sendable(0) == 5  # the frame's header counts
    connection.send(0, bytes(5))
    assert connection.sendable(0) == 0
    connection.take_messages()
    assert connection.sendable(0) == 100


def test_past_the_limit_of_unread_bytes_the_stream_that_holds_most_gives_way() -> None:
    connection = with_stream(window=100, max_unread=150)
    connection.receive(syn(2), 0)
    connection.accept(2)
    connection.take_messages()
    connection.receive(dat(0, bytes(90)), 0)
    connection.receive(dat(2, bytes(60)), 0)
    assert connection.receive(dat(2, b"x"), 0) == [Aborted(0, Reason.UNREAD), Data(2, b"x")]
    assert connection.take_messages() == [fin(0)]
    assert connection.statistics().unread == 61
    assert connection.receive(dat(0, b"on its way"), 0) == []
    connection.consumed(0, 90)  # the application has not seen yet that it is gone


def test_past_that_limit_the_stream_itself_gives_way_where_it_holds_most() -> None:
    connection = with_stream(window=100, max_unread=50)
    assert connection.receive(dat(0, bytes(51)), 0) == [Aborted(0, Reason.UNREAD)]
    assert connection.statistics() == Statistics(0, 0, 0, len(fin(0)))


# Ending


def test_a_fin_closes_one_direction() -> None:
    connection = with_stream()
    assert connection.receive(fin(0), 0) == [Finished(0)]
    connection.send(0, b"answer")
    connection.finish(0)
    assert connection.take_messages() == [dat(0, b"answer"), fin(0)]
    assert connection.statistics() == NOTHING


def test_and_so_does_ours() -> None:
    connection = with_stream()
    connection.finish(0)
    assert connection.sendable(0) == 0
    with pytest.raises(LocalProtocolError, match="DAT on stream 0, which is SENT_FIN"):
        connection.send(0, b"x")
    with pytest.raises(LocalProtocolError, match="FIN on stream 0, which is SENT_FIN"):
        connection.finish(0)
    assert connection.receive(dat(0, bytes(4 * MIB)), 0) == [Data(0, bytes(4 * MIB))]
    connection.consumed(0, 4 * MIB)
    assert connection.take_messages() == [fin(0), ack(0, 4 * MIB)]
    assert connection.receive(fin(0), 0) == [Finished(0)]
    assert connection.statistics() == NOTHING


@pytest.mark.parametrize("message", [dat(0, b"x"), fin(0)])
def test_after_its_fin_the_peer_sends_no_more(message: bytes) -> None:
    connection = with_stream()
    connection.receive(fin(0), 0)
    refuses(connection, message, "on stream 0, which is GOT_FIN")


def test_after_its_fin_the_peer_is_told_no_more_of_what_was_consumed() -> None:
    connection = with_stream(window=10)
    connection.receive(dat(0, bytes(10)), 0)
    connection.receive(fin(0), 0)
    connection.consumed(0, 10)
    assert connection.take_messages() == []
    assert connection.receive(ack(0, 1), 0) == [CreditGained(0)]
    refuses(connection, dat(0, b"x"), "which is GOT_FIN")


def test_a_stream_that_has_ended_is_kept_until_it_is_read_and_acknowledges_nothing() -> None:
    connection = with_stream(window=10)
    connection.receive(dat(0, bytes(10)), 0)
    connection.receive(fin(0), 0)
    connection.finish(0)
    connection.take_messages()
    assert connection.receive(ack(0, 1), 0) == [CreditGained(0)]  # the peer's application reads on
    assert connection.sendable(0) == 0
    refuses(with_ended_unread(), syn(0), "which is ENDED")
    connection.consumed(0, 9)
    assert connection.statistics().streams == 1
    connection.consumed(0, 1)
    assert connection.take_messages() == []
    assert connection.statistics() == NOTHING


def with_ended_unread() -> Connection:
    connection = with_stream()
    connection.receive(dat(0, b"x"), 0)
    connection.receive(fin(0), 0)
    connection.finish(0)
    return connection


@pytest.mark.parametrize("message", [dat(8, b"x"), ack(8, 1), fin(8), ack(9, 1)])
def test_frames_of_streams_that_are_gone_are_ignored(message: bytes) -> None:
    connection = worker()
    assert connection.receive(message, 0) == []
    assert connection.statistics() == NOTHING


def test_an_abandoned_stream_is_finished_whatever_its_state_and_leaves_nothing() -> None:
    offered, opening, finished = worker(), worker(), with_stream()
    offered.receive(syn(0), 0)
    offered.abandon(0)
    assert offered.take_messages() == [ack(0, 4 * MIB), fin(0)]
    opening.abandon(opening.open(0))
    assert opening.take_messages() == [syn(1), fin(1)]
    finished.receive(dat(0, b"unread"), 0)
    finished.finish(0)
    finished.abandon(0)
    finished.abandon(0)
    assert finished.take_messages() == [fin(0)]
    for connection in (offered, opening, finished):
        assert connection.statistics() == NOTHING
        assert connection.deadline() == inf


def test_when_the_connection_is_lost_all_streams_are_but_those_that_had_ended() -> None:
    connection = with_ended_unread()
    connection.receive(syn(2), 0)
    connection.receive(syn(4), 0)
    connection.accept(4)
    connection.receive(fin(4), 0)
    connection.open(0)
    lost: list[Event] = [Aborted(stream_id, Reason.CONNECTION_LOST) for stream_id in (2, 4, 1)]
    assert connection.connection_lost() == lost
    assert connection.connection_lost() == []
    assert connection.take_messages() == []
    assert connection.statistics() == NOTHING
    assert connection.deadline() == inf
    assert connection.expire(1000) == []
    connection.consumed(0, 1)
    connection.abandon(4)
    for late in (lambda: connection.open(0), lambda: connection.send(4, b"x"), lambda: connection.receive(fin(4), 0)):
        with pytest.raises(LocalProtocolError):
            late()


def test_the_history_tells_the_last_frames_without_their_bytes() -> None:
    connection = with_stream(window=10)
    connection.receive(dat(0, b"secret"), 0)
    connection.finish(0)
    refuses(connection, b"\x09", "less than its header")
    assert connection.history() == [
        "< SYN 0",
        "> ACK 0: 10",
        "< DAT 0, 6 bytes",
        "> FIN 0",
        "< malformed, 1 bytes",
    ]


def test_there_is_no_io_in_it() -> None:
    imported = set()
    for path in Path(wsmux.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    ours = {name for name in imported if name.startswith("worker.webhooks.wsmux.")}
    assert imported - ours == {
        "__future__", "collections", "collections.abc", "dataclasses", "enum", "math", "struct", "typing",
    }  # fmt: skip
