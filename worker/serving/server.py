"""Serves connections as they come, inside a nursery of the caller."""

from __future__ import annotations

import errno
import logging
import resource

import trio
from hypercorn.typing import ASGIFramework
from starlette.types import ASGIApp

from worker.serving.connection import serve_connection
from worker.serving.limits import DEFAULT_LIMITS, ServingLimits
from worker.serving.places import Place, Places
from worker.serving.sockets import address_of, keep_alive

log = logging.getLogger(__name__)

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What `accept` reports of the connection that it takes (its manual page), and of one that its peer has given up.
PEERS_FAULT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
    }
)
PAUSE = 0.1  # seconds until accepting is tried again when this machine or process has no descriptors left


async def serve(
    app: ASGIFramework | ASGIApp,
    listeners: list[trio.SocketListener],
    *,
    limits: ServingLimits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then they and all connections are closed at once, as they are.

    Nothing that a peer does ends it. A request whose application raises is answered with 500 where that is still
    possible. An application whose peer has gone is told so by `receive`, and its `send` raises `PeerGone`.
    Beyond `limits.connections` peers wait in the kernel's queue, and connections without a request make room.
    The application's lifespan is the caller's affair: no lifespan events are sent.
    """
    places = Places(_number_of_places(limits))

    async with trio.open_nursery() as nursery:

        async def accept(listener: trio.SocketListener) -> None:
            async with listener:
                while True:
                    stream = await _accept(listener, places)
                    try:
                        place = await places.take()
                    except BaseException:
                        stream.socket.close()
                        raise
                    nursery.start_soon(_serve_socket, app, stream, limits, place)

        for listener in listeners:
            nursery.start_soon(accept, listener)
        task_status.started()


async def _accept(listener: trio.SocketListener, places: Places) -> trio.SocketStream:
    """The next connection. Raises OSError where there can be no other one."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in EXHAUSTED | PEERS_FAULT:
                raise
            exhausted = error.errno in EXHAUSTED
        if exhausted:
            log.warning("no more connections for now: this process or machine has too many open files")
            places.end_idle()
            # Others may have them too, and nothing tells when one is free.
            await trio.sleep(PAUSE)


async def _serve_socket(
    app: ASGIFramework | ASGIApp, stream: trio.SocketStream, limits: ServingLimits, place: Place
) -> None:
    with place.held():
        try:
            keep_alive(stream, limits.ping_interval.total_seconds())
            client = address_of(stream.socket.getpeername())
            server = address_of(stream.socket.getsockname())
        except OSError:  # it has gone already
            stream.socket.close()
            return
        await serve_connection(
            app, stream, limits=limits, scheme="http", client=client, server=server, activity=place.set_busy
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
