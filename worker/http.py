"""The one place that makes HTTP clients: one for each kind of request that must not wait for the others.

Each admits only as many callers as it may have connections; the others wait in a `CapacityLimiter`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import httpx
import trio

from worker.ports import Ports

MAX_BODY = 64 * 1024 * 1024  # an answer that is read whole, in bytes, decoded
CLOSE_LIMIT = 2.0  # seconds for saying goodbye to servers at the end

# Shorter than servers and load balancers commonly keep an idle connection (60 s), so that they seldom close it on us.
IDLE_LIMIT = 30.0

_MAX_REFUSAL = 4096  # bytes of the answer to a refused upload that are looked at
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")

_DEFAULTS = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": f"tc-worker/{version('tc-worker')}"}


class HttpError(Exception):
    """No answer that could be used. The text names method and address, without the query, which may be a signature."""


class BadUrl(HttpError):
    """The URL cannot be asked at all: no host, or another scheme than http and https."""


class ConnectFailed(HttpError):
    """No connection was made, so the request was not sent."""


class TimedOut(HttpError):
    """The server was silent, or took no data, for longer than the client's limit."""


class ConnectionLost(HttpError):
    """The connection broke, or the server did not speak HTTP. The request may have been received."""


class AnswerTooLarge(HttpError):
    """The answer was longer than what is read into memory."""


class WrongLength(HttpError):
    """What was to be sent had another length than announced: the file changed meanwhile."""


class BadStatus(HttpError):
    """A transfer was answered with `status`, not 2xx; `retry_after` is the answer's header of that name.

    `code` is S3's name for it (`EntityTooLarge`), if any. The rest of such an answer may quote what was signed.
    """

    def __init__(self, message: str, status: int, retry_after: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code


@dataclass(frozen=True, slots=True)
class Kind:
    """How one client behaves; times in seconds. There is no limit for a whole request: that is the caller's scope."""

    connections: int
    connect: float = 10.0
    stall: float = 30.0  # the longest silence while sending or receiving


@dataclass(frozen=True, slots=True)
class Kinds:
    """One for each client. A long poll is silent for up to 20 s by design (facts page, `claimWork`)."""

    control: Kind = field(default_factory=lambda: Kind(connections=16))
    urgent: Kind = field(default_factory=lambda: Kind(connections=8))
    long_poll: Kind = field(default_factory=lambda: Kind(connections=4, stall=45.0))
    bulk: Kind = field(default_factory=lambda: Kind(connections=16, stall=60.0))


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer that was read whole. `body` is decoded (no gzip)."""

    status: int
    headers: httpx.Headers
    body: bytes


class HttpStream:
    """An answer whose body is still to be read; valid inside of `HttpClient.stream`'s block."""

    def __init__(self, response: httpx.Response, what: object) -> None:
        self._response = response
        self._what = what
        self._decoded: AsyncIterator[bytes] | None = None
        self.status = response.status_code
        self.headers = response.headers

    def chunks(self, *, decode: bool = True) -> AsyncIterator[bytes]:
        """The body as it comes, once; with `decode` false as it is on the wire, gzip and all. Raises `HttpError`."""
        if decode and "Content-Encoding" in self.headers:
            self._decoded = _Chunks(self._response.aiter_bytes(), self._what)
            return self._decoded
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        return _Chunks(aiter(self._response.stream), self._what)

    async def read(self, limit: int = MAX_BODY) -> bytes:
        """The whole body, decoded. Raises `AnswerTooLarge` beyond `limit` bytes, and `HttpError`."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise AnswerTooLarge(f"{self._what}: the answer is longer than {limit} bytes")
        return bytes(body)

    async def aclose(self) -> None:
        """Give up what was not read. `HttpClient.stream` does it."""
        if self._decoded is not None:
            # httpx decodes through generators inside of generators, and one that is left in the middle is ended by the
            # garbage collector at any time. Cancelled, they all end here; only what is in memory is read before that.
            with trio.CancelScope() as scope, suppress(HttpError):
                scope.cancel()
                async for _ in self._decoded:
                    pass
        with suppress(httpx.RequestError):
            await self._response.aclose()


async def _code(stream: HttpStream) -> str | None:
    """The code of an error of S3 that `stream` begins with, if it does."""
    start = bytearray()
    with suppress(HttpError):
        async for chunk in stream.chunks():
            start += chunk
            if len(start) >= _MAX_REFUSAL:
                break
    found = _CODE.search(start[:_MAX_REFUSAL])
    return found[1].decode() if found else None


class _Chunks(AsyncIterator[bytes]):
    # A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.

    def __init__(self, source: AsyncIterator[bytes], what: object) -> None:
        self._source = source
        self._what = what

    async def __anext__(self) -> bytes:
        with flat_errors(self._what):
            return await anext(self._source)


class _Exactly(AsyncIterator[bytes]):
    """The chunks of `source`, as long as they are `length` bytes together. Raises `WrongLength`."""

    def __init__(self, source: AsyncIterable[bytes], length: int, what: object) -> None:
        self._source = aiter(source)
        self._left = length
        self._what = what

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._source)
        except StopAsyncIteration:
            if self._left:
                raise WrongLength(f"{self._what}: {self._left} bytes fewer than announced") from None
            raise
        self._left -= len(chunk)
        if self._left < 0:
            raise WrongLength(f"{self._what}: more bytes than announced")
        return chunk


class _Once(AsyncIterator[bytes]):
    def __init__(self, chunk: bytes) -> None:
        self._left = [chunk] if chunk else []

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Body(httpx.AsyncByteStream):
    # httpx's own bodies are generators, which a cancelled request would leave to the garbage collector.

    def __init__(self, content: bytes | AsyncIterable[bytes]) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content) if isinstance(self._content, bytes) else aiter(self._content)


def _request(
    method: str,
    url: httpx.URL,
    headers: Mapping[str, str],
    content: bytes | AsyncIterable[bytes],
    extensions: dict[str, Any],
) -> httpx.Request:
    merged = {**_DEFAULTS, "host": url.netloc.decode("ascii")} | {name.lower(): headers[name] for name in headers}
    if not isinstance(content, bytes):
        return httpx.Request(method, url, headers=merged, stream=_Body(content), extensions=extensions)
    request = httpx.Request(method, url, headers=merged, content=content, extensions=extensions)
    request.stream = _Body(content)
    return request


class HttpClient:
    """Requests over one pool. A cancelled request closes its connection and leaves the others usable."""

    def __init__(self, ports: Ports, kind: Kind) -> None:
        self._limiter = trio.CapacityLimiter(kind.connections)
        self._transport = ports.transport(IDLE_LIMIT)
        self._timeouts = {"timeout": {"connect": kind.connect, "read": kind.stall, "write": kind.stall, "pool": None}}

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
    ) -> AsyncGenerator[HttpStream, None]:
        """Send a request and hand out its answer, whatever its status. Raises `HttpError`.

        A place in the pool is taken until the block ends: do not open another stream of this client inside of it.
        """
        what = _What(method, url)
        # The borrower is the call, not the task, since one task may well have an upload and a download at once.
        borrower = object()
        await self._limiter.acquire_on_behalf_of(borrower)
        try:
            with flat_errors(what):
                request = _request(
                    method, httpx.URL(url), headers or {}, b"" if content is None else content, self._timeouts
                )
                response = await self._transport.handle_async_request(request)
            stream = HttpStream(response, what)
            try:
                yield stream
            finally:
                await stream.aclose()
        finally:
            self._limiter.release_on_behalf_of(borrower)

    async def request(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        limit: int = MAX_BODY,
    ) -> HttpAnswer:
        """Send a request and read its answer of at most `limit` bytes, whatever its status. Raises `HttpError`."""
        async with self.stream(method, url, headers=headers, content=content) as stream:
            return HttpAnswer(stream.status, stream.headers, await stream.read(limit))

    async def upload(self, url: str, content: AsyncIterable[bytes], *, headers: Mapping[str, str], length: int) -> None:
        """PUT `length` bytes to a presigned `url`, with exactly these headers and the length.

        Raises `BadStatus` where the answer is not 2xx, `WrongLength` where `content` is not as long as it should be,
        and `HttpError`. What `content` raises comes out as it is.
        """
        what = _What("PUT", url)
        others = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        body = _Exactly(content, length, what)
        async with self.stream("PUT", url, headers={**others, "Content-Length": str(length)}, content=body) as stream:
            if not 200 <= stream.status < 300:
                code = await _code(stream)
                message = f"{what}: answered with status {stream.status}" + (f" {code}" if code else "")
                raise BadStatus(message, stream.status, stream.headers.get("Retry-After"), code)
            await stream.read()

    async def aclose(self) -> None:
        """Close the connections, at once if cancelled."""
        await self._transport.aclose()


@dataclass(frozen=True, slots=True)
class HttpClients:
    """The clients of one worker, by what they are for."""

    control: HttpClient
    urgent: HttpClient
    long_poll: HttpClient
    bulk: HttpClient


@asynccontextmanager
async def open_http(ports: Ports, kinds: Kinds | None = None) -> AsyncGenerator[HttpClients, None]:
    """The worker's HTTP clients, for as long as the block lasts."""
    kinds = kinds or Kinds()
    clients = HttpClients(
        control=HttpClient(ports, kinds.control),
        urgent=HttpClient(ports, kinds.urgent),
        long_poll=HttpClient(ports, kinds.long_poll),
        bulk=HttpClient(ports, kinds.bulk),
    )
    try:
        yield clients
    finally:
        with trio.move_on_after(CLOSE_LIMIT, shield=True):
            for client in (clients.control, clients.urgent, clients.long_poll, clients.bulk):
                await client.aclose()


def plain_url(url: str | httpx.URL) -> str:
    """`url` fit for a log and an error: scheme, host and port. The rest may be a secret, as a live log's path is."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        return "(malformed URL)"
    return str(parsed.copy_with(path="/", query=None, fragment=None, username=None, password=None))


@dataclass(frozen=True, slots=True)
class _What:
    """How an error's text begins; made when there is one, since that takes as long as a tenth of the request."""

    method: str
    url: str | httpx.URL

    def __str__(self) -> str:
        return f"{self.method.upper()} {plain_url(self.url)}"


@contextmanager
def flat_errors(what: object) -> Generator[None, None, None]:
    """Turn httpx's errors into ours; `what`, as a string, begins their text."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:  # the last for hosts that cannot be
        raise BadUrl(f"{what}: {_reason(error)}") from error
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise ConnectFailed(f"{what}: {_reason(error)}") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{what}: {_reason(error)}") from error
    except httpx.RequestError as error:
        raise ConnectionLost(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # A timeout's text is empty.
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
