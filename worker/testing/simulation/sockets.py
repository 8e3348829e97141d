"""What stands in for the operating system's sockets: the worker's web server listens, and nobody comes."""

from __future__ import annotations

import socket
from typing import Any

import trio
from trio.abc import SocketFactory


class _Deaf(trio.socket.SocketType):
    """A listening socket without a network."""

    def __init__(self, family: int, port: int) -> None:
        super().__init__()
        self._family = family
        self._port = port

    @property
    def family(self) -> Any:
        return self._family

    @property
    def type(self) -> Any:
        return socket.SOCK_STREAM

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        return 1  # SO_ACCEPTCONN

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        pass

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()

    def listen(self, backlog: int = 0) -> None:
        pass

    def getsockname(self) -> Any:
        return ("127.0.0.1", self._port)

    async def accept(self) -> Any:
        await trio.sleep_forever()

    def close(self) -> None:
        pass


class DeafSockets(SocketFactory):
    """Makes sockets that nobody reaches; for `trio.socket.set_custom_socket_factory`."""

    def __init__(self) -> None:
        self._port = 40000

    def socket(self, family: Any = 0, type: Any = 0, proto: int = 0) -> Any:  # noqa: A002 - as the base names it
        """The next one."""
        self._port += 1
        return _Deaf(family, self._port)
