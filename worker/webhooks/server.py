"""One web server for all runs: each handler has a path of its own that nobody can guess."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.errors import FatalWorkerFault
from worker.ports import Ports
from worker.queue.services import Auth
from worker.serving import BadCertificate, listen, load_certificate, port_of, serve, serve_connection
from worker.webhooks.access import AccessLog
from worker.webhooks.config import WebhooksConfig
from worker.webhooks.providers import Local, Provider
from worker.webhooks.statelessdns import StatelessDns
from worker.webhooks.websocktunnel import Scheme, Websocktunnel

ASGIHandler = ASGIApp
Moved = Callable[[str], None]

SECRET_OCTETS = 32
DETACH_LIMIT = 5.0  # seconds for the cleanup of cancelled handlers

log = logging.getLogger(__name__)


class _Attachment:
    """A handler under its secret, and the requests of it that are open."""

    def __init__(self, secret: str, handler: ASGIHandler, moved: Moved | None) -> None:
        self.secret = secret.encode()
        self.handler = handler
        self.moved = moved
        self._open: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Generator[trio.CancelScope, None, None]:
        """Around the handler's work for one request; `end` cancels it."""
        scope = trio.CancelScope()
        if not self._open:
            self._idle = trio.Event()
        self._open.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._open.remove(scope)
            if not self._open:
                self._idle.set()

    async def end(self) -> None:
        """Cancel the open requests and wait until their handlers have returned."""
        for scope in self._open:
            scope.cancel()
        await self._idle.wait()


class Webhooks:
    """Where plugins attach handlers. Whatever has no handler is 404.

    `GET /healthz` answers 200, `GET /readyz` 200 while others can reach it, and 503 while they cannot, with what a
    provider wants anybody to know.
    """

    def __init__(self, ports: Ports, base_url: str = "", *, access_log: bool = True) -> None:
        self._ports = ports
        self._base_url = base_url
        self._trouble = ""
        self._attachments: list[_Attachment] = []
        self._app: ASGIApp = AccessLog(self._answer, self._shown) if access_log else self._answer

    @asynccontextmanager
    async def attach(self, handler: ASGIHandler, *, moved: Moved | None = None) -> AsyncGenerator[str, None]:
        """Serve `handler` (ASGI, http and websocket) for as long as the block lasts; yields its URL, ending in `/`.

        The URL's path holds a secret of 256 bits, so it belongs into no log. The handler's scope has the path below
        the URL, beginning with `/`, and not the secret. When the block ends the path is gone and open requests are
        cancelled and awaited, also under cancellation, for at most 5 s.

        `moved` is called with the new URL when others can no longer, or soon no longer, reach the handler by the one
        that they were told: a tunnel has another name, or a name will expire. It must neither block nor raise.
        """
        attachment = _Attachment(self._ports.token(SECRET_OCTETS), handler, moved)
        self._attachments.append(attachment)
        try:
            yield self._url(attachment)
        finally:
            self._attachments.remove(attachment)
            with trio.move_on_after(DETACH_LIMIT, shield=True) as limit:
                await attachment.end()
            if limit.cancelled_caught:
                log.error("a webhook's handler goes on %g seconds after it was cancelled", DETACH_LIMIT)

    def at(self, base_url: str) -> None:
        """See `providers.Outside`."""
        if base_url == self._base_url:
            return
        self._base_url = base_url
        for attachment in self._attachments:
            if attachment.moved is not None:
                attachment.moved(self._url(attachment))

    def trouble(self, reason: str) -> None:
        """See `providers.Outside`."""
        self._trouble = reason

    def _url(self, attachment: _Attachment) -> str:
        return f"{self._base_url}/{attachment.secret.decode()}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: passes a request on to the handler that its path names."""
        await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path: bytes = scope["raw_path"]
        if raw_path == b"/healthz":
            await _respond(scope, send, 200, b"ok\n")
            return
        if raw_path == b"/readyz":
            await _respond(scope, send, 503 if self._trouble else 200, f"{self._trouble or 'ok'}\n".encode())
            return
        secret, _, below = raw_path.removeprefix(b"/").partition(b"/")
        attachment = self._find(secret)
        if attachment is None:
            await _respond(scope, send, 404, b"not found\n")
            return
        # What the handler need not know it cannot leak. A decoded path begins as the raw one: a secret has no escapes.
        inner = {**scope, "raw_path": b"/" + below, "path": scope["path"][len(secret) + 1 :] or "/"}
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        with attachment.request() as request:
            await attachment.handler(inner, receive, send_noted)
        if request.cancelled_caught and not begun:
            await _respond(scope, send, 404, b"not found\n")

    def _shown(self, raw_path: bytes) -> str:
        """What of a path belongs into a log: no secret, also none that somebody guesses or that is of yesterday."""
        if raw_path in {b"/healthz", b"/readyz"}:
            return raw_path.decode()
        secret, *below = raw_path.removeprefix(b"/").split(b"/")
        if self._find(secret) is None:
            return "/***"
        # A client may join a URL and a path that has the secret already. Whatever is long enough may be one.
        return "/".join(["/***", *("***" if len(each) >= len(secret) else each.decode("latin1") for each in below)])

    def _find(self, secret: bytes) -> _Attachment | None:
        # All are compared, each in constant time, so that timing tells nothing about any of them.
        found = [each for each in self._attachments if hmac.compare_digest(each.secret, secret)]
        return found[0] if found else None


async def _respond(scope: Scope, send: Send, status: int, body: bytes) -> None:
    # A websocket that is refused gets a plain answer too (ASGI, extension `websocket.http.response`).
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        # One answer always fits into the socket's buffer. Many that nobody reads would not, and a connection that is
        # stuck in the middle of one makes no room: so peers who know no secret could keep all others out.
        (b"connection", b"close"),
    ]
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})


@asynccontextmanager
async def open_webhooks(
    ports: Ports, config: WebhooksConfig, auth: Auth | None = None, client_id: str = "worker"
) -> AsyncGenerator[Webhooks, None]:
    """The server, for as long as the block lasts; then its connections are closed at once.

    A tunnel needs `auth`, which gives it tokens, and a `client_id` unless the config has one. Raises
    `FatalWorkerFault` where the server cannot listen, its certificate is of no use, or a tunnel is refused, and what
    the block raises, as it is. A failure of the server, such as of `accept`, cancels the block and comes in an
    exception group.
    """
    try:
        certificate = None if config.tls is None else await load_certificate(config.tls, ports)
    except BadCertificate as error:
        raise FatalWorkerFault(f"webhooks.tls: {error}") from None
    try:
        listeners = await listen(config.host, config.port)
    except OSError as error:
        raise FatalWorkerFault(f"webhooks: cannot listen on {config.host} port {config.port}: {error}") from error
    webhooks = Webhooks(ports, access_log=config.access_log)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, webhooks, listeners, limits=config.limits, tls=certificate))
        try:
            provider = _provider(ports, config, webhooks, port_of(listeners), auth, client_id)
            await nursery.start(provider.run, webhooks)
            yield webhooks
        except Exception as error:  # noqa: BLE001  # raised below, where no nursery wraps it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _provider(
    ports: Ports, config: WebhooksConfig, webhooks: Webhooks, port: int, auth: Auth | None, client_id: str
) -> Provider:
    if config.stateless_dns is not None:
        return StatelessDns(ports, config.stateless_dns, partial(config.url_of, port=port))
    if config.websocktunnel is None:
        return Local(config.base_url(port))
    if auth is None:
        raise FatalWorkerFault("webhooks: a tunnel needs a deployment, whose auth service gives it tokens")

    async def serve_stream(stream: trio.abc.Stream, scheme: Scheme) -> None:
        await serve_connection(webhooks, stream, limits=config.limits, scheme=scheme, client=None)

    return Websocktunnel(
        ports,
        config.websocktunnel,
        config.websocktunnel.client_id or client_id,
        auth.websocktunnel_token,
        serve_stream,
        config.limits.connections,
    )
