"""Handlers behind paths that nobody can guess, over real HTTP."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.errors import FatalWorkerFault
from worker.ports import Ports
from worker.serving import listen, port_of
from worker.testing.certificates import trusting, write_certificate
from worker.webhooks import Webhooks, WebhooksConfig, open_webhooks
from worker.webhooks.server import DETACH_LIMIT


@asynccontextmanager
async def opened() -> AsyncGenerator[tuple[Webhooks, httpx.AsyncClient], None]:
    with trio.fail_after(30):
        async with open_webhooks(Ports(), WebhooksConfig()) as webhooks, httpx.AsyncClient(trust_env=False) as client:
            yield webhooks, client


HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def ask(url: str, headers: bytes = b"") -> trio.SocketStream:
    """A viewer who has sent a request, and reads the answer or does not."""
    parsed = httpx.URL(url)
    stream = await trio.open_tcp_stream(parsed.host, parsed.port or 80)
    await stream.send_all(b"GET " + parsed.raw_path + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    return stream


async def rest_of(stream: trio.SocketStream) -> bytes:
    async with stream:
        return b"".join([chunk async for chunk in stream])


class Shows:
    """Answers with what it was asked for."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = f"{self.name} {scope['path']} {scope['raw_path'].decode()} {scope['query_string'].decode()}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Streams:
    """Sends without end, or waits for ever, and keeps whether it was ended."""

    def __init__(self, *, flood: bool) -> None:
        self.flood = flood
        self.entered = trio.Event()
        self.cleaned_up = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        self.entered.set()
        try:
            while self.flood:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.cleaned_up = True


async def test_a_handler_gets_the_path_below_its_url() -> None:
    async with opened() as (webhooks, client), webhooks.attach(Shows("A")) as url:
        assert (await client.get(url)).text == "A / / "
        assert (await client.get(url.rstrip("/"))).text == "A / / "
        assert (await client.get(f"{url}a%20b/c?d=e")).text == "A /a b/c /a%20b/c d=e"


async def test_a_handler_does_not_learn_its_secret() -> None:
    shows = Shows()
    async with opened() as (webhooks, client), webhooks.attach(shows) as url:
        await client.get(f"{url}x")
        assert httpx.URL(url).path.strip("/") not in str({**shows.scopes[0], "headers": []})


async def test_handlers_have_urls_of_their_own() -> None:
    async with opened() as (webhooks, client), webhooks.attach(Shows("A")) as one, webhooks.attach(Shows("B")) as two:
        assert (await client.get(one)).text.startswith("A")
        assert (await client.get(two)).text.startswith("B")


async def test_a_url_has_at_least_128_random_bits() -> None:
    async with opened() as (webhooks, _):
        secrets = set()
        for _ in range(100):
            async with webhooks.attach(Shows()) as url:
                secrets.add(httpx.URL(url).path.strip("/"))
        assert len(secrets) == 100
        assert all(len(secret) * 6 >= 128 for secret in secrets)


@pytest.mark.parametrize("path", ["/", "//", "/nothing/", "/%2e%2e/", "/healthz/x"])
async def test_other_paths_are_not_found(path: str) -> None:
    async with opened() as (webhooks, client), webhooks.attach(Shows()) as url:
        base = url[: url.index("/", 8)]
        assert (await client.get(base + path)).status_code == 404
        assert (await client.get(url[:-3])).status_code == 404


async def test_healthz() -> None:
    async with opened() as (webhooks, client), webhooks.attach(Shows()) as url:
        assert (await client.get(f"{url[: url.index('/', 8)]}/healthz")).status_code == 200


async def test_readyz_tells_whether_others_can_reach_the_worker() -> None:
    async with opened() as (webhooks, client), webhooks.attach(Shows()) as url:
        address = f"{url[: url.index('/', 8)]}/readyz"
        assert (await client.get(address)).status_code == 200
        webhooks.trouble("the tunnel is down")
        answer = await client.get(address)
        assert (answer.status_code, answer.text) == (503, "the tunnel is down\n")
        webhooks.trouble("")
        assert (await client.get(address)).status_code == 200


async def test_who_is_attached_is_told_another_base_url_and_keeps_the_secret() -> None:
    webhooks = Webhooks(Ports(), "https://one.example")
    told: list[str] = []
    async with webhooks.attach(Shows(), moved=told.append) as url, webhooks.attach(Shows()):
        webhooks.at("https://one.example")
        assert told == []
        webhooks.at("https://two.example/w")
        assert told == [url.replace("one.example", "two.example/w")]
        async with webhooks.attach(Shows()) as later:
            assert later.startswith("https://two.example/w/")
    webhooks.at("https://three.example")
    assert len(told) == 1


async def test_with_a_certificate_urls_are_https(tmp_path: Path) -> None:
    tls = write_certificate(tmp_path)
    with trio.fail_after(30):
        async with (
            open_webhooks(Ports(), WebhooksConfig(tls=tls)) as webhooks,
            httpx.AsyncClient(trust_env=False, verify=trusting(tls)) as client,
            webhooks.attach(Shows("A")) as url,
        ):
            assert url.startswith("https://127.0.0.1:")
            assert (await client.get(url)).text == "A / / "


async def test_a_certificate_of_no_use_is_told(tmp_path: Path) -> None:
    tls = write_certificate(tmp_path, password="swordfish")
    with pytest.raises(FatalWorkerFault, match=f"webhooks.tls: {tls.key}: is encrypted"):
        async with open_webhooks(Ports(), WebhooksConfig(tls=tls)):
            pass


async def test_after_detaching_the_path_is_gone() -> None:
    async with opened() as (webhooks, client):
        async with webhooks.attach(Shows()) as url:
            assert (await client.get(url)).status_code == 200
        assert (await client.get(url)).status_code == 404


@pytest.mark.parametrize("flood", [True, False])
async def test_detaching_ends_open_requests_and_waits_for_them(flood: bool) -> None:
    """Also that of a client which never reads: with `flood` the handler hangs in a send."""
    handler = Streams(flood=flood)
    async with opened() as (webhooks, client):
        async with webhooks.attach(handler) as url:
            viewer = await ask(url)
            await handler.entered.wait()
            began = trio.current_time()
        assert handler.cleaned_up
        assert trio.current_time() - began < 2
        async with viewer, webhooks.attach(Shows()) as other:
            assert (await client.get(other)).status_code == 200


async def test_a_viewer_sees_that_an_answer_was_broken_off() -> None:
    handler = Streams(flood=False)
    async with opened() as (webhooks, _):
        async with webhooks.attach(handler) as url:
            viewer = await ask(url)
            await handler.entered.wait()
        answer = await rest_of(viewer)
        assert answer.endswith(b"begin\r\n")  # and not with the empty chunk that ends an answer


@pytest.mark.parametrize("headers", [b"", HANDSHAKE])
async def test_who_has_no_answer_yet_when_its_handler_is_detached_is_told_that_it_is_gone(
    headers: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.access")
    entered = trio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await trio.sleep_forever()

    async with opened() as (webhooks, _):
        async with webhooks.attach(waits) as url:
            viewer = await ask(url, headers)
            await entered.wait()
        assert (await rest_of(viewer)).startswith(b"HTTP/1.1 404")
    assert " 404 " in caplog.text


async def test_detaching_does_not_wait_for_ever(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def clings(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2 * DETACH_LIMIT)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    webhooks = Webhooks(Ports(), access_log=False)
    async with trio.open_nursery() as nursery:
        async with webhooks.attach(clings) as url:
            scope: Scope = {"type": "http", "raw_path": url.encode(), "path": url}
            nursery.start_soon(webhooks, scope, receive, send)
            await wait_all_tasks_blocked()
        assert trio.current_time() == DETACH_LIMIT
        assert "goes on 5 seconds after" in caplog.text
        nursery.cancel_scope.cancel()


async def test_detaching_under_cancellation_waits_for_handlers_too() -> None:
    handler = Streams(flood=False)
    async with opened() as (webhooks, _):
        with trio.CancelScope() as scope:
            async with webhooks.attach(handler) as url:
                viewer = await ask(url)
                await handler.entered.wait()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert handler.cleaned_up
        await viewer.aclose()


async def test_a_websocket_reaches_its_handler_and_no_other_path() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": f"{scope['path']} {(await receive())['text']}"})
        await receive()

    async with opened() as (webhooks, _), webhooks.attach(echo) as url:
        address = url.replace("http:", "ws:")
        async with trio_websocket.open_websocket_url(f"{address}shell") as socket:
            await socket.send_message("hi")
            assert await socket.get_message() == "/shell hi"
        viewer = await ask(f"{url[: url.index('/', 8)]}/guess/", HANDSHAKE)
        assert (await rest_of(viewer)).startswith(b"HTTP/1.1 404")


async def test_a_handlers_bug_stays_its_own_and_the_log_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "worker")

    async def bug(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async with opened() as (webhooks, client), webhooks.attach(bug) as url:
        assert (await client.get(url)).status_code == 500
        async with webhooks.attach(Shows()) as other:
            assert (await client.get(other)).status_code == 200
        ours = [record for record in caplog.records if record.name.startswith("worker")]
        assert ours
        assert not any(httpx.URL(url).path.strip("/") in record.getMessage() for record in ours)


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with open_webhooks(Ports(), WebhooksConfig()):
            raise KeyError


async def test_a_port_that_is_taken_is_told() -> None:
    listeners = await listen("127.0.0.1", 0)
    try:
        port = port_of(listeners)
        with pytest.raises(FatalWorkerFault, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with open_webhooks(Ports(), WebhooksConfig(port=port)):
                pass
    finally:
        await listeners[0].aclose()


@pytest.mark.parametrize(
    ("template", "base"),
    [
        (None, "http://127.0.0.1:81"),
        ("https://worker.example.com:{port}/", "https://worker.example.com:81"),
        ("https://example.com/workers/w1", "https://example.com/workers/w1"),
    ],
)
def test_the_public_url(template: str | None, base: str) -> None:
    assert WebhooksConfig(public_url=template).base_url(81) == base


def test_an_ipv6_address_has_brackets_in_a_url() -> None:
    assert WebhooksConfig(host="::1").base_url(81) == "http://[::1]:81"


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"provider": "nonsense"}, "Input should be 'local'"),
        ({"host": "0.0.0.0"}, "publicUrl must name one"),
        ({"publicUrl": "example.com"}, "must be an http or https URL"),
        ({"publicUrl": "https://example.com/?a=b"}, "must be an http or https URL"),
        ({"port": 65536}, "less than or equal to 65535"),
        ({"limits": {"connections": 0}}, "greater than or equal to 1"),
        ({"limits": {"headerTime": 0}}, "expected more than 0 seconds"),
        ({"limits": {"headers": 0}}, "expected more than 0 bytes"),
        ({"tls": {"certificate": "a.pem"}}, "Field required"),
    ],
)
def test_a_bad_config_is_refused_with_the_reason(document: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        WebhooksConfig.model_validate(document)
