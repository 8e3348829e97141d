"""One connection on any stream: when its peer is late, what then, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Literal, cast

import trio
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from worker.serving.applications import Applications, kind_and_place
from worker.serving.http1 import Http1, Stage
from worker.serving.limits import ServingLimits
from worker.serving.wire import RECEIVE, Wire

log = logging.getLogger(__name__)

Address = tuple[str, int]

SPOKEN = 0.25  # seconds: who sends no more, and takes nothing for so long, has most likely gone

HEADS = frozenset({Stage.IDLE, Stage.HEAD})


def _ignore(busy: bool) -> None:
    pass


async def serve_connection(
    app: ASGIFramework | ASGIApp,
    stream: trio.abc.Stream,
    *,
    limits: ServingLimits,
    scheme: Literal["http", "https"],
    client: Address | None,
    server: Address | None = None,
    activity: Callable[[bool], None] = _ignore,
) -> None:
    """Serve `app` on one connection: HTTP/1.1 exchanges one after another, or one websocket.

    Returns when the connection has ended and its applications have; then `stream` is closed. Raises nothing that the
    peer causes. Cancelled, it closes `stream` at once, as it is. `receive_some` of `stream` is cancelled now and then,
    and must lose nothing by that. A stream that can `send_eof` is closed in two steps, so that the peer gets the last
    bytes. `activity` is called, often, with whether a request is under way.
    """
    wire = Wire(stream, limits.stalled_time.total_seconds())
    config = _config(limits)
    wrapped = wrap_app(cast("ASGIFramework", app), config.wsgi_max_body_size, "asgi")
    try:
        async with trio.open_nursery() as nursery:
            applications = Applications(nursery, wire)
            tls = scheme == "https"
            protocol = Http1(wrapped, config, limits, applications, wire, tls=tls, client=client, server=server)
            await _Reader(protocol, wire, limits, activity).run()
            activity(False)
            await wire.close()
    except* Exception as errors:  # noqa: BLE001  # one connection's bug is not the server's end
        log.error("a connection was ended by a bug: %s", kind_and_place(errors))
    finally:
        await trio.aclose_forcefully(stream)


def _config(limits: ServingLimits) -> Config:
    """hypercorn's. It logs no requests, since their paths hold secrets."""
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.headers
    config.websocket_max_message_size = limits.websocket_message
    return config


class _Reader:
    """Reads until the connection is over, and is patient only so long."""

    def __init__(self, protocol: Http1, wire: Wire, limits: ServingLimits, activity: Callable[[bool], None]) -> None:
        self._protocol = protocol
        self._wire = wire
        self._limits = limits
        self._activity = activity
        self._eof = False
        self._patience = self._header_time
        self._until = trio.current_time() + self._header_time  # for a request to begin, and its headers
        self._asked = False  # a websocket's silent peer, whether it is there

    @property
    def _header_time(self) -> float:
        return self._limits.header_time.total_seconds()

    async def run(self) -> None:
        while self._protocol.stage is not Stage.OVER:
            self._activity(self._protocol.stage not in HEADS)
            before = self._protocol.stage
            if self._protocol.changed:
                await self._resume()
            else:
                await self._receive()
            self._note(before)

    async def _resume(self) -> None:
        if self._protocol.stage is Stage.IDLE:
            self._until = trio.current_time() + self._limits.idle_time.total_seconds()
        await self._protocol.resume()
        await self._hang_up()

    async def _receive(self) -> None:
        began = trio.current_time()
        most = self._limits.headers if self._protocol.stage in HEADS else RECEIVE
        data = await self._wire.receive(most, self._deadline(began))
        if self._wire.broken:
            await self._protocol.end()
        elif data is not None:
            if self._protocol.changed:
                await self._resume()  # what came before goes first
            await self._take(data, trio.current_time() - began)
        elif not self._protocol.changed:
            await self._late(began)

    async def _take(self, data: bytes, waited: float) -> None:
        if data:
            self._asked = False
            self._patience += len(data) / self._limits.body_rate - waited
            await self._protocol.receive(data)
        else:
            self._eof = True
            await self._hang_up()

    async def _hang_up(self) -> None:
        # An answer is finished for who reads it still. Who does not is noticed in sending, or is `_late`.
        if self._eof and self._protocol.stage is not Stage.ANSWER:
            await self._protocol.hang_up()

    def _deadline(self, now: float) -> float:
        match self._protocol.stage:
            case Stage.IDLE | Stage.HEAD:
                return self._until
            case Stage.BODY:
                self._patience = min(self._patience, self._header_time)
                return now + self._patience
            case Stage.WEBSOCKET:
                wait = self._limits.stalled_time if self._asked else self._limits.ping_interval
                return now + wait.total_seconds()
            case Stage.ANSWER if self._eof:
                return now + SPOKEN
            case _:
                return inf

    async def _late(self, began: float) -> None:
        match self._protocol.stage:
            case Stage.HEAD | Stage.BODY:
                await self._protocol.refuse(408)
            case Stage.WEBSOCKET | Stage.ANSWER if self._wire.has_taken_since(began):
                pass  # as good as a pong, which waits behind the megabytes that are on the way to a slow peer
            case Stage.WEBSOCKET if not self._asked:
                self._asked = True
                await self._protocol.ping()
            case Stage.ANSWER:
                await self._protocol.hang_up()
            case _:
                await self._protocol.end()

    def _note(self, before: Stage) -> None:
        """Where a stage begins, so does its time."""
        stage = self._protocol.stage
        if stage is Stage.HEAD and before is not stage and self._protocol.keep_alive_requests:
            self._until = trio.current_time() + self._header_time
        elif stage is Stage.BODY and before is not stage:
            self._patience = self._header_time
