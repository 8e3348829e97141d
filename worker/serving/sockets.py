"""Sockets that listen, and what the kernel is told about those that they accept."""

from __future__ import annotations

import socket

import trio

PROBES = 3  # without an answer, and the peer has gone
# OS X has another name for it.
KEEP_ALIVE_IDLE: int = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE")  # noqa: B009


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


def keep_alive(stream: trio.SocketStream, interval: float) -> None:
    """Have the kernel ask a silent peer every `interval` seconds whether it is there: the only way to notice that one
    has vanished which is sent nothing."""
    seconds = max(1, round(interval))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, KEEP_ALIVE_IDLE, seconds)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def address_of(name: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """Host and port of a socket's name, IPv4 or IPv6."""
    return name[0], name[1]
