"""Two ends of a websocket in memory, and a peer that knows of the protocol no more than its frames."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair
from trio_websocket import WebSocketConnection, wrap_client_stream, wrap_server_stream

from worker.webhooks.mux import Mux, MuxStream
from worker.webhooks.wsmux import Limits, Role

MIB = 1024 * 1024
WINDOW = 4 * MIB
LIMIT = 4000.0  # seconds, virtual ones where a test has those, against tests that hang
DAT, SYN, ACK, FIN = range(4)

Pipe = trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]


@asynccontextmanager
async def open_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """One that is cancelled at the end, and fails where that does not come."""
    with trio.fail_after(LIMIT):
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_websockets() -> AsyncGenerator[tuple[WebSocketConnection, WebSocketConnection], None]:
    """A client's and a server's."""
    near, far = memory_stream_pair()
    made: list[WebSocketConnection] = []
    async with open_nursery() as nursery:

        async def serve() -> None:
            request = await wrap_server_stream(nursery, far, max_message_size=WINDOW + 5)
            made.append(await request.accept())

        async with trio.open_nursery() as opening:
            opening.start_soon(serve)
            client = await wrap_client_stream(nursery, near, "x", "/", max_message_size=WINDOW + 5)  # type: ignore[arg-type]  # any stream will do
        yield client, made[0]


async def accept_websocket(stream: trio.abc.Stream, *headers: bytes) -> None:
    """Read a handshake and accept it (RFC 6455, 4.2), by hand."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += await stream.receive_some(4096)
    (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = [b"HTTP/1.1 101 X", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept]
    await stream.send_all(b"\r\n".join([*lines, *headers, b"", b""]))


@asynccontextmanager
async def open_raw() -> AsyncGenerator[tuple[WebSocketConnection, Pipe], None]:
    """A client's websocket, and the bare stream of a server that has accepted it; nothing is sent that is not read."""
    near, far = lockstep_stream_pair()

    async with open_nursery() as nursery:
        async with trio.open_nursery() as opening:
            opening.start_soon(accept_websocket, far)
            client = await wrap_client_stream(nursery, near, "x", "/")  # type: ignore[arg-type]  # as above
        yield client, far


@asynccontextmanager
async def open_muxes(
    *, client_limits: Limits | None = None, server_limits: Limits | None = None
) -> AsyncGenerator[tuple[Mux, trio.MemoryReceiveChannel[MuxStream]], None]:
    """A server's end, which opens streams, and where the client's end puts them."""
    offered, streams = trio.open_memory_channel[MuxStream](1000)
    async with open_websockets() as (client, server), open_nursery() as nursery:
        nursery.start_soon(Mux(client, Role.CLIENT, client_limits).run, offered.send_nowait)
        mux = Mux(server, Role.SERVER, server_limits)
        nursery.start_soon(mux.run, MuxStream.abandon)
        yield mux, streams


@asynccontextmanager
async def open_client(
    limits: Limits | None = None,
) -> AsyncGenerator[tuple[Peer, trio.MemoryReceiveChannel[MuxStream]], None]:
    """A client's end whose server is played by a test."""
    offered, streams = trio.open_memory_channel[MuxStream](1000)
    async with open_websockets() as (client, server), open_nursery() as nursery:
        peer = Peer(server)

        async def run() -> None:
            peer.ended = await Mux(client, Role.CLIENT, limits).run(offered.send_nowait)
            peer.over.set()
            await client.aclose()

        nursery.start_soon(run)
        yield peer, streams


@dataclass
class Peer:
    """Sends and receives frames, made by `struct` alone, and keeps the account of each stream."""

    websocket: WebSocketConnection
    ended: str = ""  # why the other end has ended
    over: trio.Event = field(default_factory=trio.Event)
    credit: dict[int, int] = field(default_factory=dict)  # what we may send
    granted: dict[int, int] = field(default_factory=dict)  # what the other end may
    data: dict[int, bytearray] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    acks: list[tuple[int, int]] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)  # set and replaced when a frame has come

    async def send(self, kind: int, stream_id: int, payload: bytes = b"") -> None:
        """Send a frame, whatever the account says."""
        if kind == DAT and stream_id in self.credit:
            self.credit[stream_id] -= len(payload)
        if kind == ACK and stream_id in self.granted:
            self.granted[stream_id] += struct.unpack("<I", payload)[0]
        await self.websocket.send_message(struct.pack("<BI", kind, stream_id) + payload)

    async def open(self, stream_id: int) -> None:
        """Open a stream, and wait until it is accepted."""
        self.granted[stream_id] = WINDOW
        self.data[stream_id] = bytearray()
        await self.send(SYN, stream_id)
        while stream_id not in self.credit:
            await self.receive()
        assert self.credit[stream_id] == WINDOW

    async def receive(self) -> None:
        """Take a frame. It must be one that the account allows."""
        message = await self.websocket.get_message()
        assert isinstance(message, bytes)
        kind, stream_id = struct.unpack_from("<BI", message)
        payload = message[5:]
        assert stream_id % 2 == 0, "a stream of the client's, which opens none"
        assert stream_id in self.granted, "a frame of a stream that was never opened"
        assert stream_id not in self.finished or kind == ACK
        match kind:
            case 0:
                assert stream_id in self.credit, "data before the ACK"
                self.granted[stream_id] -= len(payload)
                assert self.granted[stream_id] >= 0, "more than the credit"
                self.data[stream_id] += payload
            case 2:
                (amount,) = struct.unpack("<I", payload)
                self.acks.append((stream_id, amount))
                self.credit[stream_id] = self.credit.get(stream_id, 0) + amount
                assert self.credit[stream_id] <= WINDOW, "credit beyond the window"
            case 3:
                assert payload == b""
                self.finished.add(stream_id)
            case _:
                raise AssertionError(f"frame of type {kind}")
        self.changed.set()
        self.changed = trio.Event()
