"""A web server with a viewer of each kind who looks closely, and peers that do as a script says."""

from __future__ import annotations

import math
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

import httpx
import trio
import trio.testing
from starlette.types import Receive, Scope, Send
from trio_websocket import WebSocketConnection, wrap_client_stream

from worker.ports import Ports
from worker.serving import ServingLimits, TlsConfig
from worker.testing.certificates import trusting
from worker.webhooks import WebhooksConfig, open_webhooks

SECONDS = 20.0  # a limit against hanging tests, far above what anything here takes
STOP = 2.0  # seconds until a server that is cancelled has ended: the promise of the issue
BLOCK = 1000


class Do(Enum):
    """What a peer does that is not sending."""

    READ = auto()  # all until the server closes
    FIN = auto()  # send no more
    RST = auto()  # be gone, rudely


@dataclass(frozen=True)
class Until:
    """Wait until this has come."""

    text: bytes


Step = bytes | Do | Until
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame of a websocket's client (RFC 6455, 5.2), with the mask that changes nothing."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask = masked << 7
    if len(payload) < 126:
        head += bytes([mask | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack("!BH", mask | 126, len(payload))
    else:
        head += struct.pack("!BQ", mask | 127, len(payload))
    return head + bytes(4) * masked + payload


def block(number: int) -> bytes:
    """What a viewer is to get next."""
    return b"%0*d" % (BLOCK, number)


class Application:
    """Answers by path. `/blocks`, also as a websocket, sends a block whenever one is asked for by `more`."""

    def __init__(self) -> None:
        self.more, self._more = trio.open_memory_channel[None](math.inf)
        self.more_messages, self._more_messages = trio.open_memory_channel[None](math.inf)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            async with trio.open_nursery() as nursery:
                if scope["path"] != "/echo":
                    nursery.start_soon(self._flood_messages if scope["path"] == "/flood" else self._messages, send)
                while (message := await receive())["type"] == "websocket.receive":
                    if scope["path"] == "/echo":
                        await send({**message, "type": "websocket.send"})
                nursery.cancel_scope.cancel()
            return
        path = scope["path"]
        answers = {"/blocks": self._blocks, "/flood": self._flood, "/wait": self._wait, "/read": self._read}
        await answers.get(path, self._hello)(receive, send)

    async def _hello(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def _read(self, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{size} bytes".encode()})

    async def _wait(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"wait", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _flood(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async def _blocks(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        number = 0
        async for _ in self._more:
            await send({"type": "http.response.body", "body": block(number), "more_body": True})
            number += 1

    async def _messages(self, send: Send) -> None:
        number = 0
        async for _ in self._more_messages:
            await send({"type": "websocket.send", "bytes": block(number)})
            number += 1

    async def _flood_messages(self, send: Send) -> None:
        while True:
            await send({"type": "websocket.send", "bytes": b"x" * 65536})


class Viewers:
    """One reads a stream and one a websocket, and each compares what it gets with what was sent."""

    def __init__(self, app: Application, stream: Stream, websocket: WebSocketConnection) -> None:
        self._app = app
        self._stream = stream
        self._websocket = websocket
        self._rest = b""
        self._stop = False
        self.rounds = 0

    async def look(self) -> None:
        """Get one block more each, whole and in order."""
        self._app.more.send_nowait(None)
        self._app.more_messages.send_nowait(None)
        assert await self._websocket.get_message() == block(self.rounds)
        assert await self._read(BLOCK) == block(self.rounds)
        self.rounds += 1

    async def begin(self, path: str) -> None:
        """Ask for the stream; by HTTP/1.0, which has no chunks."""
        await self._stream.send_all(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        while not self._rest.endswith(b"\r\n\r\n"):
            self._rest += await self._stream.receive_some(1)
        self._rest = b""

    async def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = await self._stream.receive_some()
            assert chunk
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def keep_looking(self) -> None:
        """Until `stop`."""
        while not self._stop:
            await self.look()

    def stop(self) -> None:
        """End `keep_looking`."""
        self._stop = True


@dataclass
class World:
    """A server, where it is, and who looks at it."""

    host: str
    port: int
    path: str
    viewers: Viewers
    tls: ssl.SSLContext | None

    async def check_alive(self) -> None:
        """A fresh request is answered."""
        scheme = "http" if self.tls is None else "https"
        async with httpx.AsyncClient(trust_env=False, verify=self.tls or True) as client:
            answer = await client.get(f"{scheme}://{self.host}:{self.port}{self.path}")
            assert (answer.status_code, answer.text) == (200, "hello")

    async def wait_stuck(self) -> None:
        """Return when nothing goes on any more: whoever sends to somebody that does not read is stuck by then."""
        await trio.testing.wait_all_tasks_blocked(0.05)

    async def wait_gone(self, tasks: int) -> None:
        """Return when there are only so many tasks as before."""
        while count_tasks() > tasks:
            await self.check_alive()
            await trio.testing.wait_all_tasks_blocked(0.01)

    async def connect(self) -> Stream:
        """A connection that takes little beyond what is read of it."""
        connection = trio.socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await connection.connect((self.host, self.port))
        return await _secured(trio.SocketStream(connection), self.host, self.tls)

    async def play(self, stream: Stream, script: Sequence[Step]) -> bytes:
        """Do as the script says. Returns what was received, also where the server breaks off."""
        received = bytearray()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for step in script:
                match step:
                    case bytes():
                        await stream.send_all(step.replace(b"{path}", self.path.encode()))
                    case Until(text):
                        while text not in received:
                            received += await stream.receive_some()
                    case Do.READ:
                        while chunk := await stream.receive_some():
                            received += chunk
                    case Do.FIN:
                        await _socket_of(stream).send_eof()
                    case Do.RST:
                        _socket_of(stream).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        await _socket_of(stream).aclose()
        return bytes(received)


async def _secured(stream: trio.SocketStream, host: str, tls: ssl.SSLContext | None) -> Stream:
    if tls is None:
        return stream
    secured = trio.SSLStream(stream, tls, server_hostname=host)
    await secured.do_handshake()
    return secured


def _socket_of(stream: Stream) -> trio.SocketStream:
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


@asynccontextmanager
async def opened(tls: TlsConfig | None = None, **limits: object) -> AsyncGenerator[World, None]:
    """A server with its viewers. When the block ends, it is stopped with these still there, and in time."""
    app = Application()
    config = WebhooksConfig(limits=ServingLimits.model_validate(limits), tls=tls)
    context = None if tls is None else trusting(tls)
    ended = trio.Event()

    async def run_server(*, task_status: trio.TaskStatus[tuple[str, trio.CancelScope]]) -> None:
        with trio.CancelScope() as scope:
            async with open_webhooks(Ports(), config) as webhooks, webhooks.attach(app) as url:
                task_status.started((url, scope))
                await trio.sleep_forever()
        ended.set()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            url, scope = await nursery.start(run_server)
            parsed = httpx.URL(url)
            async with (
                await _secured(
                    await trio.open_tcp_stream(parsed.host, parsed.port or 0), parsed.host, context
                ) as stream,
                await _secured(
                    await trio.open_tcp_stream(parsed.host, parsed.port or 0), parsed.host, context
                ) as other,
            ):
                # Of a stream that is its own it would not close the socket when the server breaks off.
                websocket = await wrap_client_stream(nursery, other, "x", f"{parsed.path}blocks")
                world = World(parsed.host, parsed.port or 0, parsed.path, Viewers(app, stream, websocket), context)
                await world.viewers.begin(f"{parsed.path}blocks")
                await world.viewers.look()
                yield world
                await world.viewers.look()
                with trio.fail_after(STOP):
                    scope.cancel()
                    await ended.wait()


def count_tasks() -> int:
    """All tasks of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [root]
    for task in tasks:
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return len(tasks)
