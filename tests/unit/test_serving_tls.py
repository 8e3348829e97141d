"""Serving over TLS: certificates that change, that are wrong, and peers that cannot do it. Real sockets."""

from __future__ import annotations

import re
import ssl
import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import trio
import trio.testing
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.ports import Ports
from worker.serving import (
    BadCertificate,
    ServingLimits,
    TlsConfig,
    listen,
    load_certificate,
    port_of,
    serve,
)
from worker.serving.tls import LOOK
from worker.testing.certificates import trusting, write_certificate

T = TypeVar("T")

FLOOD = b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"
MESSAGES = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
STOP = 2.0  # seconds until a server that is cancelled has ended, whatever its peers do

HTTP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def shows(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": b"x" * 65536})
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@asynccontextmanager
async def serving(config: TlsConfig, app: ASGIApp = shows, **limits: object) -> AsyncGenerator[int, None]:
    listeners = await listen("127.0.0.1", 0)
    certificate = await load_certificate(config, Ports())
    with trio.fail_after(30) as limit:
        async with trio.open_nursery() as nursery:
            limited = ServingLimits.model_validate(limits)
            await nursery.start(partial(serve, app, listeners, limits=limited, tls=certificate))
            yield port_of(listeners)
            limit.deadline = trio.current_time() + STOP
            nursery.cancel_scope.cancel()


async def ask(port: int, config: TlsConfig) -> str:
    async with httpx.AsyncClient(verify=trusting(config), trust_env=False) as client:
        return (await client.get(f"https://127.0.0.1:{port}/")).text


async def connect(port: int, config: TlsConfig) -> trio.SSLStream[trio.SocketStream]:
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trusting(config))
    await stream.do_handshake()
    return stream


async def test_https(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    async with serving(config) as port:
        assert await ask(port, config) == "https"


async def test_changed_files_are_taken_for_new_connections_and_others_stay(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    async with serving(config) as port:
        earlier = await connect(port, config)
        old = config.certificate.read_bytes()
        write_certificate(tmp_path)
        assert config.certificate.read_bytes() != old
        while not await _accepted(port, config):
            pass  # nothing tells from outside when the files are looked at
        await earlier.send_all(HTTP)
        assert (await earlier.receive_some()).startswith(b"HTTP/1.1 200")
        await trio.aclose_forcefully(earlier)


async def _accepted(port: int, config: TlsConfig) -> bool:
    try:
        return await ask(port, config) == "https"
    except httpx.ConnectError:
        return False


async def test_files_of_no_use_leave_the_old_certificate_in_force(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_certificate(tmp_path)
    certificate = await load_certificate(config, _Inline())
    first = await certificate.current()
    good = config.certificate.read_bytes()
    config.certificate.write_bytes(good[: len(good) // 2])
    for _ in range(10):
        await trio.sleep(LOOK)
        assert await certificate.current() is first
    assert len(caplog.records) == 1
    assert str(config.certificate) in caplog.text
    write_certificate(tmp_path)
    await trio.sleep(LOOK)
    assert await certificate.current() is not first


class _Inline(Ports):
    """Virtual time does not wait for threads."""

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        return function(*args)


async def test_files_are_looked_at_once_a_second_at_most(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    config = write_certificate(tmp_path)
    certificate = await load_certificate(config, _Inline())
    first = await certificate.current()
    write_certificate(tmp_path)
    assert await certificate.current() is first
    await trio.sleep(LOOK)
    assert await certificate.current() is not first


class _Slow(_Inline):
    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        await trio.sleep(1)
        return function(*args)


@pytest.mark.parametrize("seconds", [0.5, 1.5])
async def test_files_are_looked_at_again_when_the_connection_that_looked_has_ended(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    config = write_certificate(tmp_path)
    certificate = await load_certificate(config, _Slow())
    first = await certificate.current()
    write_certificate(tmp_path)
    await trio.sleep(LOOK)
    with trio.move_on_after(seconds):
        await certificate.current()
    await trio.sleep(LOOK)
    assert await certificate.current() is not first


def _missing(config: TlsConfig) -> str:
    config.key.unlink()
    return f"{config.key}: cannot be read: No such file"


def _a_folder(config: TlsConfig) -> str:
    config.certificate.unlink()
    config.certificate.mkdir()
    return f"{config.certificate}: cannot be read: Is a directory"


def _other_key(config: TlsConfig) -> str:
    mine = config.certificate.read_bytes()
    write_certificate(config.certificate.parent)
    config.certificate.write_bytes(mine)
    return f"{config.key}: is not the key of {config.certificate}"


def _encrypted(config: TlsConfig) -> str:
    write_certificate(config.certificate.parent, password="swordfish")
    return f"{config.key}: is encrypted"


def _swapped(config: TlsConfig) -> str:
    config.certificate.write_bytes(config.key.read_bytes())
    return f"{config.certificate}: has no certificate"


def _no_key(config: TlsConfig) -> str:
    config.key.write_bytes(config.certificate.read_bytes())
    return f"{config.key}: has no private key"


def _half(config: TlsConfig) -> str:
    config.key.write_bytes(config.key.read_bytes()[:60])
    return str(config.key)


@pytest.mark.parametrize("spoil", [_missing, _a_folder, _other_key, _encrypted, _swapped, _no_key, _half])
async def test_bad_files_are_told_by_name(tmp_path: Path, spoil: Callable[[TlsConfig], str]) -> None:
    config = write_certificate(tmp_path)
    told = spoil(config)
    with pytest.raises(BadCertificate, match=re.escape(told)):
        await load_certificate(config, Ports())


async def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    old = trusting(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(config) as port:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=old)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("sent", [HTTP, b"\x16\x03\x01\xff\xff" + b"\0" * 70000, b"\xff" * 100])
async def test_a_peer_that_cannot_do_tls_ends_only_itself(tmp_path: Path, sent: bytes) -> None:
    config = write_certificate(tmp_path)
    async with serving(config) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
            while await stream.receive_some():
                pass
        assert await ask(port, config) == "https"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_is_not_finished_holds_up_nobody(tmp_path: Path, sent: bytes) -> None:
    config = write_certificate(tmp_path)
    async with serving(config, header_time=0.2) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(sent)
        assert await ask(port, config) == "https"
        assert await stream.receive_some() == b""


async def test_a_handshake_under_way_does_not_hold_up_the_end(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    async with serving(config) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"\x16\x03\x01")
        assert await ask(port, config) == "https"
    await stream.aclose()


@pytest.mark.parametrize("request_", [FLOOD, MESSAGES], ids=["http", "websocket"])
async def test_a_client_that_never_reads_does_not_hold_up_the_end(tmp_path: Path, request_: bytes) -> None:
    config = write_certificate(tmp_path)
    async with serving(config) as port:
        stream = await connect(port, config)
        await stream.send_all(request_)
        await trio.testing.wait_all_tasks_blocked(0.05)  # all buffers are full
        assert await ask(port, config) == "https"
    await trio.aclose_forcefully(stream)


async def test_an_application_that_is_cancelled_while_it_sends_is_gone_at_once(tmp_path: Path) -> None:
    config = write_certificate(tmp_path)
    scope = trio.CancelScope()
    left = trio.Event()

    async def cancellable(asgi: Scope, receive: Receive, send: Send) -> None:
        with scope:
            await shows(asgi, receive, send)
        left.set()

    async with serving(config, cancellable) as port:
        stream = await connect(port, config)
        await stream.send_all(FLOOD)
        await trio.testing.wait_all_tasks_blocked(0.05)
        scope.cancel()
        with trio.fail_after(STOP):
            await left.wait()
            with suppress(trio.BrokenResourceError):  # as it was broken off
                while await stream.receive_some():
                    pass
        await trio.aclose_forcefully(stream)


async def test_an_answer_to_a_request_that_is_too_large_arrives(tmp_path: Path) -> None:
    """Although the rest of the request is on its way: the socket is not closed over it."""
    config = write_certificate(tmp_path)
    async with serving(config, request_body=1000) as port:
        stream = await connect(port, config)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
                    await stream.send_all(b"x" * 5_000_000)

            nursery.start_soon(send)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)
