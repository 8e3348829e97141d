"""A websocket to a server that may answer anything, or nothing."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from typing import Final, TypeVar

import httpx
import trio
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from worker.ports import Ports

CONNECT_LIMIT: Final = 10.0  # seconds for a connection with TLS, and again for the websocket
LINGER: Final = 0.5  # seconds for the server to take the last bytes, and to close its end
MAX_ANSWER: Final = 128 * 1024  # bytes, of the answer to the handshake and what comes with it
RECEIVE: Final = 8 * 1024  # bytes at once, in which a server may hide thousands of tiny fragments


E = TypeVar("E", bound=BaseException)

Socket = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Unreachable(Exception):
    """There is no websocket, or it broke. The text says why."""


class Refused(Exception):
    """The server answered with an HTTP `status` instead."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answered {status}")
        self.status = status


@asynccontextmanager
async def open_websocket(
    ports: Ports, url: httpx.URL, headers: Sequence[tuple[bytes, bytes]], max_message_size: int
) -> AsyncGenerator[WebSocketConnection, None]:
    """A websocket at `url`, ws or wss, for as long as the block lasts; then its connection is closed within LINGER.

    Raises `Unreachable`, which also ends the block when the server does what no websocket may; `Refused`; and what the
    block raises, as it is. No text has any of the headers.
    """
    stream = _Guarded(await _connect(ports, url))
    websocket: WebSocketConnection | None = None
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(CONNECT_LIMIT) as stream.opening:
                websocket = await wrap_client_stream(
                    nursery,
                    stream,  # type: ignore[arg-type]  # any stream will do
                    url.netloc.decode(),
                    url.raw_path.decode(),
                    extra_headers=list(headers),
                    max_message_size=max_message_size,
                    receive_buffer_size=RECEIVE,
                )
            try:
                if websocket is None:
                    raise Unreachable("it does not answer as a websocket server does")
                stream.opened()
                yield websocket
            except Exception as error:  # noqa: BLE001  # raised below, where no nursery wraps it
                failure = error
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as rejected:
        failure = Refused(_first(rejected).status_code)
    except* Exception as errors:  # noqa: BLE001  # trio-websocket's reader lets out whatever a server provokes
        failure = Unreachable(f"it broke the websocket: {type(_first(errors)).__name__}")
    finally:
        if websocket is not None:
            with trio.move_on_after(LINGER, shield=True):
                await stream.linger()
        await stream.aclose()
    if failure is not None:
        raise failure


async def _connect(ports: Ports, url: httpx.URL) -> Socket:
    port = url.port or (443 if url.scheme == "wss" else 80)
    try:
        with trio.fail_after(CONNECT_LIMIT):
            if url.scheme == "ws":
                return await trio.open_tcp_stream(url.host, port)
            context = await ports.run_sync(ssl.create_default_context)
            stream = await trio.open_ssl_over_tcp_stream(url.host, port, ssl_context=context, https_compatible=True)
            try:
                await stream.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
    except trio.TooSlowError:
        raise Unreachable(f"no connection within {CONNECT_LIMIT:g} s") from None
    except OSError as error:
        raise Unreachable(f"no connection: {error.strerror or error}") from error
    except trio.BrokenResourceError as error:
        raise Unreachable(f"no TLS: {error.__cause__ or 'the connection broke'}") from error


def _first(group: BaseExceptionGroup[E]) -> E:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Guarded(trio.abc.Stream):
    """A stream whose end, or an answer that is too long, ends the waiting for the websocket."""

    def __init__(self, stream: Socket) -> None:
        self.opening = trio.CancelScope()
        self._stream = stream
        self._left: float = MAX_ANSWER

    def opened(self) -> None:
        """From now on the length has no limit."""
        self._left = inf

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with self._breaking():
            data = await self._stream.receive_some(max_bytes)
        self._left -= len(data)
        if not data or self._left < 0:
            self.opening.cancel()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._breaking():
            await self._stream.send_all(data)

    @contextmanager
    def _breaking(self) -> Generator[None, None, None]:
        try:
            yield
        except trio.BrokenResourceError:
            self.opening.cancel()
            raise

    async def linger(self) -> None:
        """Wait until the other end has taken what was sent: closing, with something unread, would call that back."""
        transport = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await transport.send_eof()
            while await transport.receive_some():
                pass

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.opening.cancel()
        await trio.aclose_forcefully(self._stream)
