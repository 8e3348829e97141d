"""Serves connections as they come, inside a nursery of the caller."""

from __future__ import annotations

import errno
import logging
import resource

import trio
from hypercorn.typing import ASGIFramework
from starlette.types import ASGIApp

from worker.serving.connection import Address, serve_connection
from worker.serving.limits import DEFAULT_LIMITS, ServingLimits
from worker.serving.places import Place, Places
from worker.serving.sockets import address_of, keep_alive
from worker.serving.tls import Certificate, shake_hands

log = logging.getLogger(__name__)

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE = 0.1  # seconds until accepting is tried again when this machine or process has no descriptors left


async def serve(
    app: ASGIFramework | ASGIApp,
    listeners: list[trio.SocketListener],
    *,
    limits: ServingLimits = DEFAULT_LIMITS,
    tls: Certificate | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then they and all connections are closed at once, as they are.

    Nothing that a peer does ends it. A request whose application raises is answered with 500 where that is still
    possible. An application whose peer has gone is told so by `receive`, and its `send` raises `PeerGone`.
    Beyond `limits.connections` peers wait in the kernel's queue, and connections without a request make room.
    With `tls` it speaks TLS alone. The application's lifespan is the caller's affair: no lifespan events are sent.
    """
    server = _Server(app, limits, tls)
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(server.accept, listener, nursery)
        task_status.started()


class _Server:
    def __init__(self, app: ASGIFramework | ASGIApp, limits: ServingLimits, tls: Certificate | None) -> None:
        self._app = app
        self._limits = limits
        self._tls = tls
        self._places = Places(_number_of_places(limits))
        self._exhausted = False

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept connections until cancelled, and serve each in a task of `nursery`."""
        async with listener:
            while True:
                stream = await self._next(listener)
                if stream is None:
                    # Others may have the descriptors too, and nothing tells when one is free.
                    await trio.sleep(PAUSE)
                    continue
                try:
                    place = await self._places.take()
                except BaseException:
                    stream.socket.close()
                    raise
                nursery.start_soon(self._serve, stream, place)

    async def _next(self, listener: trio.SocketListener) -> trio.SocketStream | None:
        """The next connection, None where there is no descriptor for it. Raises OSError where none can come."""
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if not self._exhausted:
                log.warning("no further connections for now: too many open files in this process or machine")
            self._exhausted = True
            self._places.end_idle()
            return None
        self._exhausted = False
        return stream

    async def _serve(self, socket: trio.SocketStream, place: Place) -> None:
        with place.held():
            try:
                keep_alive(socket, self._limits.ping_interval.total_seconds())
                client, server = address_of(socket.socket.getpeername()), address_of(socket.socket.getsockname())
            except OSError:
                socket.socket.close()  # the peer has gone already
                return
            try:
                await self._serve_peer(socket, place, client, server)
            finally:
                socket.socket.close()

    async def _serve_peer(self, socket: trio.SocketStream, place: Place, client: Address, server: Address) -> None:
        stream: trio.abc.Stream | None = socket
        if self._tls is not None:
            stream = await shake_hands(socket, self._tls, self._limits.header_time.total_seconds())
        if stream is not None:
            await serve_connection(
                self._app,
                stream,
                limits=self._limits,
                scheme="http" if self._tls is None else "https",
                client=client,
                server=server,
                activity=place.set_busy,
            )


def _number_of_places(limits: ServingLimits) -> int:
    """No more than half of the descriptors that this process may have: the others are for tasks."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY or descriptors // 2 >= limits.connections:
        return limits.connections
    if "connections" in limits.model_fields_set:
        log.warning(
            "%d connections at once, not %d: more need a higher limit of open files (ulimit -n)",
            descriptors // 2,
            limits.connections,
        )
    return descriptors // 2
