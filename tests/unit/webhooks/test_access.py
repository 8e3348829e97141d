"""The access log: what it tells of an exchange, and what it never does."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import trio
import trio.testing
import trio_websocket
from starlette.types import Message, Receive, Scope, Send

from worker.ports import Ports
from worker.serving import PeerGone
from worker.webhooks import Webhooks, WebhooksConfig, open_webhooks
from worker.webhooks.access import BURST, RATE, AccessLog

HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)


@asynccontextmanager
async def opened(**config: object) -> AsyncGenerator[tuple[Webhooks, httpx.AsyncClient], None]:
    with trio.fail_after(30):
        document = WebhooksConfig.model_validate(config)
        async with open_webhooks(Ports(), document) as webhooks, httpx.AsyncClient(trust_env=False) as client:
            yield webhooks, client


async def handler(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": b"12345"})
        await receive()
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"123", "more_body": True})
    if scope["path"] == "/bug":
        raise RuntimeError("a bug")
    await send({"type": "http.response.body", "body": b"45"})


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "worker.access"]


def secret_of(url: str) -> str:
    return httpx.URL(url).path.strip("/")


async def exchange(url: str, head: str) -> bytes:
    """One request as it is written here, and all that comes back."""
    parsed = httpx.URL(url)
    async with await trio.open_tcp_stream(parsed.host, parsed.port or 80) as stream:
        await stream.send_all(f"{head}\r\nHost: x\r\n\r\n".encode())
        return b"".join([chunk async for chunk in stream])


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def test_a_line_tells_peer_method_path_status_bytes_and_time(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (webhooks, client), webhooks.attach(handler) as url:
        await client.get(f"{url}events?token=swordfish", headers={"Cookie": "shibboleth"})
        await client.get(f"{url[: url.index('/', 8)]}/healthz")
    log, health = lines(caplog)
    client_address, method, path, *rest = log.split()
    assert client_address.startswith("127.0.0.1:")
    assert (method, path) == ("GET", "/***/events?...")
    assert rest[:3] == ["200", "5", "bytes,"]
    assert float(rest[3]) < 30
    assert health.split()[1:4] == ["GET", "/healthz", "200"]


async def test_no_secret_is_in_any_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Of handlers that are, that were, that somebody guesses; in the path, the query, as a whole URL, in garbage."""
    secrets = ["swordfish"]
    async with opened() as (webhooks, client):
        async with webhooks.attach(handler) as url:
            secrets.append(secret_of(url))
            await exchange(url, f"GET {url}bug?swordfish HTTP/1.1")
            await exchange(url, f"GET {url}{secrets[1]}/bug HTTP/1.1\r\nConnection: close")
            async with webhooks.attach(handler) as other:
                secrets.append(secret_of(other))
                await exchange(url, f"GET {url}events/%41{secrets[2]} HTTP/1.1\r\nConnection: close")
        await client.get(url)
        await client.get(f"{url[: url.index('/', 8)]}/swordfish/swordfish?swordfish")
        for line in (f"GET {url} HTTP/1.1", f"G\x01T {url}", f"GET {url} HTTP/7.1", f"CONNECT {secrets[1]}:1 HTTP/1.1"):
            await exchange(url, f"{line}\r\nBad header swordfish")
    out, err = capfd.readouterr()
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    told = "\n".join([out, err, *(logging.Formatter().format(record) for record in ours)])
    assert "/***" in told
    for secret in secrets:
        assert secret not in told


async def test_a_websocket_has_the_code_that_closed_it(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (webhooks, _), webhooks.attach(handler) as url:
        address = url.replace("http:", "ws:")
        async with trio_websocket.open_websocket_url(address) as socket:
            assert await socket.get_message() == b"12345"
            await socket.aclose(code=4001)
        await exchange(url, f"GET {url[:-3]} HTTP/1.1\r\n{HANDSHAKE}")
    log, refused = lines(caplog)
    assert log.split()[1:6] == ["websocket", "/***/", "101", "5", "bytes,"]
    assert "closed with 4001" in log
    assert refused.split()[1:4] == ["websocket", "/***", "404"]


async def test_an_answer_that_was_broken_off_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (webhooks, _), webhooks.attach(handler) as url:
        await exchange(url, f"GET {url}bug HTTP/1.1")
    assert "200 3 bytes, broken off" in lines(caplog)[0]


@pytest.mark.parametrize("error", [PeerGone(), ExceptionGroup("of a nursery", [PeerGone()])])
async def test_who_goes_before_the_answer_has_no_status(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    async def sends(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    with suppress(PeerGone, ExceptionGroup):
        await ask(AccessLog(sends, shown))
    assert "GET / - 0 bytes, broken off" in lines(caplog)[0]


async def test_a_bug_before_the_answer_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async with opened() as (webhooks, client), webhooks.attach(fails) as url:
        assert (await client.get(url)).status_code == 500
    assert "500 0 bytes, broken off" in lines(caplog)[0]


async def test_it_can_be_off(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(accessLog=False) as (webhooks, client), webhooks.attach(handler) as url:
        assert (await client.get(url)).status_code == 200
    assert lines(caplog) == []


async def nothing() -> Message:
    raise AssertionError


async def drop(message: Message) -> None:
    pass


async def ask(log: AccessLog, path: bytes = b"/") -> None:
    scope = {"type": "http", "method": "GET", "raw_path": path, "query_string": b"", "client": ("::1", 5), "path": "/"}
    await log(scope, nothing, drop)


def shown(path: bytes) -> str:
    return path.decode("latin1")


async def test_a_flood_of_requests_is_no_flood_of_lines(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    log = AccessLog(handler, shown)
    for _ in range(3 * BURST):
        await ask(log)
    assert len(lines(caplog)) == BURST
    caplog.clear()
    await trio.sleep(1 / RATE)
    await ask(log)
    assert lines(caplog)[0] == f"{2 * BURST} exchanges are not listed: they were too many"
    assert lines(caplog)[1].startswith("[::1]:5 GET")


async def test_control_characters_and_long_paths_are_tamed(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(handler, shown)
    await ask(log, b"/a\nb\x1b[31m\xff")
    await ask(log, b"/" + b"x" * 10_000)
    tamed, long = lines(caplog)
    assert r"/a\x0ab\x1b[31m\xff" in tamed
    assert len(long) < 300
