"""One attempt to download something: what is asked for, what the answer means, and where its bytes go.

A download that broke off goes on where it stopped, if the server says by a validator that it is the same content
(RFC 9110, 13.1.5 and 14). What is kept and has no hash is asked about (13.1.2, 13.1.3) and taken only where the server
says that it has not changed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import trio

from plugins.mounts.sources import BAD_URL, Source, plain
from worker.errors import TaskFault
from worker.http import BadUrl, ConnectFailed, ConnectionLost, HttpClient, HttpStream, TimedOut
from worker.ports import Ports
from worker.quantities import format_size
from worker.queue.clock import parse_date
from worker.queue.retry import Transient, is_transient, parse_retry_after

MAX_REDIRECTS = 10
FRESH_URLS = 2  # times that a storage may refuse a URL before the task is to blame

_BLOCK = 1024 * 1024  # bytes that are written at once
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")

# Compressed on its way it may come, since storages keep artifacts so; then it is undone here, within the limits.
_ENCODINGS = {"": "", "identity": "", "gzip": "gz", "x-gzip": "gz", "zstd": "zst"}


@dataclass(frozen=True, slots=True)
class Validators:
    """By what a server recognizes content. Only those that promise the same bytes.

    They are said of what is at `place`, a URL without its query, which may be a signature: of where redirects led to.
    """

    etag: str | None = None
    last_modified: str | None = None
    place: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str], place: str) -> Validators:
        """Those of an answer from `place`. A date counts if it was over by a second: then nothing else can have it."""
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        if etag is not None and not re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
            etag = None  # W/, or what no request could have
        then, now = parse_date(modified or ""), parse_date(headers.get("Date") or "")
        if then is None or now is None or now - then < timedelta(seconds=1):
            modified = None
        return cls(etag, modified, place)

    def __bool__(self) -> bool:
        return self.etag is not None or self.last_modified is not None

    def conditions(self) -> dict[str, str]:
        """Headers that ask for content only if it is another: for `place` alone."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value is not None}


@dataclass
class Part:
    """What there is of a download: `size` bytes in the file at `path`, as they came. Without validators it is no use.

    `encoding` is the compression that is to be undone; `total` is how many bytes it will be, where that is known.
    """

    path: Path
    size: int = 0
    validators: Validators = field(default_factory=Validators)
    encoding: str = ""
    total: int | None = None
    resumed: bool = False  # whether it was made by more than one answer

    def forget(self) -> None:
        """Begin anew."""
        self.size, self.validators, self.encoding, self.total, self.resumed = 0, Validators(), "", None, False


@dataclass(frozen=True, slots=True)
class NotModified:
    """What is kept is what the server has."""


@dataclass(frozen=True, slots=True)
class Received:
    """The part is complete."""

    validators: Validators


class Transfer:
    """Downloads to `part`, attempt by attempt. `known` are the validators of what is kept, where that may be used.

    `begun` is called when `part` begins anew, before the first byte of it.
    """

    def __init__(
        self,
        http: HttpClient,
        ports: Ports,
        part: Part,
        known: Validators,
        max_size: int,
        begun: Callable[[], Awaitable[None]],
    ) -> None:
        self._http = http
        self._ports = ports
        self._part = part
        self._known = known
        self._max_size = max_size
        self._begun = begun
        self._refusals = 0

    async def attempt(self, source: Source) -> Received | NotModified | Transient:
        """One attempt, which a cancellation ends at once. Raises TaskFault, OSError, and what `locate` raises."""
        if self._part.size and self._part.size == self._part.total:
            return Received(self._part.validators)  # All of it came before, and could not be kept then.
        url = _parsed(await source.locate(), source)
        if not self._part.validators:
            self._part.forget()
        try:
            for _ in range(MAX_REDIRECTS + 1):
                place = plain(str(url))
                conditions = self._conditions(place)
                headers = {"Accept-Encoding": "gzip", **conditions}
                async with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.status in _REDIRECTS and (location := answer.headers.get("Location")):
                        url = _joined(url, location, source)
                        continue
                    return await self._answered(answer, source, place, is_asked=bool(conditions))
        except BadUrl as error:
            raise TaskFault(f"{source.name} is not to be had: {error}") from error
        except (ConnectFailed, ConnectionLost, TimedOut) as error:
            return Transient(str(error))
        raise TaskFault(f"{source.name} is not to be had: more than {MAX_REDIRECTS} redirects")

    def _conditions(self, place: str) -> dict[str, str]:
        """Headers for a request that goes to `place`; none where another one has said by what to recognize content."""
        part = self._part
        validators = part.validators if part.size else self._known
        if validators.place != place:
            return {}
        if part.size:
            return {"Range": f"bytes={part.size}-", "If-Range": validators.etag or validators.last_modified or ""}
        return validators.conditions()

    async def _answered(
        self, answer: HttpStream, source: Source, place: str, *, is_asked: bool
    ) -> Received | NotModified | Transient:
        """`is_asked`: under conditions, or for the rest."""
        part, status = self._part, answer.status
        if status == 304 and is_asked and not part.size:
            return NotModified()
        if status == 416:
            part.forget()
            return Transient("the server does not have the rest of what it has begun to send")
        if status == 206 and is_asked and part.size:
            return await self._go_on(answer, source)
        if status == 200:
            return await self._begin(answer, source, place)
        if is_transient(status):
            wait = parse_retry_after(answer.headers.get("Retry-After"), self._ports.now())
            return Transient(f"the server answers with status {status}", wait)
        if source.expires and status in {400, 401, 403} and self._refusals < FRESH_URLS:
            self._refusals += 1
            return Transient(f"the storage answers with status {status}")
        raise TaskFault(f"{source.name} is not to be had: the server answers with status {status}")

    async def _begin(self, answer: HttpStream, source: Source, place: str) -> Received | Transient:
        part = self._part
        part.forget()
        encoding = answer.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise TaskFault(f"{source.name} is sent in the encoding {encoding[:40]!r}, which is not understood")
        length = answer.headers.get("Content-Length", "")
        part.encoding = _ENCODINGS[encoding]
        part.validators = Validators.of(answer.headers, place)
        part.total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        await self._begun()
        return await self._receive(answer, source)

    async def _go_on(self, answer: HttpStream, source: Source) -> Received | Transient:
        part = self._part
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != part.size:
            part.forget()
            return Transient("the server sends another range than it was asked for")
        total = part.total if found[2] == "*" else int(found[2])
        if self._is_another(answer, total):
            part.forget()
            return Transient("the server goes on with other content than it has begun to send")
        part.total = total
        part.resumed = True
        return await self._receive(answer, source)

    def _is_another(self, answer: HttpStream, total: int | None) -> bool:
        """Whether what is sent is not the rest of the part (RFC 9110, 15.3.7.3): not all servers heed `If-Range`."""
        part, headers = self._part, answer.headers
        known = {"ETag": part.validators.etag, "Last-Modified": part.validators.last_modified}
        if any(value is not None and headers.get(name, value) != value for name, value in known.items()):
            return True
        encoding = headers.get("Content-Encoding")
        if encoding is not None and _ENCODINGS.get(encoding.strip().lower()) != part.encoding:
            return True
        return part.total is not None and total != part.total

    async def _receive(self, answer: HttpStream, source: Source) -> Received | Transient:
        part = self._part
        self._check_size(source, part.total or 0)
        block = bytearray()
        try:
            async for chunk in answer.chunks(decode=False):
                block += chunk
                self._check_size(source, part.size + len(block))
                if len(block) >= _BLOCK:
                    await self._write(block)
                    block = bytearray()
        finally:
            # What broke off is of use for the next attempt. It is short, and after a cancellation nobody may come.
            if block:
                with trio.CancelScope(shield=True):
                    await self._write(block)
        if part.total is not None and part.size != part.total:
            if part.size > part.total:
                part.forget()
            return Transient("the answer has another length than it says")
        if not part.size:
            await self._write(b"")  # an empty file is one, too
        return Received(part.validators)

    def _check_size(self, source: Source, size: int) -> None:
        if size > self._max_size:
            self._part.forget()
            raise TaskFault(f"{source.name} is larger than {format_size(self._max_size)}, this worker's limit")

    async def _write(self, block: bytes | bytearray) -> None:
        part = self._part
        await self._ports.run_sync(_append, part.path, part.size, block)
        part.size += len(block)


def _append(path: Path, offset: int, block: bytes | bytearray) -> None:
    # What a call that failed has left behind `offset` goes.
    with path.open("r+b" if offset else "wb", buffering=0) as file:
        file.truncate(offset)
        file.seek(offset)
        view = memoryview(block)
        while view:
            view = view[file.write(view) :]


def _parsed(url: str, source: Source) -> httpx.URL:
    try:
        return httpx.URL(url)
    except BAD_URL as error:
        raise TaskFault(f"{source.name} is not to be had: {error}") from error


def _joined(url: httpx.URL, location: str, source: Source) -> httpx.URL:
    try:
        joined = url.join(location)
    except BAD_URL as error:
        raise TaskFault(f"{source.name} is not to be had: it redirects to nowhere") from error
    if joined.scheme not in {"http", "https"}:
        raise TaskFault(f"{source.name} is not to be had: it redirects to neither http nor https")
    return joined
