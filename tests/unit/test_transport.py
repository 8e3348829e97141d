"""The transport under the HTTP clients, against real servers on loopback that say what they are told to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import h11
import httpx
import pytest
import trio
from trio.testing import MockClock

from worker.serving import TlsConfig, port_of
from worker.testing.certificates import trusting, write_certificate
from worker.transport import MOST_IDLE, Transport

Handler = Callable[[trio.abc.Stream], Awaitable[object]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Counts its connections, and hands each to `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.accepted = 0
        self.open = 0
        self.address = ""
        self.changed = trio.Condition()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.accepted += 1
        await self._count(1)
        try:
            async with stream:
                with suppress(trio.BrokenResourceError):
                    await self.handler(stream)
        finally:
            with trio.CancelScope(shield=True):
                await self._count(-1)

    async def _count(self, number: int) -> None:
        async with self.changed:
            self.open += number
            self.changed.notify_all()

    async def until_open(self, number: int) -> None:
        async with self.changed:
            while self.open != number:
                await self.changed.wait()


@asynccontextmanager
async def running(handler: Handler, host: str = "127.0.0.1") -> AsyncGenerator[Server, None]:
    server = Server(handler)
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=host)
            await nursery.start(trio.serve_listeners, server.serve, listeners)
            server.address = f"http://{f'[{host}]' if ':' in host else host}:{port_of(listeners)}"
            yield server
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(idle_limit: float = 30.0) -> AsyncGenerator[Transport, None]:
    transport = Transport(idle_limit)
    try:
        yield transport
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose()


class Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """httpx's own is a generator, which a request that is cut off leaves to the garbage collector."""

    def __init__(self, content: bytes) -> None:
        self._left = [content] if content else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def request(url: str, method: str = "GET", body: bytes = b"", timeout: float = 20.0) -> httpx.Request:
    timeouts = {"connect": timeout, "read": timeout, "write": timeout}
    asked = httpx.Request(method, url, content=body, extensions={"timeout": timeouts})
    asked.stream = Body(body)
    return asked


async def ask(transport: Transport, url: str, method: str = "GET", body: bytes = b"", timeout: float = 20.0) -> bytes:
    answer = await transport.handle_async_request(request(url, method, body, timeout))
    return await answer.aread()


def saying(*answers: bytes) -> Handler:
    """One of these for each request, in any number of pieces; then the connection is closed."""

    async def handler(stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        for answer in answers:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
            if isinstance(event, h11.ConnectionClosed):
                return
            await stream.send_all(answer)
            connection = h11.Connection(h11.SERVER)

    return handler


async def test_the_connection_is_used_again() -> None:
    async with running(saying(*[OK] * 5)) as server, opened() as transport:
        assert [await ask(transport, server.address) for _ in range(5)] == [b"ok"] * 5
        assert server.accepted == 1


async def test_connections_are_as_many_as_requests_at_once_and_the_last_one_is_used_first() -> None:
    async with running(saying(*[OK] * 50)) as server, opened() as transport:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask, transport, server.address)
        accepted = server.accepted
        assert accepted <= 10
        for _ in range(20):
            await ask(transport, server.address)
        assert server.accepted == accepted


@pytest.mark.parametrize("answer", [CLOSING, b"HTTP/1.0 200 OK\r\n\r\nok"])
async def test_a_server_that_wants_to_close_is_asked_on_another_connection(answer: bytes) -> None:
    async with running(saying(answer)) as server, opened() as transport:
        assert [await ask(transport, server.address) for _ in range(3)] == [b"ok"] * 3
        assert server.accepted == 3


async def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    async with running(saying(OK)) as server, opened() as transport:
        for _ in range(3):
            assert await ask(transport, server.address) == b"ok"
            await server.until_open(0)
        assert server.accepted == 3


async def test_what_nobody_asked_for_is_not_taken_for_an_answer() -> None:
    more = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await saying(OK)(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
        more.set()
        await trio.sleep_forever()

    async with running(handler) as server, opened() as transport:
        assert await ask(transport, server.address) == b"ok"
        await more.wait()
        assert await ask(transport, server.address) == b"ok"
        assert server.accepted == 2


@pytest.mark.parametrize("status", [200, 201, 301, 403])
async def test_a_part_is_never_taken_for_the_whole(status: int) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 %d Early\r\nContent-Length: 0\r\n\r\n" % status)
        # With all of it unread the connection is reset: whether the answer comes before that is up to the machine.

    async with running(handler) as server, opened() as transport:
        try:
            answer = await transport.handle_async_request(request(server.address, "PUT", b"x" * 32_000_000))
        except (httpx.WriteError, httpx.ReadError):
            return
        assert answer.status_code == status >= 300


async def test_connections_to_servers_that_are_not_asked_again_do_not_stay(autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running(saying(*[OK] * 5))) for _ in range(MOST_IDLE + 3)]
        transport = await stack.enter_async_context(opened(idle_limit=30))
        for server in servers:
            await ask(transport, server.address)
        await ask(transport, servers[-1].address)
        for server in servers[:2]:
            await server.until_open(0)
        await trio.sleep(31)
        await ask(transport, servers[-1].address)
        for server in servers[:-1]:
            await server.until_open(0)


async def test_what_is_idle_for_long_is_closed(autojump_clock: MockClock) -> None:
    # The sockets are real, the time is not.
    async with running(saying(*[OK] * 5)) as server, opened(idle_limit=30) as transport:
        await ask(transport, server.address)
        await trio.sleep(29)
        await ask(transport, server.address)
        assert server.accepted == 1
        await trio.sleep(31)
        await ask(transport, server.address)
        assert server.accepted == 2
        await server.until_open(1)


async def test_a_cancelled_request_closes_its_connection() -> None:
    asked = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        asked.set()
        await stream.receive_some()

    async with running(handler) as server, opened() as transport:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, transport, server.address)
            await asked.wait()
            nursery.cancel_scope.cancel()
        await server.until_open(0)


async def test_an_answer_that_is_given_up_closes_its_connection() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst")
        await stream.receive_some()

    async with running(handler) as server, opened() as transport:
        answer = await transport.handle_async_request(request(server.address))
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        assert await anext(aiter(answer.stream)) == b"first"
        await answer.aclose()
        await server.until_open(0)


async def test_an_answer_that_comes_while_the_body_is_sent_is_the_answer() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        # What was sent and not read would reset the connection, and might take the answer with it.
        while await stream.receive_some():
            pass

    async def send_a_part(transport: Transport, url: str) -> httpx.Response:
        return await transport.handle_async_request(request(url, "PUT", b"x" * 1_000_000))

    async with running(handler) as server, opened() as transport:
        answer = await send_a_part(transport, server.address)
        assert (answer.status_code, await answer.aread()) == (413, b"no")


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", 304, b""),
    ],
)
async def test_answers(answer: bytes, status: int, body: bytes) -> None:
    async with running(saying(answer, OK)) as server, opened() as transport:
        response = await transport.handle_async_request(request(server.address))
        assert (response.status_code, await response.aread()) == (status, body)
        assert await ask(transport, server.address) == b"ok"
        assert server.accepted == 1


async def test_head_has_no_body() -> None:
    async with running(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", OK)) as server, opened() as transport:
        assert await ask(transport, server.address, "HEAD") == b""
        assert await ask(transport, server.address) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_no_answer_is_an_error_and_the_connection_is_closed(answer: bytes) -> None:
    async with running(saying(answer)) as server, opened() as transport:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await ask(transport, server.address)
        await server.until_open(0)


async def test_silence_is_a_timeout() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        while await stream.receive_some():
            pass

    async with running(handler) as server, opened() as transport:
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, server.address, timeout=0.05)
        await server.until_open(0)


async def test_a_server_that_takes_nothing_is_a_timeout() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with running(handler) as server, opened() as transport:
        with pytest.raises(httpx.WriteTimeout):
            await ask(transport, server.address, "PUT", b"x" * 32_000_000, timeout=0.05)


async def test_a_server_that_does_not_shake_hands_is_a_timeout() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        while await stream.receive_some():
            pass

    async with running(handler) as server, opened() as transport:
        with pytest.raises(httpx.ConnectTimeout):
            await ask(transport, server.address.replace("http:", "https:"), timeout=0.05)
        await server.until_open(0)


async def test_a_closed_port_is_an_error_at_once() -> None:
    async with running(saying()) as server:
        address = server.address
    async with opened() as transport:
        with pytest.raises(httpx.ConnectError, match="refused"):
            await ask(transport, address)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="there is no IPv6")
async def test_ipv6() -> None:
    async with running(saying(OK), host="::1") as server, opened() as transport:
        assert await ask(transport, server.address) == b"ok"


@asynccontextmanager
async def running_tls(config: TlsConfig, handler: Handler) -> AsyncGenerator[Server, None]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(config.certificate, config.key)

    async def secured(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await handler(trio.SSLStream(stream, context, server_side=True, https_compatible=True))

    async with running(secured) as server:
        server.address = server.address.replace("http:", "https:")
        yield server


async def test_https_connections_are_used_again(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    async with running_tls(config, saying(*[OK] * 5)) as server:
        transport = Transport(30, trusting(config))
        assert [await ask(transport, server.address) for _ in range(5)] == [b"ok"] * 5
        assert server.accepted == 1
        await transport.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_an_error(tmp_path: Path) -> None:
    async with running_tls(write_certificate(tmp_path), saying(OK)) as server, opened() as transport:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(transport, server.address)
        await server.until_open(0)


async def test_closing_ends_what_is_under_way() -> None:
    asked = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        asked.set()
        await stream.receive_some()

    async def fails(transport: Transport, url: str) -> None:
        with pytest.raises(httpx.ReadError):
            await ask(transport, url)

    async with running(handler) as server, opened() as transport, trio.open_nursery() as nursery:
        nursery.start_soon(fails, transport, server.address)
        await asked.wait()
        await transport.aclose()
        await server.until_open(0)


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_no_descriptor_is_left() -> None:
    async with running(saying(*[OK] * 100)) as server:
        before = descriptors()
        for _ in range(20):
            async with opened() as transport, trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(partial(ask, transport, server.address))
            await server.until_open(0)
        assert descriptors() == before
