"""A tunnel server, a link to it, and a worker's web server behind both, over real sockets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio
from starlette.types import Receive, Scope, Send

from worker.ports import Ports
from worker.testing.link import Link, open_link
from worker.testing.tunnel import TunnelAuth, TunnelServer, open_tunnel_server
from worker.webhooks import Webhooks, WebhooksConfig, open_webhooks

NAME = "local.w1.webhooks"
AUDIENCE = "tests"
LIMIT = 60.0  # seconds, against tests that hang


class App:
    """Answers by path, and keeps what happened."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.said = trio.Event()
        self.left = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        try:
            if scope["type"] == "websocket":
                await self._echo(scope, receive, send)
            else:
                await getattr(self, f"_{scope['path'].strip('/')}")(scope, receive, send)
        finally:
            self.left.set()

    async def _hello(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, f"{scope['scheme']} {scope['path']} {scope['query_string'].decode()}".encode())

    async def _digest(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with the hash of the body."""
        digest = hashlib.sha256()
        while True:
            message = await receive()
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break
        await respond(send, digest.hexdigest().encode())

    async def _bytes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As many bytes as the query says."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in pattern(int(scope["query_string"])):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    async def _both(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the body back while it comes."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})

    async def _wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begins an answer, and waits for the viewer to go."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _say(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends as many bytes as the query says, and does not end."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in pattern(int(scope["query_string"])):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self.said.set()
        await trio.sleep_forever()

    async def _flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def respond(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def pattern(size: int) -> list[bytes]:
    """`size` bytes that are the same every time, and of which no two places look the same."""
    chunks, number = [], 0
    while size:
        chunk = b"".join(hashlib.sha256(f"{number} {i}".encode()).digest() for i in range(2048))[:size]
        chunks.append(chunk)
        size -= len(chunk)
        number += 1
    return chunks


def dechunked(answer: bytes) -> bytes:
    """The body of an answer that came in chunks."""
    body, rest = [], answer.partition(b"\r\n\r\n")[2]
    while rest:
        length, _, rest = rest.partition(b"\r\n")
        body.append(rest[: int(length, 16)])
        rest = rest[int(length, 16) + 2 :]
    return b"".join(body)


@dataclass
class World:
    """What a test has. Viewers ask the server; the worker reaches it by the link."""

    server: TunnelServer
    link: Link
    auth: TunnelAuth
    webhooks: Webhooks
    viewer: httpx.AsyncClient

    async def wait_connected(self) -> None:
        """Until the worker is connected."""
        while NAME.encode() not in self.server.tunnels:
            await self.server.connected.wait()

    async def wait_connected_again(self) -> None:
        """Until it has a connection that it has not now."""
        await self.server.connected.wait()

    async def readiness(self) -> str:
        """What GET /readyz says, asked as an application, since nobody can reach it from outside."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.webhooks)) as client:
            return (await client.get("http://x/readyz")).text.strip()


def tunnel_config(port: int, **changes: Any) -> WebhooksConfig:
    """A config with a tunnel; `changes` are of `websocktunnel`, and `limits` and `host` of the whole."""
    whole = {key: changes.pop(key) for key in ("limits", "port") if key in changes}
    tunnel = {
        "url": f"http://127.0.0.1:{port}",
        "audience": AUDIENCE,
        "reconnect": {"first": "100 ms", "longest": "1 s"},
        **changes,
    }
    return WebhooksConfig.model_validate({"provider": "websocktunnel", "websocktunnel": tunnel, **whole})


@asynccontextmanager
async def open_server() -> AsyncGenerator[tuple[TunnelServer, Link, TunnelAuth], None]:
    """A tunnel server and a link to it, without a worker."""
    with trio.fail_after(LIMIT):
        async with open_tunnel_server(secret="s" * 20, audience=AUDIENCE) as server, open_link(server.port) as link:
            yield server, link, TunnelAuth(server)


@asynccontextmanager
async def open_world(ports: Ports | None = None, **changes: Any) -> AsyncGenerator[World, None]:
    """All of it. `changes` are those of `tunnel_config`."""
    async with (
        open_server() as (server, link, auth),
        open_webhooks(ports or Ports(), tunnel_config(link.port, **changes), auth, NAME) as webhooks,
        httpx.AsyncClient(trust_env=False, timeout=60) as viewer,
    ):
        yield World(server, link, auth, webhooks, viewer)
