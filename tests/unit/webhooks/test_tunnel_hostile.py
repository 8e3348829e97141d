"""Tunnel servers that do what they must not, and a link that is bad, over real sockets."""

from __future__ import annotations

import hashlib
import random
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import trio
from mux_world import ACK, DAT, FIN, MIB, SYN, WINDOW, Peer, accept_websocket
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket
from tunnel_world import AUDIENCE, NAME, App, dechunked, open_server, pattern, tunnel_config

from worker.ports import Ports
from worker.serving import listen, port_of
from worker.testing.certificates import trusting, write_certificate
from worker.testing.link import Link, open_link
from worker.testing.tunnel import TunnelAuth, TunnelServer
from worker.webhooks import open_webhooks
from worker.webhooks.tunnelsocket import Refused, Unreachable, open_websocket
from worker.webhooks.wsmux import Limits

T = TypeVar("T")
Script = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncGenerator[httpx.URL, None]:
    """A server that does with each connection what a script says, and closes it."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await script(stream)

    listeners = await listen("127.0.0.1", 0)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, listeners)
            yield httpx.URL(f"ws://127.0.0.1:{port_of(listeners)}/")
            nursery.cancel_scope.cancel()


def saying(answer: bytes, *, close: bool = True) -> Script:
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        while not close and await stream.receive_some():
            pass

    return script


async def endless(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 401 X\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 4096)


SWITCH = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    "script",
    [
        saying(b""),
        saying(b"\0\1\2\3" * 100),
        saying(b"SSH-2.0-OpenSSH\r\n"),
        saying(b"HTTP/1.1 101 X\r\n"),
        saying(SWITCH + b"\r\n", close=False),
        saying(SWITCH + b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n", close=False),
        saying(SWITCH + b"X: " + b"x" * 200_000, close=False),
        saying(b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n", close=False),
        endless,
    ],
)
async def test_what_is_no_websocket_server_is_unreachable(script: Script) -> None:
    async with serving(script) as url:
        with pytest.raises(Unreachable):
            async with open_websocket(Ports(), url, [], 1000):
                pass


@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 500, 503])
@pytest.mark.parametrize("body", [b"", b"token=secret"])
async def test_an_http_answer_is_a_refusal(status: int, body: bytes) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with serving(saying(answer)) as url:
        with pytest.raises(Refused) as refused:
            async with open_websocket(Ports(), url, [], 1000):
                pass
        assert refused.value.status == status
        assert "secret" not in str(refused.value)


async def test_nobody_is_unreachable() -> None:
    listeners = await listen("127.0.0.1", 0)
    port = port_of(listeners)
    await listeners[0].aclose()
    with pytest.raises(Unreachable, match="no connection"):
        async with open_websocket(Ports(), httpx.URL(f"ws://127.0.0.1:{port}/"), [], 1000):
            pass


@pytest.mark.parametrize(
    "frames",
    [
        b"\x88\x02\x03\xe8\x89\x00",  # close, and then a ping
        b"\x88\x02\x03\xe8\x82\x01x",
        b"\x88\x01\x03",
        b"\x88\x02\x00\x00",
        b"\xf2\x01x",  # reserved bits
        b"\x83\x01x",  # a reserved kind of frame
        b"\x82\x81\0\0\0\0x",  # masked, by a server
        b"\x80\x01x",  # a continuation of nothing
        b"\x02\x01x\x82\x01x",  # a message inside of another one
        b"\x09\x01x",  # a ping in pieces
        b"\x89\x7e\x01\x00" + b"x" * 256,  # a ping that is too long
        b"\x81\x02\xff\xfe",  # text that is none
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x82\x7e\x10\x00" + b"x" * 4096,  # larger than allowed
        b"\x02\x7e\x03\xe8" + b"x" * 1000 + b"\x80\x7e\x03\xe8" + b"x" * 1000,
    ],
)
async def test_frames_that_no_server_may_send_end_the_websocket_and_nothing_else(frames: bytes) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await accept_websocket(stream)
        await stream.send_all(frames)
        while await stream.receive_some():
            pass

    async def receive_all(url: httpx.URL) -> None:
        async with open_websocket(Ports(), url, [], 1000) as websocket:
            while True:
                await websocket.get_message()

    async with serving(script) as url:
        with pytest.raises((Unreachable, ConnectionClosed)):
            await receive_all(url)


async def test_a_bug_in_the_block_comes_out_as_it_is() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await accept_websocket(stream)
        await stream.receive_some()

    async with serving(script) as url:
        with pytest.raises(ZeroDivisionError):
            async with open_websocket(Ports(), url, [], 1000):
                _ = 1 / 0


async def test_what_was_sent_before_the_end_arrives_though_the_server_goes_on_sending() -> None:
    size = 4 * MIB
    got = 0
    ended = trio.Event()

    async def script(stream: trio.SocketStream) -> None:
        nonlocal got
        await accept_websocket(stream)
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(8192):
                got += len(data)
                await stream.send_all(b"\x8a\x00")  # a pong, which nobody asked for
        ended.set()

    async with serving(script) as url:
        async with open_websocket(Ports(), url, [], 1000) as websocket:
            await websocket.send_message(bytes(size))
        await ended.wait()
    assert got > size


# TLS


class Trusting(Ports):
    """Knows another authority than those of this machine."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is ssl.create_default_context:
            return self._context  # type: ignore[return-value]  # it is what the function makes
        return await super().run_sync(function, *args)


@pytest.mark.parametrize("known", [True, False])
async def test_over_tls_the_servers_certificate_is_checked(tmp_path: Path, known: bool) -> None:
    tls = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    async with open_server() as (server, _, auth), trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, server.handle, 0, context)
        port = port_of([listener.transport_listener for listener in listeners])
        config = tunnel_config(port, url=f"wss://127.0.0.1:{port}", connectWithin="1 second")
        ports = Trusting(trusting(tls)) if known else Ports()
        async with open_webhooks(ports, config, auth, NAME) as webhooks, webhooks.attach(App()) as url:
            if known:
                async with httpx.AsyncClient(trust_env=False) as viewer:
                    assert (await viewer.get(f"{url}hello")).status_code == 200
            else:
                assert server.tokens == []
                assert url.startswith(f"https://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel()


# A server that is played by hand, and counts for itself


@asynccontextmanager
async def playing() -> AsyncGenerator[tuple[Link, trio.MemoryReceiveChannel[Peer], bytes], None]:
    """A worker behind a link: the server's ends of its connections, to be played, and the path to an `App`."""
    connected, peers = trio.open_memory_channel[Peer](10)

    async def handle(request: WebSocketRequest) -> None:
        granted = (b"x-websocktunnel-client-url", b"http://t.example/w1")
        peer = Peer(await request.accept(extra_headers=[granted]))
        await connected.send(peer)
        await peer.over.wait()  # for ever: a worker ends its connections

    nobody = TunnelServer(Ports(), "s", AUDIENCE, 0, Limits(), 20, "")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_websocket, handle, "127.0.0.1", 0, None, max_message_size=WINDOW + 5)
            server = await nursery.start(serve)
            async with (
                open_link(server.port) as link,
                open_webhooks(Ports(), tunnel_config(link.port), TunnelAuth(nobody), NAME) as webhooks,
                webhooks.attach(App()) as url,
            ):
                assert url.startswith("http://t.example/w1/")
                yield link, peers, url.removeprefix("http://t.example/w1").encode()
            nursery.cancel_scope.cancel()


async def test_over_a_slow_link_that_loses_packets_bodies_are_whole_and_no_credit_is_exceeded() -> None:
    size = WINDOW + MIB
    rng = random.Random(1)
    body = b"".join(pattern(size))
    async with playing() as (link, peers, path):
        peer = await peers.receive()
        link.delay, link.rate, link.piece, link.loss, link.again = 0.01, 8 * MIB, 20_000, 0.01, 0.03
        link.random = rng
        await peer.open(0)
        await peer.open(2)
        head = f"Host: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
        await peer.send(DAT, 0, b"POST " + path + b"both HTTP/1.1\r\n" + head)
        await peer.send(DAT, 2, b"POST " + path + b"digest HTTP/1.1\r\n" + head)

        async def send(stream_id: int) -> None:
            sent = 0
            while sent < size:
                piece = body[sent : sent + min(rng.randint(1, 100_000), peer.credit[stream_id])]
                if piece:
                    await peer.send(DAT, stream_id, piece)
                    sent += len(piece)
                else:
                    await peer.changed.wait()
            await peer.send(FIN, stream_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 0)
            nursery.start_soon(send, 2)
            while peer.finished != {0, 2}:
                await peer.receive()  # which keeps the account
                owed = WINDOW - peer.granted[0]
                if owed > WINDOW - 100_000:
                    await peer.send(ACK, 0, struct.pack("<I", owed))
        assert peer.data[2].endswith(hashlib.sha256(body).hexdigest().encode())
        assert dechunked(bytes(peer.data[0])) == body
        consumed = sum(amount for stream_id, amount in peer.acks if stream_id == 0) - WINDOW
        assert size - MIB <= consumed <= size + len(head) + 200


@pytest.mark.parametrize(
    "frame", [b"", b"\x09\0\0\0\0", struct.pack("<BI", SYN, 1), struct.pack("<BI", SYN, 0) + b"x", "text"]
)
async def test_after_a_malformed_frame_the_worker_says_1008_and_comes_back(frame: bytes | str) -> None:
    async with playing() as (_, peers, path):
        peer = await peers.receive()
        await peer.websocket.send_message(frame)
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        assert closed.value.reason
        assert closed.value.reason.code == 1008
        peer = await peers.receive()
        await peer.open(0)
        # As the deployed server does it: it has the answer when its length says so, and then finishes the stream.
        await peer.send(DAT, 0, b"GET " + path + b"hello HTTP/1.1\r\nHost: x\r\n\r\n")
        while not peer.data[0].endswith(b"http /hello "):
            await peer.receive()
        assert peer.data[0].startswith(b"HTTP/1.1 200")
        await peer.send(FIN, 0)
        while 0 not in peer.finished:
            await peer.receive()


async def test_a_server_that_opens_streams_without_end_gets_as_many_as_allowed() -> None:
    async with playing() as (_, peers, path):
        peer = await peers.receive()
        for stream_id in range(0, 3000, 2):
            await peer.open(stream_id)
        while len(peer.finished) < 500:
            await peer.receive()
        assert min(peer.finished) == 2000
        await peer.send(FIN, 0)
        while 0 not in peer.finished:
            await peer.receive()
        await peer.open(3000)
        await peer.send(DAT, 3000, b"GET " + path + b"hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while 3000 not in peer.finished:
            await peer.receive()
        assert peer.data[3000].startswith(b"HTTP/1.1 200")
