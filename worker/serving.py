"""Serves an ASGI application with hypercorn, inside a nursery of the caller."""

from __future__ import annotations

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Sockets that listen on `host` and `port`; port 0 picks a free one, the same for every address of `host`.

    Raises OSError where the address cannot be had.
    """
    return await trio.open_tcp_listeners(port, host=host)


def port_of(listeners: list[trio.SocketListener]) -> int:
    """The port that `listeners` are bound to."""
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def serve(
    app: ASGIFramework,
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then connections are closed as they are.

    The application's lifespan is the caller's affair: no lifespan events are sent.
    """
    config = Config()
    config.keep_alive_timeout = 60
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)

    async def handle(stream: trio.SocketStream) -> None:
        await TCPServer(wrapped, config, context, {}, stream)

    await trio.serve_listeners(handle, listeners, task_status=task_status)
