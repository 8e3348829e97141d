"""The HTTP clients, against real servers on loopback."""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from worker.http import (
    AnswerTooLarge,
    BadStatus,
    BadUrl,
    ConnectFailed,
    ConnectionLost,
    HttpClient,
    HttpError,
    Kind,
    Kinds,
    TimedOut,
    WrongLength,
    open_http,
    plain_url,
)
from worker.ports import Ports
from worker.serving import listen, port_of, serve

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
RawHandler = Callable[[trio.SocketStream], Awaitable[object]]


@asynccontextmanager
async def served(app: App, kinds: Kinds | None = None) -> AsyncGenerator[tuple[str, HttpClient], None]:
    """The address of a server and a client for it."""
    async with trio.open_nursery() as nursery:
        listeners = await listen("127.0.0.1", 0)
        await nursery.start(serve, app, listeners)
        async with open_http(Ports(), kinds) as http:
            yield f"http://127.0.0.1:{port_of(listeners)}", http.bulk
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_server(handler: RawHandler) -> AsyncGenerator[str, None]:
    """The address of a server that need not speak HTTP."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, handler, listeners)
        yield f"http://127.0.0.1:{port_of(listeners)}"
        nursery.cancel_scope.cancel()


async def answer(send: Any, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def received(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


async def test_answer_is_read_whole_and_nothing_is_followed_or_remembered() -> None:
    seen: list[dict[str, str]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await answer(send, 303, b"there", {"Location": "/elsewhere", "Set-Cookie": "a=b"})

    async with served(app) as (url, client):
        for _ in range(2):
            got = await client.request("GET", f"{url}/here")
            assert (got.status, got.body, got.headers["location"]) == (303, b"there", "/elsewhere")
    assert len(seen) == 2
    assert all("cookie" not in headers for headers in seen)
    assert all(headers["user-agent"].startswith("tc-worker/") for headers in seen)


async def test_too_large_an_answer_is_given_up_and_the_client_goes_on() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await answer(send, body=b"x" * (1_000_000 if scope["path"] == "/large" else 10))

    kinds = Kinds(bulk=Kind(connections=1))
    async with served(app, kinds) as (url, client):
        for _ in range(3):
            with pytest.raises(AnswerTooLarge, match="longer than 1000 bytes"):
                await client.request("GET", f"{url}/large?secret", limit=1000)
            assert (await client.request("GET", f"{url}/small")).body == b"x" * 10


async def test_body_can_be_read_in_chunks_and_left() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await answer(send, body=b"x" * 1_000_000)

    async with served(app, Kinds(bulk=Kind(connections=1))) as (url, client):
        async with client.stream("GET", url) as stream:
            assert sum([len(chunk) async for chunk in stream.chunks()]) == 1_000_000
        async with client.stream("GET", url) as stream:
            async for chunk in stream.chunks():
                assert chunk
                break
        assert (await client.request("GET", url)).status == 200


async def test_closed_port_is_connect_failed() -> None:
    listeners = await listen("127.0.0.1", 0)
    port = port_of(listeners)
    for listener in listeners:
        await listener.aclose()
    async with open_http(Ports()) as http:
        with pytest.raises(ConnectFailed, match=rf"GET http://127\.0\.0\.1:{port}/: "):
            await http.control.request("GET", f"http://127.0.0.1:{port}/x?secret")


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-whatever\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"])
async def test_server_that_breaks_off_is_connection_lost(says: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(says)

    async with raw_server(handler) as url, open_http(Ports()) as http:
        with pytest.raises(ConnectionLost) as caught:
            await http.control.request("GET", f"{url}/x?topsecret")
    assert "topsecret" not in str(caught.value)


async def test_silent_server_is_timed_out() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    kinds = Kinds(control=Kind(connections=1, stall=0.05))
    async with raw_server(handler) as url, open_http(Ports(), kinds) as http:
        with pytest.raises(TimedOut):
            await http.control.request("GET", url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "/relative",
        "http://host:port/",
        "http://",
        "http://a..b/",
        f"http://{'a' * 64}.example/",
        "http://xn--a/",
        "http://host/\ud800",
    ],
)
async def test_url_that_cannot_be_asked(url: str) -> None:
    async with open_http(Ports()) as http:
        with pytest.raises(BadUrl):
            await http.control.request("GET", url)


def test_plain_url_has_no_secret() -> None:
    assert plain_url("https://user:pass@host:1/a%2Fb?signature=x#y") == "https://host:1/"
    assert plain_url("http://host:port/") == "(malformed URL)"


PATH = "/bucket/T%20a/0/public%2Fa+b's~(1)@,;:.log"
QUERY = "X-Amz-Signature=a%2Fb%2B%3D&X-Amz-Credential=AK/2026&x=~%7E"


async def test_upload_sends_url_headers_and_length_as_given() -> None:
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path, query = scope["raw_path"].decode(), scope["query_string"].decode()
        seen.append((path, query, headers, await received(receive)))
        await answer(send)

    async with served(app) as (url, client):
        content = chunks(b"abc", b"def", b"g")
        headers = {"Content-Type": "text/plain", "content-length": "7"}
        await client.upload(f"{url}{PATH}?{QUERY}", content, headers=headers, length=7)
        await client.upload(url, chunks(), headers={}, length=0)
    path, query, got, body = seen[0]
    assert (path, query, body) == (PATH, QUERY, b"abcdefg")
    assert (got["content-type"], got["content-length"]) == ("text/plain", "7")
    assert "transfer-encoding" not in got
    assert seen[1][2]["content-length"] == "0"


async def test_refused_upload_keeps_the_status_and_hides_the_query() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await answer(send, 503, b"<Error/>", {"Retry-After": "3"})

    async with served(app) as (url, client):
        with pytest.raises(BadStatus) as caught:
            await client.upload(f"{url}/x?topsecret", chunks(b"abc"), headers={}, length=3)
    assert (caught.value.status, caught.value.retry_after) == (503, "3")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<Error><Code>EntityTooLarge</Code><Message>topsecret</Message></Error>", "EntityTooLarge"),
        (b"<Code>top secret</Code>", None),
        (b"topsecret" * 1000 + b"<Code>TooFarAway</Code>", None),
        (b"", None),
    ],
)
async def test_of_a_refused_uploads_answer_only_the_code_is_told(body: bytes, code: str | None) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await received(receive)
        await answer(send, 400, body)

    async with served(app) as (url, client):
        with pytest.raises(BadStatus) as caught:
            await client.upload(url, chunks(b"abc"), headers={}, length=3)
    assert caught.value.code == code
    assert str(caught.value).endswith("answered with status 400" + (f" {code}" if code else ""))


@pytest.mark.parametrize("length", [2, 4])
async def test_content_of_another_length_is_noticed(length: int) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await received(receive)
        await answer(send)

    async with served(app, Kinds(bulk=Kind(connections=1))) as (url, client):
        with pytest.raises(WrongLength):
            await client.upload(url, Parts(b"abc"), headers={}, length=length)
        await client.upload(url, chunks(b"abc"), headers={}, length=3)


class Parts(AsyncIterable[bytes]):
    """Content that is not a generator: it may be left in the middle."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = iter(parts)

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            return next(self.parts)
        except StopIteration:
            raise StopAsyncIteration from None


class BrokenFile(AsyncIterable[bytes]):
    def __aiter__(self) -> BrokenFile:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        raise OSError("disk gone")


async def test_what_the_content_raises_comes_out_as_it_is() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await received(receive)

    async with served(app) as (url, client):
        with pytest.raises(OSError, match="disk gone"):
            await client.upload(url, BrokenFile(), headers={}, length=3)


async def test_many_callers_that_are_cancelled_soon_leave_the_pool_usable() -> None:
    # More callers than connections and short cancellations: a pool can wedge here, as httpx's own does.
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await received(receive)
        await trio.sleep(0.002)
        await answer(send, body=b"ok")

    shuffled = random.Random(7)

    async def impatient(client: HttpClient, url: str) -> None:
        for _ in range(20):
            with trio.move_on_after(shuffled.uniform(0, 0.01)):
                await client.request("GET", url)

    async with served(app, Kinds(bulk=Kind(connections=3))) as (url, client):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(impatient, client, url)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(client.request, "GET", url)


async def test_a_body_that_is_cut_off_leaves_nothing_to_the_garbage_collector() -> None:
    accepted = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        accepted.set()
        await trio.sleep_forever()

    async with raw_server(handler) as url, open_http(Ports()) as http, trio.open_nursery() as nursery:
        # More than the sockets hold: it is cut off in the middle.
        nursery.start_soon(partial(http.bulk.request, "POST", url, content=b"x" * 32_000_000))
        await accepted.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    gc.collect()  # A generator that was left would warn here, and every warning is an error.


async def test_closing_does_not_wait_for_a_silent_server() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with raw_server(handler) as url:
        with trio.fail_after(10), trio.move_on_after(0.05):
            async with open_http(Ports()) as http:
                await http.long_poll.request("GET", url)


def test_errors_are_one_family() -> None:
    for error in (BadUrl, ConnectFailed, TimedOut, ConnectionLost, AnswerTooLarge, WrongLength, BadStatus):
        assert issubclass(error, HttpError)
