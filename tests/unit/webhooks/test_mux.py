"""Trio streams over one websocket, in memory and virtual time."""

from __future__ import annotations

import struct
from contextlib import suppress
from hashlib import sha256
from random import Random

import pytest
import trio
from mux_world import ACK, DAT, FIN, MIB, SYN, WINDOW, open_client, open_muxes, open_raw, open_websockets
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed

from worker.webhooks.mux import Mux, MuxStream
from worker.webhooks.wsmux import Limits, LocalProtocolError, Role

SMALL = Limits(window=1000, max_payload=100, max_frame=2000)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def read_frame(stream: trio.abc.Stream) -> bytes:
    """The frame in a websocket message of a client's (RFC 6455, 5.2), unmasked."""
    head = await read_exactly(stream, 2)
    length = head[1] & 0x7F
    if length > 125:
        length = int.from_bytes(await read_exactly(stream, 2 if length == 126 else 8))
    mask = await read_exactly(stream, 4)
    masked = await read_exactly(stream, length)
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))


async def read_exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more
        data += more
    return data


# Streams


async def test_bytes_go_both_ways_at_once_on_many_streams() -> None:
    async def echo(stream: MuxStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async def ask(mux: Mux, seed: int) -> None:
        sent = Random(seed).randbytes(seed * 40_000)
        async with await mux.open() as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(sent)
                await stream.send_eof()

            nursery.start_soon(send)
            assert sha256(await read_all(stream)).digest() == sha256(sent).digest()

    async with open_muxes() as (mux, streams), trio.open_nursery() as nursery:
        for seed in range(30):
            nursery.start_soon(ask, mux, seed)
        for _ in range(30):
            nursery.start_soon(echo, await streams.receive())


@pytest.mark.parametrize("opener_first", [True, False])
async def test_each_end_finishes_on_its_own(opener_first: bool) -> None:
    async with open_muxes() as (mux, streams):
        one = await mux.open()
        other = await streams.receive()
        first, second = (one, other) if opener_first else (other, one)
        await first.send_all(b"question")
        await first.send_eof()
        assert await read_all(second) == b"question"
        assert await second.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await first.send_all(b"more")
        await second.send_all(b"answer")
        await second.send_eof()
        await first.send_eof()  # once more is nothing
        assert await read_all(first) == b"answer"


async def test_what_was_sent_before_closing_arrives() -> None:
    async with open_muxes() as (mux, streams):
        one = await mux.open()
        other = await streams.receive()
        await one.send_all(b"last words")
        await one.aclose()
        assert await other.receive_some(4) == b"last"
        assert await read_all(other) == b" words"
        for use in (one.receive_some, one.send_eof, lambda: one.send_all(b"x"), one.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await use()
        await one.aclose()


async def test_closing_wakes_those_who_wait() -> None:
    async with open_muxes(client_limits=SMALL, server_limits=SMALL) as (mux, streams):
        stream = await mux.open()
        await streams.receive()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(bytes(10_000))

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await stream.aclose()


async def test_a_stream_has_one_sender_and_one_receiver_at_a_time() -> None:
    async with open_muxes(client_limits=SMALL, server_limits=SMALL) as (mux, streams):
        stream = await mux.open()
        await streams.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(10_000))
            nursery.start_soon(stream.receive_some)
            await wait_all_tasks_blocked()
            for use in (stream.receive_some, lambda: stream.send_all(b"x"), stream.send_eof):
                with pytest.raises(trio.BusyResourceError):
                    await use()
            nursery.cancel_scope.cancel()


async def test_who_does_not_read_holds_up_nobody_else() -> None:
    async with open_muxes() as (mux, streams), trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon((await mux.open()).send_all, bytes(2 * WINDOW))
            await streams.receive()
        await wait_all_tasks_blocked()
        lively = await mux.open()
        answering = await streams.receive()
        nursery.start_soon(lively.send_all, bytes(3 * WINDOW))
        got = 0
        while got < 3 * WINDOW:
            got += len(await answering.receive_some())
        nursery.cancel_scope.cancel()


async def test_senders_take_turns_however_many_they_are() -> None:
    async with open_client() as (peer, streams), trio.open_nursery() as nursery:
        for stream_id in range(0, 200, 2):
            await peer.open(stream_id)
        for stream in [await streams.receive() for _ in range(100)]:
            nursery.start_soon(stream.send_all, bytes(WINDOW))
        while not min(map(len, peer.data.values())):
            await peer.receive()
        assert max(map(len, peer.data.values())) <= 2 * 65536
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by", ["cancelled", "closed"])
async def test_a_sender_that_gives_up_its_turn_holds_up_nobody(by: str) -> None:
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        offered, streams = trio.open_memory_channel[MuxStream](3)
        nursery.start_soon(Mux(client, Role.CLIENT).run, offered.send_nowait)
        for stream_id in (0, 2, 4):
            await far.send_all(bytes([0x82, 5, SYN, stream_id, 0, 0, 0]))
        full, waiting, last = [await streams.receive() for _ in range(3)]
        nursery.start_soon(full.send_all, bytes(WINDOW))
        await wait_all_tasks_blocked()

        async def give_up(scope: trio.CancelScope) -> None:
            with scope, suppress(trio.ClosedResourceError):
                await waiting.send_all(b"x")

        scope = trio.CancelScope()
        nursery.start_soon(give_up, scope)
        await wait_all_tasks_blocked()
        nursery.start_soon(read_all, far)
        await waiting.aclose() if by == "closed" else scope.cancel()
        await last.send_all(b"x")
        nursery.cancel_scope.cancel()


async def test_whatever_is_new_waits_behind_little() -> None:
    """A viewer who asks while another one downloads must not wait for megabytes, on a slow link."""
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        offered, streams = trio.open_memory_channel[MuxStream](1)
        nursery.start_soon(Mux(client, Role.CLIENT).run, offered.send_nowait)
        await far.send_all(bytes([0x82, 5, SYN, 0, 0, 0, 0]))
        nursery.start_soon((await streams.receive()).send_all, bytes(WINDOW))
        await wait_all_tasks_blocked()
        await far.send_all(bytes([0x82, 5, SYN, 2, 0, 0, 0]))
        nursery.start_soon((await streams.receive()).send_all, b"line")
        await wait_all_tasks_blocked()
        before = 0
        while len(frame := await read_frame(far)) > 9 or frame[:2] != bytes([DAT, 2]):
            before += len(frame)
        assert before < 4 * 65536
        nursery.cancel_scope.cancel()


async def test_a_sender_waits_until_something_can_be_sent() -> None:
    async with open_muxes(client_limits=SMALL, server_limits=SMALL) as (mux, streams):
        stream = await mux.open()
        other = await streams.receive()
        await stream.wait_send_all_might_not_block()
        await stream.send_all(bytes(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_send_all_might_not_block)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            await other.receive_some(500)


async def test_an_id_that_comes_again_is_another_stream() -> None:
    async with open_client() as (peer, streams):
        await peer.open(0)
        first = await streams.receive()
        await peer.send(FIN, 0)
        await first.send_eof()
        await peer.receive()
        assert await first.receive_some() == b""
        peer.finished.clear()
        del peer.credit[0]
        await peer.open(0)
        second = await streams.receive()
        await first.aclose()
        await peer.send(DAT, 0, b"hello")
        assert await second.receive_some() == b"hello"


async def test_a_stream_that_nobody_accepts_is_given_up(autojump_clock: MockClock) -> None:
    async with open_websockets() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.get_message)  # it takes the SYN and says nothing
        mux = Mux(server, Role.SERVER)
        nursery.start_soon(mux.run, MuxStream.abandon)
        with pytest.raises(trio.BrokenResourceError, match="not accepted in time"):
            await mux.open()
        assert trio.current_time() == 30
        nursery.cancel_scope.cancel()


async def test_no_more_streams_are_opened_than_allowed() -> None:
    async with open_muxes(server_limits=Limits(max_streams=1)) as (mux, _):
        await mux.open()
        with pytest.raises(LocalProtocolError, match="as many streams"):
            await mux.open()


# The account, kept by a peer of its own


async def test_the_window_is_4_mib_both_ways_and_what_was_consumed_is_acknowledged() -> None:
    async with open_client() as (peer, streams):
        await peer.open(0)
        assert peer.acks == [(0, WINDOW)]
        stream = await streams.receive()
        sent = 0
        while peer.credit[0]:
            await peer.send(DAT, 0, bytes(256 * 1024))
            sent += 256 * 1024
        assert sent == WINDOW
        await wait_all_tasks_blocked()
        assert len(peer.acks) == 1  # nothing was consumed
        consumed = 0
        while consumed < WINDOW:
            consumed += len(await stream.receive_some(100_000))
        for _ in range(3):
            await peer.receive()
        # As often as a quarter of the window was consumed, and not for less.
        assert peer.acks[1:] == [(0, 1_100_000)] * 3
        assert peer.credit == {0: 3_300_000}


async def test_no_more_is_sent_than_the_peer_allows() -> None:
    rng = Random(1)
    sent = rng.randbytes(3 * WINDOW)
    async with open_client() as (peer, streams), trio.open_nursery() as nursery:
        await peer.open(0)
        stream = await streams.receive()

        async def send() -> None:
            await stream.send_all(sent)
            await stream.aclose()

        nursery.start_soon(send)
        while 0 not in peer.finished:
            if not peer.granted[0]:
                await wait_all_tasks_blocked()
                await peer.send(ACK, 0, struct.pack("<I", rng.choice((1, 1000, MIB, WINDOW))))
            await peer.receive()  # which refuses what exceeds the credit
        assert peer.data[0] == sent


async def test_a_viewer_that_reads_nothing_gets_its_window_and_no_more() -> None:
    async with open_client() as (peer, streams), trio.open_nursery() as nursery:
        for stream_id in (0, 2):
            await peer.open(stream_id)
            nursery.start_soon((await streams.receive()).send_all, bytes(2 * WINDOW))
        while len(peer.data[0]) < WINDOW or len(peer.data[2]) < WINDOW:
            await peer.receive()
        await peer.send(ACK, 2, struct.pack("<I", WINDOW))
        while len(peer.data[2]) < 2 * WINDOW:
            await peer.receive()
        assert len(peer.data[0]) == WINDOW
        nursery.cancel_scope.cancel()


async def test_a_late_frame_is_ignored() -> None:
    async with open_client() as (peer, streams):
        await peer.open(0)
        await (await streams.receive()).aclose()
        await peer.receive()
        assert 0 in peer.finished
        await peer.send(DAT, 0, b"late")
        await peer.send(ACK, 0, struct.pack("<I", 1))
        await peer.send(FIN, 0)
        await peer.open(2)


# The end

FOREIGN = bytes([0x82, 5, FIN, 1, 0, 0, 0])  # the FIN of a stream that is not known, in an unmasked websocket frame


async def test_a_peer_that_is_silent_is_given_up(autojump_clock: MockClock) -> None:
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        nursery.start_soon(read_all, far)
        assert await Mux(client, Role.CLIENT).run(MuxStream.abandon) == "nothing was heard for 40 s"
        assert trio.current_time() == 40
        nursery.cancel_scope.cancel()


async def test_a_peer_that_answers_pings_is_kept(autojump_clock: MockClock) -> None:
    async with open_client() as (peer, _):
        with trio.move_on_after(3600):
            await peer.over.wait()
        assert not peer.over.is_set()


async def test_a_peer_that_sends_is_kept_though_its_pong_is_late(autojump_clock: MockClock) -> None:
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        nursery.start_soon(read_all, far)
        nursery.start_soon(Mux(client, Role.CLIENT).run, MuxStream.abandon)
        for _ in range(10):
            await trio.sleep(30)
            await far.send_all(FOREIGN)
        assert nursery.child_tasks
        nursery.cancel_scope.cancel()


async def test_a_peer_that_takes_nothing_is_given_up_though_it_sends(autojump_clock: MockClock) -> None:
    offered, streams = trio.open_memory_channel[MuxStream](1)

    async def talk() -> None:
        while True:
            await trio.sleep(10)
            await far.send_all(FOREIGN)

    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await far.send_all(bytes([0x82, 5, SYN, 0, 0, 0, 0]))  # what this makes us answer is not read
        assert await Mux(client, Role.CLIENT).run(offered.send_nowait) == "nothing was taken for 40 s"
        with pytest.raises(trio.BrokenResourceError, match="connection was lost"):
            await (await streams.receive()).send_all(b"x")
        nursery.cancel_scope.cancel()


async def test_what_a_peer_makes_us_answer_does_not_pile_up(autojump_clock: MockClock) -> None:
    """It opens and closes streams without end, and takes none of the answers."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for stream_id in range(0, 2_000_000, 2):
            await far.send_all(bytes([0x82, 5, SYN]) + struct.pack("<I", stream_id))
            sent += 1

    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        reason = await Mux(client, Role.CLIENT, Limits(max_outgoing=1000)).run(MuxStream.abandon)
        assert reason in {"nothing was heard for 40 s", "nothing was taken for 40 s"}
        assert sent < 20_000
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\x00",
        b"\x04\x00\x00\x00\x00",
        struct.pack("<BI", SYN, 1),
        struct.pack("<BI", ACK, 0),
        b"\x01\0\0\0\0x",
    ],
)
async def test_a_malformed_frame_closes_with_1008(frame: bytes) -> None:
    async with open_client() as (peer, streams):
        await peer.open(0)
        await peer.websocket.send_message(frame)
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        assert closed.value.reason
        assert closed.value.reason.code == 1008
        await peer.over.wait()
        assert peer.ended.startswith("the other end broke the protocol")
        with pytest.raises(trio.BrokenResourceError):
            await (await streams.receive()).receive_some()


async def test_a_text_message_is_malformed_as_well() -> None:
    async with open_client() as (peer, _):
        await peer.websocket.send_message("text")
        await peer.over.wait()
        assert "text message" in peer.ended


async def test_when_the_websocket_ends_all_streams_break() -> None:
    async with open_client() as (peer, streams):
        await peer.open(0)
        stream = await streams.receive()

        async def expect_break() -> None:
            with pytest.raises(trio.BrokenResourceError, match="connection was lost"):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_break)
            await wait_all_tasks_blocked()
            await peer.websocket.aclose(1001)
        await peer.over.wait()
        assert peer.ended == "it was closed with code 1001"


async def test_cancelled_it_first_sends_what_was_passed_to_it(autojump_clock: MockClock) -> None:
    said = 65_536
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        offered, streams = trio.open_memory_channel[MuxStream](1)
        running = await nursery.start(cancellable, Mux(client, Role.CLIENT), offered)
        await far.send_all(bytes([0x82, 5, SYN, 0, 0, 0, 0]))
        await (await streams.receive()).send_all(bytes(said))
        await wait_all_tasks_blocked()
        running.cancel()
        await wait_all_tasks_blocked()
        while said:
            frame = await read_frame(far)
            if frame[0] == DAT:
                said -= len(frame) - 5


async def cancellable(
    mux: Mux, offered: trio.MemorySendChannel[MuxStream], task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await mux.run(offered.send_nowait)


async def test_cancelled_it_ends_within_half_a_second_though_everything_is_stuck(autojump_clock: MockClock) -> None:
    offered, streams = trio.open_memory_channel[MuxStream](1)
    async with open_raw() as (client, far), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as running:
                running.start_soon(Mux(client, Role.CLIENT).run, offered.send_nowait)
                await far.send_all(bytes([0x82, 5, SYN, 0, 0, 0, 0]))
                running.start_soon((await streams.receive()).send_all, bytes(9 * MIB))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert trio.current_time() == 0.5
        nursery.cancel_scope.cancel()


async def test_a_broken_connection_is_noticed_though_the_reader_waits_for_room(autojump_clock: MockClock) -> None:
    async def flood() -> None:
        with suppress(trio.BrokenResourceError):
            for stream_id in range(0, 2_000_000, 2):
                await far.send_all(bytes([0x82, 5, SYN]) + struct.pack("<I", stream_id))

    async with open_raw() as (client, far), trio.open_nursery() as nursery:

        async def run() -> None:
            assert await Mux(client, Role.CLIENT).run(MuxStream.abandon) == "it was closed with code 1006"
            assert trio.current_time() == 0
            nursery.cancel_scope.cancel()

        nursery.start_soon(flood)
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await far.receive_stream.aclose()
