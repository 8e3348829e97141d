"""Content on its way to a storage: what every way of uploading has in common."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from math import inf

import trio

from worker.http import BadStatus, ConnectFailed, ConnectionLost, HttpClients, TimedOut
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import Unavailable
from worker.queue.retry import RetryPolicy, Transient, is_transient, parse_retry_after, retrying
from worker.queue.services import Queue

OpenContent = Callable[[], AbstractAsyncContextManager[AsyncIterable[bytes]]]

# An attempt may take as long as the data do, so what counts is the number of attempts rather than the time.
UPLOAD_POLICY = RetryPolicy(total=inf)

# What storages answer for a URL that expired, or for a body that stalled: a fresh URL may do.
_FRESH_URL_MAY_HELP = frozenset({400, 401, 403})

# What S3 says with the same statuses of what no URL can mend.
_FINAL = frozenset({"EntityTooLarge", "KeyTooLongError", "MetadataTooLarge"})

# Of fewer bytes a hash takes less time than a thread does.
_HASHED_INLINE = 32 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be sent: its length, and how to open it, once for every attempt.

    Both are of what is sent: with an `encoding` (`gzip`, `zstd`), of the encoded bytes.
    """

    length: int
    open: OpenContent
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact to be created and stored, by a `queue` with the credentials of the run `key`.

    `content` may have an encoding, `plain` is the same without; whichever the storage takes is opened.
    """

    queue: Queue
    key: RunKey
    name: str
    content_type: str
    expires: datetime
    content: Content
    plain: Content


@dataclass(frozen=True, slots=True)
class Stored:
    """What was sent: its bytes, and the digests in hexadecimal, `sha512` where it was asked for."""

    length: int
    sha256: str
    sha512: str | None = None


class Digests:
    """The hashes of bytes that pass."""

    def __init__(self, ports: Ports, *names: str) -> None:
        self._ports = ports
        self._hashes = {name: hashlib.new(name) for name in names}

    async def update(self, chunk: bytes | bytearray) -> None:
        """Add these bytes, in a thread where they are many."""
        if len(chunk) <= _HASHED_INLINE:
            self._update(chunk)
        else:
            await self._ports.run_sync(self._update, chunk)

    def _update(self, chunk: bytes | bytearray) -> None:
        for each in self._hashes.values():
            each.update(chunk)

    def stored(self, length: int) -> Stored:
        """What has passed."""
        digests = {name: each.hexdigest() for name, each in self._hashes.items()}
        return Stored(length, **digests)


class _Hashed(AsyncIterator[bytes]):
    # A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.

    def __init__(self, source: AsyncIterable[bytes], digests: Digests) -> None:
        self._source = aiter(source)
        self._digests = digests

    async def __anext__(self) -> bytes:
        chunk = await anext(self._source)
        await self._digests.update(chunk)
        return chunk


async def put(
    http: HttpClients, ports: Ports, url: str, headers: Mapping[str, str], content: Content, *hashes: str
) -> Stored | Transient:
    """Send `content` to a presigned `url`, once, and say what was sent; `hashes` is what to take besides SHA-256.

    A `Transient` is for what another URL or another time may mend. Raises `HttpError`: `WrongLength` where the content
    is not as long as announced, `BadStatus` where the storage refuses. What `content.open` raises comes out as it is.
    """
    digests = Digests(ports, "sha256", *hashes)
    try:
        async with content.open() as source:
            await http.bulk.upload(url, _Hashed(source, digests), headers=headers, length=content.length)
    except BadStatus as error:
        mendable = error.status in _FRESH_URL_MAY_HELP and error.code not in _FINAL
        if not (is_transient(error.status) or mendable):
            raise
        return Transient(str(error), parse_retry_after(error.retry_after, ports.now()))
    except (ConnectFailed, ConnectionLost, TimedOut) as error:
        return Transient(str(error))
    return digests.stored(content.length)


async def repeated(
    ports: Ports,
    artifact: NewArtifact,
    policy: RetryPolicy,
    attempt: Callable[[int], Awaitable[Stored | Transient]],
) -> Stored:
    """What `attempt` gives, which is called until it succeeds; each that fails is told in the worker's log.

    Raises `Unavailable` when the policy gives up, and what `attempt` raises.
    """

    async def told(number: int) -> Stored | Transient:
        result = await attempt(number)
        if isinstance(result, Transient):
            log.warning("%s: %s: attempt %d to store it: %s", artifact.key, artifact.name, number, result.reason)
        return result

    result, attempts = await retrying(told, policy, ports.random)
    if isinstance(result, Transient):
        raise Unavailable(f"upload of {artifact.name}", attempts, result.reason)
    return result


async def read_all(content: Content) -> bytes:
    """The whole of `content`, which is small; fewer or more bytes than announced are the caller's to refuse."""
    whole = bytearray()
    async with content.open() as source:
        async for chunk in source:
            whole += chunk
            if len(whole) > content.length:
                break
    await trio.lowlevel.checkpoint()
    return bytes(whole)
