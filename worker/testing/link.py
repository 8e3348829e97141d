"""A TCP link for tests that is slow, loses packets, shreds what it carries, and breaks."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from worker.serving import listen, port_of

IN_FLIGHT = 256 * 1024  # bytes, each way


@dataclass
class Link:
    """Carries each connection to its `port` on to `target`. All but the ports may be changed at any time.

    What is sent arrives `delay` seconds later, at `rate` bytes/s, in pieces of up to `piece` bytes. Of the pieces a
    share of `loss` is lost; TCP would send these again, so that they, and all behind them, come `again` seconds late.
    """

    target: int
    port: int
    delay: float = 0.0
    rate: float = float("inf")
    piece: int = 64 * 1024
    loss: float = 0.0
    again: float = 0.1
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311  # to be repeated
    carried: int = 0
    _scopes: set[trio.CancelScope] = field(default_factory=set)
    _open: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def stall(self) -> None:
        """Carry nothing any more, without a word, until `cut`."""
        self._open = trio.Event()

    def cut(self) -> None:
        """Break all connections. New ones can be made."""
        for scope in self._scopes:
            scope.cancel()
        self._open.set()

    async def handle(self, near: trio.SocketStream) -> None:
        """Carry one connection."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                far = await trio.open_tcp_stream("127.0.0.1", self.target)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_Way(self, near, far, scope).run)
                        nursery.start_soon(_Way(self, far, near, scope).run)
                finally:
                    await trio.aclose_forcefully(far)
            except OSError:
                pass  # there is nobody: the near end sees that
            finally:
                self._scopes.remove(scope)
                await trio.aclose_forcefully(near)

    async def wait_open(self) -> None:
        """Wait while nothing is carried."""
        await self._open.wait()


class _Way:
    """One direction of one connection."""

    def __init__(
        self, link: Link, source: trio.SocketStream, sink: trio.SocketStream, connection: trio.CancelScope
    ) -> None:
        self._link = link
        self._source = source
        self._sink = sink
        self._connection = connection
        self._flight: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take)
                nursery.start_soon(self._give)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self._connection.cancel()

    async def _take(self) -> None:
        due = 0.0
        link = self._link
        while True:
            while self._bytes > IN_FLIGHT:
                await self._changed.park()
            await link.wait_open()
            data = await self._source.receive_some(link.random.randint(1, link.piece))
            lost = link.again if link.random.random() < link.loss else 0.0
            due = max(due, trio.current_time()) + len(data) / link.rate + lost
            self._flight.append((due + link.delay, bytes(data)))
            self._bytes += len(data)
            self._changed.unpark_all()
            if not data:
                return

    async def _give(self) -> None:
        while True:
            while not self._flight:
                await self._changed.park()
            due, data = self._flight[0]
            await trio.sleep_until(due)
            await self._link.wait_open()
            if not data:
                await self._sink.send_eof()
                return
            await self._sink.send_all(data)
            self._link.carried += len(data)
            self._flight.popleft()
            self._bytes -= len(data)
            self._changed.unpark_all()


@asynccontextmanager
async def open_link(target: int) -> AsyncGenerator[Link, None]:
    """A link from a free port to the port `target`, both on loopback, for as long as the block lasts."""
    listeners = await listen("127.0.0.1", 0)
    link = Link(target, port_of(listeners))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, link.handle, listeners)
        yield link
        nursery.cancel_scope.cancel()
