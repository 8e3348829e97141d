"""A websocktunnel server for tests (facts page, section 5).

    async with open_tunnel_server(secret="s", audience="a") as server:
        ...  # a worker connects to server.url with a JWT that was signed with "s", and viewers ask server.base_url(ID)

Viewers' requests go to the worker as they are, without the id and with `Connection: close`, since it has to be cut off
of each of them.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import trio
from trio_websocket import WebSocketConnection, wrap_server_stream

from worker.embedded.api_common import sign_jwt
from worker.ports import Ports
from worker.queue.models import WebsocktunnelTokenResponse
from worker.queue.services import Auth
from worker.serving import listen, port_of
from worker.webhooks.mux import PING_INTERVAL, Mux, MuxStream
from worker.webhooks.wsmux import Limits, LocalProtocolError, Role

ID: Final = re.compile(rb"[a-zA-Z0-9_~.%-]+")
BEARER: Final = re.compile(rb"Bearer ([\w.-]+)")
MAX_HEAD: Final = 64 * 1024
CHUNK: Final = 64 * 1024
LAST_CHUNK: Final = b"0\r\n\r\n"


def read_jwt(secret: str, token: str) -> dict[str, Any]:
    """The claims of a JWT. Raises ValueError where it is not one that was signed with `secret`."""
    head, body, signature = token.split(".")
    expected = hmac.digest(secret.encode(), f"{head}.{body}".encode(), "sha256")
    if json.loads(_decode(head)).get("alg") != "HS256" or not hmac.compare_digest(expected, _decode(signature)):
        raise ValueError("another signature")
    claims: dict[str, Any] = json.loads(_decode(body))
    return claims


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a request: its lines, and what came behind them."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    rest: bytes

    def get(self, name: bytes) -> bytes:
        """A header, empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), b"")

    def without_id(self) -> bytes:
        """What the worker gets of it."""
        target = self.target[1:].partition(b"/")[2]
        upgrade = self.get(b"upgrade")
        headers = [each for each in self.headers if upgrade or each[0].lower() != b"connection"]
        if not upgrade:
            headers.append((b"Connection", b"close"))
        lines = [self.method + b" /" + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
        return b"\r\n".join([*lines, b"", b""]) + self.rest


@dataclass
class TunnelServer:
    """What runs, and what it does next; all may be changed at any time."""

    ports: Ports
    secret: str = field(repr=False)
    audience: str
    port: int
    limits: Limits
    ping_interval: float
    prefix: str  # of the URLs that are granted
    pretends: bool = False  # to end what was broken off as if it were whole, as the deployed server does with chunks
    refusals: list[int] = field(default_factory=list)  # statuses for the next workers that connect
    tokens: list[str] = field(default_factory=list, repr=False)  # those that were shown
    tunnels: dict[bytes, Mux] = field(default_factory=dict)
    connected: trio.Event = field(default_factory=trio.Event)  # set and replaced when a worker has connected
    _scopes: dict[bytes, trio.CancelScope] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where workers connect."""
        return f"ws://127.0.0.1:{self.port}"

    def base_url(self, client_id: str) -> str:
        """Where viewers ask."""
        return f"{self.prefix}/{client_id}"

    def token(self, client_id: str, **changes: Any) -> str:
        """What auth.websocktunnelToken would give; `changes` are of the claims."""
        now = self.ports.now().timestamp()
        claims = {"tid": client_id, "aud": self.audience, "iat": now, "nbf": now - 900, "exp": now + 96 * 3600}
        return sign_jwt(claims | changes, self.secret)

    def drop(self, client_id: str) -> None:
        """Close the worker's connection."""
        self._scopes[client_id.encode()].cancel()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve a worker or a viewer, to its end."""
        try:
            try:
                head = await _read_head(stream)
            except ValueError:
                await _answer(stream, 400)
                return
            if head is None:
                return
            client_id = head.get(b"x-websocktunnel-id")
            if client_id and head.target == b"/":
                await self._register(stream, head, client_id)
            else:
                await self._view(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever it was has gone
        finally:
            await trio.aclose_forcefully(stream)

    # Workers

    async def _register(self, stream: trio.SocketStream, head: Head, client_id: bytes) -> None:
        if status := self._refusal(head, client_id):
            await _answer(stream, status)
            return
        if before := self._scopes.get(client_id):
            before.cancel()
        try:
            with trio.CancelScope() as self._scopes[client_id]:
                async with trio.open_nursery() as nursery:
                    request = await wrap_server_stream(
                        nursery, _Again(head, stream), max_message_size=self.limits.max_frame, receive_buffer_size=CHUNK
                    )
                    url = self.base_url(client_id.decode()).encode()
                    websocket = await request.accept(extra_headers=[(b"x-websocktunnel-client-url", url)])
                    await self._serve(websocket, client_id)
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has gone

    async def _serve(self, websocket: WebSocketConnection, client_id: bytes) -> None:
        mux = self.tunnels[client_id] = Mux(websocket, Role.SERVER, self.limits, self.ping_interval)
        self.connected.set()
        self.connected = trio.Event()
        try:
            await mux.run(MuxStream.abandon)  # a worker has nothing to ask for
        finally:
            if self.tunnels[client_id] is mux:
                del self.tunnels[client_id]

    def _refusal(self, head: Head, client_id: bytes) -> int:
        token = BEARER.fullmatch(head.get(b"authorization"))
        if not ID.fullmatch(client_id) or token is None:
            return 400
        self.tokens.append(token[1].decode())
        if self.refusals:
            return self.refusals.pop(0)
        now = self.ports.now().timestamp()
        try:
            claims = read_jwt(self.secret, token[1].decode())
            right = (claims["tid"], claims["aud"]) == (client_id.decode(), self.audience)
            return 0 if right and claims["nbf"] <= now < claims["exp"] else 401
        except (ValueError, KeyError, TypeError):
            return 401

    # Viewers

    async def _view(self, viewer: trio.SocketStream, head: Head) -> None:
        mux = self.tunnels.get(head.target[1:].partition(b"/")[0])
        if mux is None:
            await _answer(viewer, 504)
            return
        try:
            stream = await mux.open()
        except LocalProtocolError:
            await _answer(viewer, 503)  # as many are open as are allowed
            return
        chunks = _WholeChunks() if self.pretends else None
        async with stream:
            await stream.send_all(head.without_id())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, viewer, stream, nursery)
                nursery.start_soon(_pump, stream, viewer, nursery, chunks)


class _WholeChunks:
    """Passes on an answer in whole chunks, if it is chunked: so that it can be ended as if it were whole."""

    def __init__(self) -> None:
        self._held = b""
        self._chunked: bool | None = None  # not known before the headers are there
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now."""
        self._held += data
        done = 0
        if self._chunked is None:
            head = self._held.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            if len(head) > len(self._held):
                return b""
            self._chunked = b"transfer-encoding: chunked" in head.lower()
            done = len(head)
        if self._chunked:
            while (line := self._held.find(b"\r\n", done)) >= 0:
                size = int(self._held[done:line], 16)
                if len(self._held) < line + size + 4:
                    break
                done = line + size + 4
                self._ended = not size
        else:
            done = len(self._held)
        ready, self._held = self._held[:done], self._held[done:]
        return ready

    def end(self) -> bytes:
        """What makes it look whole."""
        return LAST_CHUNK if self._chunked and not self._ended else b""


async def _pump(
    source: trio.abc.ReceiveStream,
    sink: trio.abc.HalfCloseableStream,
    nursery: trio.Nursery,
    chunks: _WholeChunks | None = None,
) -> None:
    """Carry bytes until one of both has gone, which cancels `nursery`; with `chunks` a broken answer looks whole."""
    try:
        try:
            while data := await source.receive_some(CHUNK):
                await sink.send_all(chunks.feed(bytes(data)) if chunks else data)
        except trio.BrokenResourceError:
            if chunks is None:
                raise
        if chunks is not None:
            await sink.send_all(chunks.end())
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        nursery.cancel_scope.cancel()


class TunnelAuth(Auth):
    """Gives the tokens that `server` takes, each for `lifetime` seconds."""

    # There is no deployment behind it, so the constructor of the real one is left out.
    def __init__(self, server: TunnelServer, lifetime: float = 96 * 3600.0) -> None:
        self.server = server
        self.lifetime = lifetime
        self.given = 0
        self.refusals: list[Exception] = []  # for the next calls

    async def websocktunnel_token(self, audience: str, client: str) -> WebsocktunnelTokenResponse:
        """See `Auth`."""
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop(0)
        self.given += 1
        expires = self.server.ports.now() + timedelta(seconds=self.lifetime)
        token = self.server.token(client, aud=audience, exp=expires.timestamp(), jti=self.given)
        return WebsocktunnelTokenResponse(expires=expires, token=token, wst_audience=audience, wst_client=client)


class _Again(trio.abc.Stream):
    """The stream from its beginning, which was read already."""

    def __init__(self, head: Head, stream: trio.SocketStream) -> None:
        lines = [
            head.method + b" " + head.target + b" HTTP/1.1",
            *(name + b": " + value for name, value in head.headers),
        ]
        self._unread = b"\r\n".join([*lines, b"", b""]) + head.rest
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _read_head(stream: trio.SocketStream) -> Head | None:
    """None where it ends before that, or is too long. Raises ValueError where the first line is no request's."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(CHUNK)
        if not more or len(data) > MAX_HEAD:
            return None
        data += more
    text, _, rest = data.partition(b"\r\n\r\n")
    request, *lines = text.split(b"\r\n")
    method, target, _ = request.split(b" ", 2)
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return Head(method, target, headers, rest)


async def _answer(stream: trio.SocketStream, status: int) -> None:
    await stream.send_all(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


@asynccontextmanager
async def open_tunnel_server(
    ports: Ports | None = None,
    *,
    secret: str,
    audience: str,
    limits: Limits | None = None,
    ping_interval: float = PING_INTERVAL,
) -> AsyncGenerator[TunnelServer, None]:
    """A server on a free port of loopback, for as long as the block lasts."""
    listeners = await listen("127.0.0.1", 0)
    port = port_of(listeners)
    prefix = f"http://127.0.0.1:{port}"
    server = TunnelServer(ports or Ports(), secret, audience, port, limits or Limits(), ping_interval, prefix)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.handle, listeners)
        yield server
        nursery.cancel_scope.cancel()
