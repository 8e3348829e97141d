"""An HTTP proxy for tests, between a client and one server, that breaks what it is told to break.

    async with open_faulty_proxy(target_port) as proxy:
        proxy.break_next(lambda request: request.method == b"PUT", Fault(Break.RESET, at=0.5))
        ... http://127.0.0.1:{proxy.port} ...

It hands on headers, `Host` included, so that signatures stay good.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import h11
import trio

from worker.serving import listen, port_of

READ = 64 * 1024


class Break(Enum):
    """What happens to a request when so much of its body has been read.

    RESET: the connection is reset. STALL: nothing happens any more. STATUS: it is answered with a status, and not
    handed on as a whole. LOST: it is handed on as a whole, and the answer is cut off in its middle.
    """

    RESET = "reset"
    STALL = "stall"
    STATUS = "status"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` is the share of the body that is read before it happens, and handed on if the fault is not an answer."""

    what: Break
    at: float = 0.0
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b'{"code": "Broken", "message": "broken on purpose"}'


Wanted = Callable[[h11.Request], bool]


@dataclass
class FaultyProxy:
    """`seen` has the method and the path of every request, without its query; `broken` counts the faults."""

    target: int
    port: int
    seen: list[str] = field(default_factory=list)
    broken: int = 0
    _faults: list[tuple[Wanted, Fault, int]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    def break_next(self, wanted: Wanted, fault: Fault, times: int = 1) -> None:
        """Break so many of the next requests that are `wanted`."""
        self._faults.append((wanted, fault, times))

    def fault_of(self, request: h11.Request) -> Fault | None:
        """What is to happen to a request that has come."""
        for index, (wanted, fault, left) in enumerate(self._faults):
            if left and wanted(request):
                self._faults[index] = (wanted, fault, left - 1)
                self.broken += 1
                return fault
        return None

    async def handle(self, near: trio.SocketStream) -> None:
        """Serve one connection."""
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
            try:
                await _Connection(self, near, far).run()
            finally:
                await trio.aclose_forcefully(far)
        except (OSError, trio.BrokenResourceError, h11.ProtocolError):
            pass  # one of the ends has gone
        finally:
            await trio.aclose_forcefully(near)


class _Broken(Exception):
    pass


class _Connection:
    """Both sides of one connection: a server to the client, a client to the server."""

    def __init__(self, proxy: FaultyProxy, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self._proxy = proxy
        self._near, self._far = near, far
        self._server, self._client = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)

    async def run(self) -> None:
        try:
            while await self._exchange():
                pass
        except _Broken:
            pass

    async def _exchange(self) -> bool:
        """One request and its answer; whether another one may follow."""
        request = await self._next(self._server, self._near)
        if not isinstance(request, h11.Request):
            return False
        self._proxy.seen.append(f"{request.method.decode()} {request.target.decode().partition('?')[0]}")
        fault = self._proxy.fault_of(request)
        if self._server.they_are_waiting_for_100_continue:
            await self._near.send_all(self._server.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        await self._request(request, fault)
        await self._answer(fault)
        if self._server.our_state is not h11.DONE or self._client.our_state is not h11.DONE:
            return False
        self._server.start_next_cycle()
        self._client.start_next_cycle()
        return True

    async def _request(self, request: h11.Request, fault: Fault | None) -> None:
        length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        most = length if fault is None or fault.what is Break.LOST else int(length * fault.at)
        others = [(name, value) for name, value in request.headers if name != b"expect"]
        handed_on = h11.Request(method=request.method, target=request.target, headers=others)
        passes = fault is None or fault.what is not Break.STATUS
        read = 0
        begun = False
        while True:
            if fault is not None and fault.what is not Break.LOST and read >= most and fault.at < 1:
                await self._break(fault)
            event = await self._next(self._server, self._near)
            if passes and not begun:
                begun = True
                await self._far.send_all(self._client.send(handed_on) or b"")
            if isinstance(event, h11.Data):
                read += len(event.data)
            if isinstance(event, h11.EndOfMessage) and fault is not None and fault.what is Break.STATUS:
                await self._break(fault)
            if passes:
                await self._far.send_all(self._client.send(event) or b"")
            if isinstance(event, h11.EndOfMessage):
                break
        if fault is not None and fault.what is not Break.LOST:
            # It was handed on as a whole, so the server does it; nobody hears of that.
            await self._next(self._client, self._far)
            await self._break(fault)

    async def _break(self, fault: Fault) -> None:
        match fault.what:
            case Break.STALL:
                while await self._near.receive_some(READ):
                    await trio.sleep_forever()
            case Break.STATUS:
                headers = [("Content-Length", str(len(fault.body))), ("Connection", "close"), *fault.headers]
                response = h11.Response(status_code=fault.status, headers=headers)
                await self._near.send_all(self._server.send(response) or b"")
                await self._near.send_all(self._server.send(h11.Data(data=fault.body)) or b"")
                # To close while data come would reset the connection, answer and all.
                await self._near.send_eof()
                while await self._near.receive_some(READ):
                    pass
            case _:
                self._near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Broken

    async def _answer(self, fault: Fault | None) -> None:
        response = await self._next(self._client, self._far)
        while isinstance(response, h11.InformationalResponse):
            response = await self._next(self._client, self._far)
        if not isinstance(response, h11.Response):
            raise _Broken
        if fault is not None:
            # A longer body is announced than comes.
            headers = [("Content-Length", "1000")]
            await self._near.send_all(self._server.send(h11.Response(status_code=200, headers=headers)) or b"")
            await self._near.send_all(self._server.send(h11.Data(data=b'{"stor')) or b"")
            await self._near.send_eof()
            raise _Broken
        await self._near.send_all(self._server.send(response) or b"")
        while True:
            event = await self._next(self._client, self._far)
            await self._near.send_all(self._server.send(event) or b"")
            if isinstance(event, h11.EndOfMessage):
                return

    async def _next(self, side: h11.Connection, stream: trio.SocketStream) -> h11.Event:
        while True:
            event = side.next_event()
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise _Broken
            if event is not h11.NEED_DATA:
                assert isinstance(event, h11.Event)
                return event
            side.receive_data(await stream.receive_some(READ))


@asynccontextmanager
async def open_faulty_proxy(target: int) -> AsyncGenerator[FaultyProxy, None]:
    """A proxy from a free port to the port `target`, both on loopback, for as long as the block lasts."""
    listeners = await listen("127.0.0.1", 0)
    proxy = FaultyProxy(target, port_of(listeners))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, proxy.handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
