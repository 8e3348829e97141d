"""Through a websocktunnel server, for a worker that nobody can connect to (facts page, section 5)."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Final, Literal, Protocol

import httpx
import trio

from worker.errors import FatalWorkerFault
from worker.ports import Ports
from worker.queue.errors import QueueError, Unavailable
from worker.webhooks.mux import Mux, MuxStream
from worker.webhooks.providers import Outside
from worker.webhooks.tunnelconfig import WebsocktunnelConfig, next_wait
from worker.webhooks.tunnelsocket import Refused, Unreachable, open_websocket
from worker.webhooks.wsmux import Limits, Role

log = logging.getLogger(__name__)

RENEW_BEFORE: Final = timedelta(minutes=10)  # a token that ends sooner is not used for a connection any more
TOKEN: Final = re.compile(r"[A-Za-z0-9_.-]+")

CLIENT_URL: Final = b"x-websocktunnel-client-url"

REMEDIES: Final[Mapping[int, str]] = MappingProxyType(
    {
        400: "choose another webhooks.websocktunnel.clientId",
        401: "check webhooks.websocktunnel.audience, the clocks, and that server and auth service share a secret",
        404: "check that webhooks.websocktunnel.url is the one of a websocktunnel server",
    }
)

Scheme = Literal["http", "https"]


class Token(Protocol):
    """What auth.websocktunnelToken gives."""

    @property
    def token(self) -> str: ...
    @property
    def expires(self) -> datetime: ...


FetchToken = Callable[[str, str], Awaitable[Token]]
"""auth.websocktunnelToken, by audience and client id. Raises `QueueError`."""

ServeStream = Callable[[trio.abc.Stream, Scheme], Awaitable[None]]


class GivenUp(Exception):
    """Another attempt would not be any better. The text has the remedy."""


class Websocktunnel:
    """The provider.

    The worker is known to the server as `client_id`, and may have `max_streams` exchanges at once, each of which is a
    stream for `serve`.
    """

    def __init__(
        self,
        ports: Ports,
        config: WebsocktunnelConfig,
        client_id: str,
        fetch_token: FetchToken,
        serve: ServeStream,
        max_streams: int,
    ) -> None:
        self._ports = ports
        self._config = config
        self._client_id = client_id
        self._fetch_token = fetch_token
        self._serve = serve
        self._max_streams = max_streams
        self._url = config.websocket_url
        self._token: Token | None = None
        self._streams = 0
        self._has_started = False
        self._connected_at = inf
        self._given_up = ""
        self._trouble = ""
        self._settled = trio.Event()  # connected, or given up

    async def run(self, outside: Outside, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `providers.Provider`: while there is no connection, URLs are those that are most likely.

        Started with the first connection, or `connect_within` later without one. Raises FatalWorkerFault where the
        server, or the auth service, refuses the worker before that. When it is refused later, this is logged, and it
        ends.
        """
        outside.at(self._config.likely_base(self._client_id))
        outside.trouble("the tunnel has not been connected yet")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stay_connected, outside, nursery)
            within = self._config.connect_within.total_seconds()
            with trio.move_on_after(within) as waiting:
                await self._settled.wait()
            refused = self._given_up
            if waiting.cancelled_caught:
                log.warning("webhooks: no tunnel within %g s; the worker starts without it", within)
            if not refused:
                self._has_started = True
                task_status.started()
        if refused:
            raise FatalWorkerFault(f"webhooks: the tunnel at {self._url.netloc.decode()}: {refused}")

    async def _stay_connected(self, outside: Outside, exchanges: trio.Nursery) -> None:
        """Exchanges run in `exchanges`: they are not waited for when a connection ends."""
        wait = 0.0
        while True:
            self._connected_at = inf
            try:
                reason = await self._connect(outside, exchanges)
            except GivenUp as error:
                self._given_up = str(error)
                self._tell(outside, self._given_up, logging.ERROR)
                self._settled.set()
                return
            self._tell(outside, f"{reason}; it is tried again", logging.WARNING)
            # One that ends soon must not be followed by the next at once: two workers of one id end each other's.
            if trio.current_time() - self._connected_at > self._config.reconnect.longest.total_seconds():
                wait = 0.0
            wait = next_wait(wait, self._config.reconnect, self._ports.random.random())
            await trio.sleep(wait)

    async def _connect(self, outside: Outside, exchanges: trio.Nursery) -> str:
        """One connection; returns why it has ended, or has not come about. Raises `GivenUp`."""
        try:
            try:
                return await self._attempt(outside, exchanges)
            except Refused as error:
                if error.status != 401:
                    raise
            self._token = None  # it may have expired by that server's clock
            return await self._attempt(outside, exchanges)
        except Unreachable as error:
            return str(error)
        except Refused as error:
            # Later an answer that is no refusal is that of something before the server, which may pass.
            if error.status >= 500 or (self._has_started and error.status < 400):
                return str(error)
            raise GivenUp(f"{error}; {REMEDIES.get(error.status, REMEDIES[404])}") from None
        except QueueError as error:
            # Later it is tried again as claims are: the client may get its scopes back.
            if isinstance(error, Unavailable) or self._has_started:
                return str(error)
            scope = self._config.scope(self._client_id)
            raise GivenUp(f"no token: {error}; the worker's client needs the scope {scope}") from None

    async def _attempt(self, outside: Outside, exchanges: trio.Nursery) -> str:
        token = await self._usable_token()
        headers = [(b"Authorization", f"Bearer {token}".encode()), (b"x-websocktunnel-id", self._client_id.encode())]
        async with open_websocket(self._ports, self._url, headers, Limits().max_frame) as websocket:
            base = granted_url(websocket.handshake_headers)
            outside.at(str(base).rstrip("/"))
            self._tell(outside, "", logging.INFO)
            self._settled.set()
            self._connected_at = trio.current_time()
            mux = Mux(websocket, Role.CLIENT, ping_interval=self._config.ping_interval.total_seconds())
            return await mux.run(partial(self._offered, "https" if base.scheme == "https" else "http", exchanges))

    async def _usable_token(self) -> str:
        if self._token is None or self._token.expires - self._ports.now() < RENEW_BEFORE:
            token = await self._fetch_token(self._config.audience, self._client_id)
            if not TOKEN.fullmatch(token.token):
                raise Unreachable("the auth service gave what is no token")
            self._token = token
        return self._token.token

    def _offered(self, scheme: Scheme, exchanges: trio.Nursery, stream: MuxStream) -> None:
        if self._streams >= self._max_streams:
            stream.abandon()
            return
        self._streams += 1
        exchanges.start_soon(self._exchange, stream, scheme)

    async def _exchange(self, stream: MuxStream, scheme: Scheme) -> None:
        try:
            await self._serve(stream, scheme)
        finally:
            self._streams -= 1
            stream.abandon()

    def _tell(self, outside: Outside, trouble: str, level: int) -> None:
        """Once, until it is another one."""
        if trouble != self._trouble:
            log.log(level, "webhooks: the tunnel at %s: %s", self._url.netloc.decode(), trouble or "connected")
        self._trouble = trouble
        # Anybody may ask for it, and the auth service's words name clients and scopes: these are in the log alone.
        outside.trouble("no tunnel" if trouble else "")


def granted_url(headers: Sequence[tuple[bytes, bytes]]) -> httpx.URL:
    """The URL by which others reach us, from the answer to the handshake. Raises `GivenUp` where there is none."""
    values = [value for name, value in headers if name.lower() == CLIENT_URL]
    try:
        (text,) = values
        url = httpx.URL(text.decode("ascii"))
    except (ValueError, httpx.InvalidURL):
        url = httpx.URL()
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment or url.userinfo:
        raise GivenUp(f"its answer has no {CLIENT_URL.decode()} that could be used; {REMEDIES[404]}")
    return url
