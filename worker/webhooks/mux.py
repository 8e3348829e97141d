"""Trio streams over one websocket: the shell around `wsmux.Connection`, for either end of it.

One task reads the websocket, one writes it, one sends pings; the users of streams only change the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import TracebackType
from typing import Final

import trio
from trio.lowlevel import ParkingLot
from trio_websocket import ConnectionClosed, WebSocketConnection

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
    Offered,
    ProtocolError,
    Role,
)

PING_INTERVAL: Final = 20.0  # seconds (facts page, 5)
CLOSE_LIMIT: Final = 0.5  # seconds for what is left to be said at the end

# Bytes of ACKs and FINs that may wait beside the data. A peer that keeps to the protocol does not get that far: each of
# 1000 streams has at most half a dozen of them on their way.
MAX_CONTROL: Final = 128 * 1024


class Mux:
    """One end of a multiplexed websocket. Nothing happens unless `run` runs.

    What it holds is bounded by `limits`; what goes beyond ends single streams. A peer that is silent for two ping
    intervals, or takes nothing for as long, is given up.
    """

    def __init__(
        self,
        websocket: WebSocketConnection,
        role: Role,
        limits: Limits | None = None,
        ping_interval: float = PING_INTERVAL,
    ) -> None:
        self._websocket = websocket
        self._machine = Connection(role, limits)
        self._streams: dict[int, MuxStream] = {}
        self._ping_interval = ping_interval
        self._patience = 2 * ping_interval
        self._offered: Callable[[MuxStream], None] = MuxStream.abandon
        self._work = ParkingLot()  # for the writer
        self.room = ParkingLot()  # for the reader and for whose turn it is, while too much waits for the writer
        self.turn = trio.StrictFIFOLock()  # to send a frame
        # They end it: the one's deadline moves whenever something is heard, the other has one while it is written.
        self._hearing = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._message = trio.CancelScope()  # what is being written, which ends at `_end` at the latest
        self._end = inf

    async def run(self, offered: Callable[[MuxStream], None]) -> str:
        """Serve until the websocket ends; returns why it did. Then, also when cancelled, all streams are broken.

        `offered` gets each stream that the peer opens, accepted already. It must neither block nor raise. The websocket
        is left for the caller to close. Cancelled, it sends what streams have passed to it, for half a second at most.
        """
        self._offered = offered
        reason = f"nothing was heard for {self._patience:g} s"
        try:
            with self._hearing, self._writing:
                self._hear()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._ping)
                    given_up = True
                    try:
                        reason = await self._read()
                    except trio.Cancelled:
                        given_up = self._hearing.cancel_called or self._writing.cancel_called
                        raise
                    finally:
                        self._end = trio.current_time() + (0 if given_up else CLOSE_LIMIT)
                        self._message.deadline = self._end
                        nursery.cancel_scope.cancel()
        finally:
            self._tell(self._machine.connection_lost())
        return f"nothing was taken for {self._patience:g} s" if self._writing.cancelled_caught else reason

    async def open(self) -> MuxStream:
        """A new stream, once the peer has accepted it.

        Raises BrokenResourceError where it does not, or not in time, and LocalProtocolError where too many are open.
        """
        stream = MuxStream(self, self._machine.open(trio.current_time()), accepted=False)
        self._streams[stream.id] = stream
        self._work.unpark_all()
        try:
            while not stream.accepted:
                with trio.move_on_at(self._machine.deadline()):
                    await stream.sender.park()
                self._tell(self._machine.expire(trio.current_time()))
                stream.check_usable()
        except BaseException:
            stream.abandon()
            raise
        return stream

    async def _read(self) -> str:
        most = self._machine.limits.max_outgoing + MAX_CONTROL
        while True:
            while self._machine.statistics().outgoing > most:
                await self.room.park()
            try:
                message = await self._websocket.get_message()
                self._hear()
                self._tell(self._machine.receive(message, trio.current_time()))
            except ConnectionClosed as closed:
                return f"it was closed with code {closed.reason.code}" if closed.reason else "it was closed"
            except ProtocolError as error:
                with trio.move_on_after(CLOSE_LIMIT):
                    await self._websocket.aclose(CLOSE_CODE, "malformed frame")
                return f"the other end broke the protocol: {error}"

    async def _write(self) -> None:
        while True:
            messages = self._machine.take_messages()
            if not messages:
                await self._work.park()
                continue
            self.room.unpark_all()
            for message in messages:
                self._writing.deadline = trio.current_time() + self._patience
                # Shielded, as after one that was cut off nothing could be said any more. Where the websocket is closed,
                # the reader hears of it, and must not wait for room until then.
                with (
                    suppress(ConnectionClosed),
                    trio.CancelScope(deadline=self._end, shield=True) as self._message,
                ):
                    await self._websocket.send_message(message)
                self._writing.deadline = inf

    async def _ping(self) -> None:
        while True:
            await trio.sleep(self._ping_interval)
            try:
                await self._websocket.ping()
            except ConnectionClosed:
                return  # as above
            self._hear()

    def _hear(self) -> None:
        self._hearing.deadline = trio.current_time() + self._patience

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.stream_id)
            match event:
                case Offered(stream_id):
                    # An id may come again: it may still be that of a stream which has ended.
                    stream = self._streams[stream_id] = MuxStream(self, stream_id)
                    self._machine.accept(stream_id)
                    self._offered(stream)
                case Aborted(stream_id, reason) if stream:
                    del self._streams[stream_id]
                    stream.abort(reason)
                case Accepted() | CreditGained() | Data() | Finished() if stream:
                    stream.happened(event)
        self._work.unpark_all()

    # For its streams

    def machine_of(self, stream: MuxStream) -> Connection | None:
        """The machine, unless the stream is gone; whatever is done to it is written soon."""
        self._work.unpark_all()
        return self._machine if self._streams.get(stream.id) is stream else None

    def forget(self, stream: MuxStream) -> None:
        """Have no more to do with it."""
        if machine := self.machine_of(stream):
            del self._streams[stream.id]
            machine.abandon(stream.id)


class MuxStream(trio.abc.HalfCloseableStream):
    """One stream. It may have one sender and one receiver at a time, as Trio's own.

    The protocol has no reset: to the other end, one that was closed looks as if it were finished and read no more.
    """

    def __init__(self, mux: Mux, stream_id: int, *, accepted: bool = True) -> None:
        self.id = stream_id
        self.accepted = accepted
        self.sender = ParkingLot()
        self._receiver = ParkingLot()
        self._mux = mux
        self._unread = bytearray()
        self._eof = False
        self._finished = False
        self._closed = False
        self._broken = ""
        self._sending = _Alone("another task is sending")
        self._receiving = _Alone("another task is receiving")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, as fast as the other end reads and the streams beside this one permit."""
        with self._sending, memoryview(data) as rest:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            sent = 0
            while sent < len(rest):
                await self._wait_credit()
                # One frame a turn, in the order of asking: so all get on, however many they are.
                async with self._mux.turn:
                    while not (size := self._sendable()):
                        await self._mux.room.park()
                    self._machine.send(self.id, bytes(rest[sent : sent + size]))
                sent += size

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the other end takes something."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            await self._wait_credit()

    async def send_eof(self) -> None:
        """Send no more."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if not self._finished:
                self.check_usable()
                self._finished = True
                self._machine.finish(self.id)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, or none when the other end sends no more."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            self.check_usable()
            while not self._unread and not self._eof:
                await self._receiver.park()
                self.check_usable()
            data = bytes(self._unread[:max_bytes])
            del self._unread[:max_bytes]
            if machine := self._mux.machine_of(self):
                machine.consumed(self.id, len(data))
            return data

    async def aclose(self) -> None:
        """Finish it, and throw away what still comes."""
        self.abandon()
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """As `aclose`, at once."""
        self._closed = True
        self._mux.forget(self)
        self._wake()

    def abort(self, reason: str) -> None:
        """It is gone both ways; for the `Mux`."""
        self._broken = reason
        self._wake()

    def happened(self, event: Accepted | CreditGained | Data | Finished) -> None:
        """Something else has happened to it; for the `Mux`."""
        match event:
            case Data(_, data):
                self._unread += data
                self._receiver.unpark_all()
            case Finished():
                self._eof = True
                self._receiver.unpark_all()
            case Accepted():
                self.accepted = True
                self.sender.unpark_all()
            case CreditGained():
                self.sender.unpark_all()

    def check_usable(self) -> None:
        """Raise ClosedResourceError or BrokenResourceError where there is nothing more to be had from it."""
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        if self._broken:
            raise trio.BrokenResourceError(self._broken)

    async def _wait_credit(self) -> None:
        self._check_sendable()
        while not self._machine.credit(self.id):
            await self.sender.park()
            self._check_sendable()

    def _sendable(self) -> int:
        self._check_sendable()
        return self._machine.sendable(self.id)

    def _check_sendable(self) -> None:
        self.check_usable()
        if self._finished:
            raise trio.ClosedResourceError("send_eof was called")

    @property
    def _machine(self) -> Connection:
        machine = self._mux.machine_of(self)
        assert machine is not None, "a stream that is usable and not finished is known"
        return machine

    def _wake(self) -> None:
        self._unread.clear()
        self.sender.unpark_all()
        self._receiver.unpark_all()
        self._mux.room.unpark_all()


class _Alone:
    """Around what one task at a time may do; others get BusyResourceError."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(self._message)
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._busy = False
