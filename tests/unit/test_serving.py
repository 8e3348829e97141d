"""The web server against peers of every kind, over real sockets. Nothing a peer does may end it or hold it up."""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import httpx
import pytest
import trio
import trio_websocket
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.serving import ServingLimits, listen, port_of, serve
from worker.serving.sockets import KEEP_ALIVE_IDLE, keep_alive

SECONDS = 5.0  # a limit against hanging tests, far above what anything here takes

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(autouse=True)
async def _limit() -> AsyncGenerator[None, None]:
    with trio.fail_after(30):
        yield


class Application:
    """Answers by path, and keeps what happened to its requests."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.left = trio.Event()
        self.disconnected = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        try:
            if scope["type"] == "websocket":
                await self._echo(receive, send)
            else:
                await {"/": self._hello, "/flood": self._flood, "/wait": self._wait, "/bug": self._bug}[scope["path"]](
                    receive, send
                )
        finally:
            self.left.set()

    async def _hello(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def _flood(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async def _wait(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()

    async def _bug(self, receive: Receive, send: Send) -> None:
        raise RuntimeError("swordfish")

    async def _echo(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        self.disconnected.set()


@asynccontextmanager
async def serving(app: ASGIApp, **limits: object) -> AsyncGenerator[int, None]:
    """Serves `app`, gives the port, and checks that the end comes at once."""
    listeners = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listeners, limits=ServingLimits.model_validate(limits)))
        yield port_of(listeners)
        nursery.cancel_scope.cancel()
        began = trio.current_time()
    assert trio.current_time() - began < 1


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def read_all(stream: trio.SocketStream) -> bytes:
    """All until the server closes, be it in a rude manner."""
    data = b""
    try:
        async for chunk in stream:
            data += chunk
    except trio.BrokenResourceError:
        pass
    return data


async def check_alive(port: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/")
        assert (answer.status_code, answer.text) == (200, "hello")


async def test_requests_one_after_another_on_one_connection() -> None:
    async with serving(Application()) as port, await connect(port) as stream:
        for _ in range(3):
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while not data.endswith(b"hello"):
                data += await stream.receive_some()
            assert data.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense nonsense",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: ?\r\nConnection: Upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * 100_000 + b"\r\n\r\n",
        HANDSHAKE.replace(b"Version: 13", b"Version: 99"),
        HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"\xff\xfe"),
        HANDSHAKE + b"\xff\xff\xff\xff\xff\xff\xff\xff",
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate; =;;,,=\r\n\r\n"),
    ],
)
async def test_a_malformed_peer_ends_only_itself(garbage: bytes) -> None:
    async with serving(Application()) as port:
        async with await connect(port) as stream:
            await stream.send_all(garbage)
            await stream.send_eof()
            with trio.fail_after(SECONDS):
                await read_all(stream)
        await check_alive(port)


async def test_a_frame_that_is_no_websocket_ends_only_its_connection() -> None:
    async with serving(Application()) as port:
        async with await connect(port) as stream:
            await stream.send_all(HANDSHAKE)
            assert b"101" in await stream.receive_some()
            await stream.send_all(b"\xff" * 64)
            with trio.fail_after(SECONDS):
                await read_all(stream)
        await check_alive(port)


async def test_half_a_request_does_not_hold_up_the_end() -> None:
    async with serving(Application()) as port, await connect(port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHo")
        await check_alive(port)


async def test_half_a_body_does_not_hold_up_the_end() -> None:
    app = Application()
    async with serving(app) as port, await connect(port) as stream:
        await stream.send_all(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        await app.entered.wait()
    assert app.left.is_set()


async def test_a_client_that_never_reads_does_not_hold_up_the_end() -> None:
    app = Application()
    async with serving(app) as port, await connect(port) as stream:
        await stream.send_all(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        await check_alive(port)
    assert app.left.is_set()


async def test_an_application_is_told_that_its_peer_has_gone() -> None:
    app = Application()
    async with serving(app) as port:
        async with await connect(port) as stream:
            await stream.send_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await app.entered.wait()
        with trio.fail_after(SECONDS):
            await app.disconnected.wait()
            await app.left.wait()
        await check_alive(port)


@pytest.mark.parametrize("pipelined", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_sending_to_a_peer_that_has_gone_ends_the_application(
    pipelined: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = Application()
    async with serving(app, connections=1) as port:
        async with await connect(port) as stream:
            await stream.send_all(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n" + pipelined)
            await app.entered.wait()
        with trio.fail_after(SECONDS):
            await app.left.wait()
            await check_alive(port)
    assert not caplog.records


async def test_an_unread_body_does_not_block_the_answer() -> None:
    """The application answers without reading; hypercorn alone would wait for it to read."""
    async with serving(Application(), connections=1, request_body=10**8) as port:
        async with await connect(port) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.send_all(
                        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 10**7
                    )

            nursery.start_soon(send)
            with trio.fail_after(SECONDS):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            nursery.cancel_scope.cancel()
        with trio.fail_after(SECONDS):
            await check_alive(port)


async def test_a_bug_in_an_application_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Without what it says, which may quote the peer."""
    async with serving(Application()) as port, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/bug")
        assert answer.status_code == 500
        await check_alive(port)
    assert "RuntimeError at test_serving.py:" in caplog.text
    assert "swordfish" not in caplog.text


async def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Application()) as port, await connect(port) as stream:
        await stream.send_all(b"GET /?secret HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some()
    out, err = capfd.readouterr()
    assert "secret" not in out + err + caplog.text


async def test_more_connections_than_slots_wait_for_their_turn() -> None:
    async with serving(Application(), connections=5) as port:
        answers: list[bytes] = []

        async def ask() -> None:
            async with await connect(port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answers.append(await read_all(stream))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
        assert len(answers) == 200
        assert all(answer.endswith(b"hello") for answer in answers)


async def test_an_idle_connection_frees_its_slot_when_the_peer_goes() -> None:
    async with serving(Application(), connections=1) as port:
        async with await connect(port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some()
        with trio.fail_after(SECONDS):
            await check_alive(port)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HANDSHAKE.replace(b"Version: 13", b"Version: 99"),
    ],
)
async def test_a_connection_without_a_request_is_closed_after_a_while(sent: bytes) -> None:
    async with serving(Application(), idle_time=0.05, header_time=0.05) as port, await connect(port) as stream:
        await stream.send_all(sent)
        with trio.fail_after(SECONDS):
            await read_all(stream)


async def test_a_long_request_is_not_idle() -> None:
    app = Application()
    async with serving(app, idle_time=0.05, header_time=0.05) as port, await connect(port) as stream:
        await stream.send_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.move_on_after(0.5):
            await app.left.wait()
        assert not app.left.is_set()


async def test_websockets() -> None:
    app = Application()
    async with serving(app) as port:
        async with trio_websocket.open_websocket_url(f"ws://127.0.0.1:{port}/") as socket:
            await socket.send_message(b"ping")
            assert await socket.get_message() == b"ping"
        with trio.fail_after(SECONDS):
            await app.disconnected.wait()


async def test_half_closed_peers_get_their_answer() -> None:
    async with serving(Application()) as port, await connect(port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        with trio.fail_after(SECONDS):
            assert (await read_all(stream)).endswith(b"hello")


async def test_port_zero_is_one_port_for_all_addresses_of_a_host() -> None:
    listeners = await listen("localhost", 0)
    try:
        assert len({listener.socket.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            await listener.aclose()


async def test_an_address_in_use_is_an_oserror() -> None:
    listeners = await listen("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        await listen("127.0.0.1", port_of(listeners))
    for listener in listeners:
        await listener.aclose()


class Failing(trio.abc.Listener[trio.SocketStream]):
    """A listener with errors before it works."""

    def __init__(self, listener: trio.SocketListener, *errors: int) -> None:
        self._listener = listener
        self._errors = list(errors)

    async def accept(self) -> trio.SocketStream:
        if self._errors:
            raise OSError(self._errors.pop(0), "an error")
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


async def test_accepting_goes_on_after_errors_that_pass(caplog: pytest.LogCaptureFixture) -> None:
    [listener] = await listen("127.0.0.1", 0)
    failing = Failing(listener, errno.EMFILE, errno.ENFILE)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, Application(), [cast("trio.SocketListener", failing)])
        await check_alive(port_of([listener]))
        nursery.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "no further connections for now: too many open files in this process or machine"
    ]


async def test_an_error_that_does_not_pass_is_raised() -> None:
    [listener] = await listen("127.0.0.1", 0)
    with pytest.RaisesGroup(OSError):
        await serve(Application(), [cast("trio.SocketListener", Failing(listener, errno.EBADF))])


async def test_the_kernel_asks_a_silent_peer_whether_it_is_there() -> None:
    [listener] = await listen("127.0.0.1", 0)
    async with listener, await connect(port_of([listener])), await listener.accept() as stream:
        keep_alive(stream, 20)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert stream.getsockopt(socket.IPPROTO_TCP, KEEP_ALIVE_IDLE) == 20


async def test_connections_leave_half_of_the_descriptors_to_others(caplog: pytest.LogCaptureFixture) -> None:
    """With as many as the limits would have, nothing would be left to run tasks with."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(Application(), connections=descriptors) as port:
        await check_alive(port)
    assert f"{descriptors // 2} connections at once" in caplog.text
