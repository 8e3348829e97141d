"""HTTP/1.1 on Trio under httpx: h11 speaks, and the connections are kept here.

The connection that was used last is used next, and none is looked at that is not used, so that a request costs the same
however many there are. Any number of requests can be made at once: whoever makes them sets the limit.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import AsyncIterator
from functools import cache

import h11
import httpx
import trio

MAX_HEAD = 100 * 1024  # bytes of an answer's headers
MOST_IDLE = 32  # connections, over all servers
RECEIVED = 64 * 1024  # bytes that are taken from a connection at once

_PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int]


class Transport(httpx.AsyncBaseTransport):
    """Sends requests, and takes answers whose bodies are read or given up by `aclose`.

    A connection that was idle for `idle_limit` seconds is not used again. Raises httpx's errors, and UnicodeError for a
    host that cannot be one. A request that is cancelled closes its connection. An answer that comes before all of the
    request was sent is handed out if it refuses; if it does not, that is a WriteError.
    """

    def __init__(self, idle_limit: float, ssl_context: ssl.SSLContext | None = None) -> None:
        """`ssl_context` is for the tests; otherwise it is httpx's, which heeds `SSL_CERT_FILE` and `SSL_CERT_DIR`."""
        self._idle_limit = idle_limit
        self._idle: dict[_Connection, None] = {}  # in the order in which they were used last
        self._open: set[_Connection] = set()
        self._ssl = ssl_context

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, with exactly its headers; the answer without its body."""
        origin = _origin(request.url)
        timeouts = request.extensions["timeout"]
        connection = self._reusable(origin) or await self._connect(origin, timeouts["connect"])
        try:
            head = await connection.ask(request, timeouts["read"], timeouts["write"])
        except BaseException:
            self.close(connection)
            raise
        body = _Body(self, connection, timeouts["read"])
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body, request=request)

    def _reusable(self, origin: Origin) -> _Connection | None:
        too_old = trio.current_time() - self._idle_limit
        for connection in list(self._idle):
            if len(self._idle) <= MOST_IDLE and connection.idle_since >= too_old:
                break
            self.close(connection)
        for connection in reversed(list(self._idle)):
            if connection.origin == origin:
                if connection.is_silent():
                    del self._idle[connection]
                    return connection
                self.close(connection)
        return None

    async def _connect(self, origin: Origin, timeout: float) -> _Connection:
        scheme, host, port = origin
        stream: trio.abc.Stream | None = None
        with trio.move_on_after(timeout):
            try:
                socket = await trio.open_tcp_stream(host, port)
                stream = socket if scheme == "http" else await self._secured(socket, host)
            except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
                raise httpx.ConnectError(_text(error)) from error
        if stream is None:
            raise httpx.ConnectTimeout("")
        connection = _Connection(origin, stream, socket)
        self._open.add(connection)
        return connection

    async def _secured(self, socket: trio.SocketStream, host: str) -> trio.abc.Stream:
        try:
            context = await trio.to_thread.run_sync(_ssl_context) if self._ssl is None else self._ssl
            stream = trio.SSLStream(socket, context, server_hostname=host, https_compatible=True)
            await stream.do_handshake()
        except BaseException:
            socket.socket.close()
            raise
        return stream

    def keep(self, connection: _Connection) -> None:
        """The answer was read to its end: the connection can be used again, if both sides want that."""
        if connection in self._open and connection.next_cycle():
            self._idle[connection] = None
        else:
            self.close(connection)

    def close(self, connection: _Connection) -> None:
        """It is of no use any more, or its answer will not be read."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        connection.close()

    async def aclose(self) -> None:
        """Close all connections, those in use as well."""
        while self._open:
            self.close(next(iter(self._open)))
        await trio.lowlevel.checkpoint()


class _Connection:
    """One connection, with one request at a time."""

    def __init__(self, origin: Origin, stream: trio.abc.Stream, socket: trio.SocketStream) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._stream = stream
        self._socket = socket
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def ask(self, request: httpx.Request, read: float, write: float) -> h11.Response:
        """Send all of `request`, and receive the head of its answer."""
        url, headers = request.url, request.headers.raw
        cut_off: httpx.WriteError | None = None
        try:
            pending = self._h11.send(h11.Request(method=request.method, target=url.raw_path, headers=headers))
            assert isinstance(request.stream, httpx.AsyncByteStream)
            async for chunk in request.stream:
                await self._send((pending or b"") + (self._h11.send(h11.Data(data=chunk)) or b""), write)
                pending = b""
            pending = (pending or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
            if pending:
                await self._send(pending, write)
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        except httpx.WriteError as error:
            cut_off = error  # There may be an answer all the same, that says why no more was taken.
        while True:
            event = await self.receive(read)
            if isinstance(event, h11.Response):
                if cut_off is not None and event.status_code < 300:
                    raise cut_off  # Whoever believed this would take a part for the whole.
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the server closed the connection without an answer")

    async def _send(self, data: bytes, timeout: float) -> None:
        with trio.move_on_after(timeout) as limit:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise httpx.WriteError(_text(error)) from error
        if limit.cancelled_caught:
            raise httpx.WriteTimeout("")

    async def receive(self, timeout: float) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event of the answer."""
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                with trio.move_on_after(timeout) as limit:
                    data = await self._stream.receive_some(RECEIVED)
                if limit.cancelled_caught:
                    raise httpx.ReadTimeout("")
                self._h11.receive_data(bytes(data))
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpx.ReadError(_text(error)) from error
        return event

    def next_cycle(self) -> bool:
        """Whether another request can be made, after an answer that was read to its end."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE or self._h11.trailing_data[0]:
            return False
        self._h11.start_next_cycle()
        self.idle_since = trio.current_time()
        return True

    def is_silent(self) -> bool:
        """Whether the server has neither closed an idle connection nor sent what nobody asked for."""
        poll = select.poll()
        poll.register(self._socket.socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """At once, without TLS' goodbye, which HTTP has no need of."""
        self._socket.socket.close()


class _Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    # A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.

    def __init__(self, transport: Transport, connection: _Connection, timeout: float) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        self._timeout = timeout

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._connection is None:
            raise StopAsyncIteration
        try:
            event = await self._connection.receive(self._timeout)
        except BaseException:
            await self.aclose()
            raise
        if isinstance(event, h11.Data):
            return bytes(event.data)
        connection, self._connection = self._connection, None
        self._transport.keep(connection)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up the rest of it, if there is any, and the connection with it."""
        if self._connection is not None:
            self._transport.close(self._connection)
            self._connection = None


@cache
def _ssl_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()  # reads some 150 certificates, in 20 ms
    context.set_alpn_protocols(["http/1.1"])
    return context


def _origin(url: httpx.URL) -> Origin:
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol("expected a URL of http or https, with a host")
    return url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]


def _text(error: BaseException) -> str:
    # Of the errors of trio's streams the cause says more; of one that tried several addresses it is a group.
    cause = error.__cause__ or error
    each = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause]
    return ", ".join(str(one) or type(one).__name__ for one in each)
