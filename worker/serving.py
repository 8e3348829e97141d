"""Serves an ASGI application with hypercorn's protocols, inside a nursery of the caller.

The loop around them is our own, since hypercorn 0.18 lets one malformed peer end the server, shields its sends from
cancellation, waits forever where an application does not read a request to its end, and holds on to connections whose
peer has gone. It logs no requests: their paths hold secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework, ASGIReceiveEvent, ASGISendEvent, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr, wrap_app
from starlette.types import ASGIApp

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1000  # more wait in the kernel's queue until one of these ends

# Longer than our own clients keep an idle connection, so that it is not closed while a request is on its way.
KEEP_ALIVE = 60.0  # seconds; also the longest that a request's headers may take

MAX_HEADERS = 64 * 1024  # bytes; a certificate with many scopes makes a long Authorization header


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Sockets that listen on `host` and `port`; port 0 picks a free one, the same for every address of `host`.

    Raises OSError where the address cannot be had.
    """
    listeners = await trio.open_tcp_listeners(port, host=host)
    if port or len(listeners) == 1:
        return listeners
    # Each address got a port of its own: the others move to the first one's.
    for listener in listeners[1:]:
        await listener.aclose()
    same = listeners[:1]
    try:
        for listener_address in addresses[1:]:
            same += await trio.open_tcp_listeners(port_of(same), host=listener_address)
    except OSError:
        for listener in same:
            await trio.aclose_forcefully(listener)
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
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then they and all connections are closed at once, as they are.

    Nothing that a peer does ends it. A request whose application raises is answered with 500 where that is still
    possible. An application whose peer has gone is told so by `receive`, and its `send` does nothing then.
    The application's lifespan is the caller's affair: no lifespan events are sent.
    """
    config = _config()
    wrapped = wrap_app(cast("ASGIFramework", app), config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    slots = trio.Semaphore(max_connections)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await _Connection(wrapped, config, context, {}, stream).run()
        except* Exception as errors:  # noqa: BLE001  # a peer can raise anything in a protocol, and ends only itself
            log.debug("a connection ended: %s", "; ".join(sorted({type(e).__name__ for e in errors.exceptions})))
        finally:
            stream.socket.close()
            slots.release()

    capped = [_CappedListener(listener, slots) for listener in listeners]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, capped)
        task_status.started()


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    config.h11_max_incomplete_size = MAX_HEADERS
    return config


class _CappedListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts a connection once there is a slot for it; whoever handles the connection gives the slot back."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener = listener
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class _Applications(TaskGroup):
    """The tasks of one connection. When the peer has gone and no application runs any more, the others are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self._running = 0
        self._peer_gone = False

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """As hypercorn's, but never waits for an application that does not receive and was told of the disconnect."""
        into, out = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)
        goodbye = cast("ASGIReceiveEvent", {"type": f"{scope['type']}.disconnect"})

        async def receive() -> ASGIReceiveEvent:
            try:
                return await out.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                return goodbye

        async def put(event: ASGIReceiveEvent) -> None:
            nonlocal goodbye
            if event["type"] in {"http.disconnect", "websocket.disconnect"}:
                goodbye = event
                into.close()
                return
            try:
                await into.send(event)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # Nobody wants it any more.
                return

        async def run() -> None:
            try:
                await _run_app(app, scope, receive, send)
            finally:
                out.close()
                into.close()
                self._running -= 1
                self._end_when_done()

        self._running += 1
        self._open_nursery.start_soon(run)
        return put

    def peer_gone(self) -> None:
        self._peer_gone = True
        self._end_when_done()

    def _end_when_done(self) -> None:
        if self._peer_gone and not self._running:
            self._open_nursery.cancel_scope.cancel()

    @property
    def _open_nursery(self) -> trio.Nursery:
        assert self._nursery is not None
        return self._nursery


async def _run_app(
    app: AppWrapper,
    scope: Scope,
    receive: Callable[[], Awaitable[ASGIReceiveEvent]],
    send: Callable[[ASGISendEvent | None], Awaitable[None]],
) -> None:
    try:
        await app(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the peer has gone in the middle of an answer
    except* Exception:  # noqa: BLE001  # one request's bug is not the server's end
        log.exception("an application failed")
    await send(None)


class _Connection(TCPServer):
    """hypercorn's connection, with sends that can be cancelled, and an end as soon as the peer has gone."""

    stream: trio.SocketStream

    async def run(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        async with _Applications() as applications:
            self._task_group = self._applications = applications
            state = ConnectionState(cast("dict[str, Any]", self.state))
            self.protocol = ProtocolWrapper(
                self.app,
                self.config,
                self.context,
                applications,
                state,
                False,
                client,
                server,
                self.protocol_send,
                "http/1.1",
            )
            await self.protocol.initiate()
            await self.idle_task.restart(applications, self._idle_timeout)
            await self._read_data()
            applications.peer_gone()
        await self._close()

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._applications.peer_gone()
                await self.protocol.handle(Closed())
            except trio.Cancelled:
                # A part may have been sent, so nothing sensible can follow.
                self.stream.socket.close()
                raise
