"""Serves an ASGI application with hypercorn's HTTP/1.1 and websockets, inside a nursery of the caller.

The loop around them is our own, since hypercorn 0.18 lets one malformed peer end the server, shields its sends from
cancellation, waits forever where an application does not read a request to its end, and holds on to connections whose
peer has gone. It logs no requests: their paths hold secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import parse_socket_addr, wrap_app
from starlette.types import ASGIApp

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1000  # more wait in the kernel's queue until one of these ends

# Longer than our own clients keep an idle connection, so that it is not closed while a request is on its way.
KEEP_ALIVE = 60.0  # seconds

MAX_HEADERS = 64 * 1024  # bytes; a certificate with many scopes makes a long Authorization header


class PeerGone(OSError):
    """What an application sends can reach nobody. It may let this through."""


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Sockets that listen on `host` and `port`; port 0 picks a free one, the same for every address of `host`.

    Raises OSError where the address cannot be had.
    """
    listeners = await trio.open_tcp_listeners(port, host=host)
    if port or len(listeners) == 1:
        return listeners
    # Each address got a port of its own: the others move to the first one's.
    same, others = listeners[:1], listeners[1:]
    addresses = [listener.socket.getsockname()[0] for listener in others]
    for listener in others:
        listener.socket.close()
    try:
        for address in addresses:
            same += await trio.open_tcp_listeners(port_of(same), host=address)
    except BaseException:
        for listener in same:
            listener.socket.close()
        raise
    return same


def port_of(listeners: list[trio.SocketListener]) -> int:
    """The port that `listeners` are bound to."""
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def serve(
    app: ASGIFramework | ASGIApp,
    listeners: list[trio.SocketListener],
    *,
    max_connections: int = MAX_CONNECTIONS,
    keep_alive: float = KEEP_ALIVE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then they and all connections are closed at once, as they are.

    Nothing that a peer does ends it. A request whose application raises is answered with 500 where that is still
    possible. An application whose peer has gone is told so by `receive`, and its `send` raises `PeerGone`.
    A connection is closed when it has had no request for `keep_alive` seconds, be it that a half one came. Beyond
    `max_connections` peers wait.
    The application's lifespan is the caller's affair: no lifespan events are sent.
    """
    config = _config(keep_alive)
    wrapped = wrap_app(cast("ASGIFramework", app), config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    slots = trio.Semaphore(max_connections)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            # It takes plain streams as well as the one that its signature names.
            await _Connection(wrapped, config, context, {}, cast("trio.SSLStream[trio.SocketStream]", stream)).run()
        except* Exception as errors:  # noqa: BLE001  # a peer can raise anything in a protocol, and ends only itself
            log.debug("a connection ended: %s", "; ".join(sorted({type(e).__name__ for e in errors.exceptions})))
        finally:
            stream.socket.close()
            slots.release()

    capped = [_CappedListener(listener, slots) for listener in listeners]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, capped)
        task_status.started()


def _config(keep_alive: float) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.keep_alive_timeout = keep_alive
    config.h11_max_incomplete_size = MAX_HEADERS
    return config


class _CappedListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts a connection and waits for a slot for it; whoever handles the connection gives the slot back."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener = listener
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        stream = await self._listener.accept()
        try:
            await self._slots.acquire()
        except BaseException:
            stream.socket.close()
            raise
        return stream

    async def aclose(self) -> None:
        await self._listener.aclose()


class _Tasks(TaskGroup):
    """The tasks of one connection, its applications among them.

    While no application runs, the idle timer does. When the peer has gone as well, all is cancelled.
    """

    def __init__(self, nursery: trio.Nursery, idle_timer: TrioSingleTask) -> None:
        super().__init__()
        self._nursery: trio.Nursery = nursery
        self._idle_timer = idle_timer
        self._applications = 0
        self._peer_gone = False
        self._broken = False

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        await self._idle_timer.stop()
        inbox = _Inbox(config.max_app_queue_size, scope["type"])

        async def checked_send(event: ASGISendEvent) -> None:
            await send(event)
            if self._broken:
                raise PeerGone

        async def run() -> None:
            try:
                await _run_app(app, scope, inbox, checked_send)
                await send(None)
            finally:
                self._applications -= 1
                self._end_when_done()

        self._applications += 1
        self._nursery.start_soon(run)
        return inbox.put

    def peer_gone(self, *, broken: bool) -> None:
        """The peer sends no more; `broken`: nor does it take anything."""
        self._peer_gone = True
        self._broken |= broken
        self._end_when_done()

    def _end_when_done(self) -> None:
        if self._peer_gone and not self._applications:
            self._nursery.cancel_scope.cancel()


class _Inbox:
    """What an application receives. Unlike hypercorn's it holds up nobody once the application is past receiving."""

    def __init__(self, size: int, kind: str) -> None:
        self._into, self._out = trio.open_memory_channel[ASGIReceiveEvent](size)
        self._last = cast("ASGIReceiveEvent", {"type": f"{kind}.disconnect"})

    async def put(self, event: ASGIReceiveEvent) -> None:
        if event["type"] in {"http.disconnect", "websocket.disconnect"}:
            self._last = event
            self._into.close()
            return
        # Closed or broken: the exchange is over, and nobody wants the rest of the request.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._into.send(event)

    async def receive(self) -> ASGIReceiveEvent:
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            return self._last

    def close(self) -> None:
        self._out.close()


async def _run_app(app: AppWrapper, scope: Scope, inbox: _Inbox, send: ASGISendCallable) -> None:
    try:
        await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except* PeerGone:
        log.debug("a peer went in the middle of an answer")
    except* Exception:
        # One request's bug is not the server's end.
        log.exception("an application failed")
    finally:
        inbox.close()


class _Http1(H11Protocol):
    """HTTP/1.1 alone: on plain sockets nobody needs HTTP/2, and hypercorn's can be left hanging by nonsense."""

    async def _check_protocol(self, event: h11.Request) -> None:
        # Here hypercorn would change to HTTP/2. A server may ignore an Upgrade (RFC 9110, 7.8).
        pass


class _Connection(TCPServer):
    """hypercorn's connection, with sends that can be cancelled, and an end as soon as the peer has gone."""

    stream: Any
    protocol: Any

    async def run(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        state = ConnectionState(self.state)
        async with trio.open_nursery() as nursery:
            self._task_group = self._tasks = _Tasks(nursery, self.idle_task)
            self.protocol = _Http1(
                self.app, self.config, self.context, self._tasks, state, False, client, server, self.protocol_send
            )
            await self.protocol.initiate()
            await self.idle_task.restart(self._tasks, self._idle_timeout)
            await self._read_data()
            self._tasks.peer_gone(broken=False)
        await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif not (isinstance(event, Updated) and not event.idle):
            # The idle timer goes on until an application starts, which a request need not lead to.
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        try:
            async with self.send_lock:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._tasks.peer_gone(broken=True)
            await self.protocol.handle(Closed())
        except trio.Cancelled:
            # The protocol takes these bytes for sent, so nothing that follows would make sense to the peer.
            self.stream.socket.close()
            raise
