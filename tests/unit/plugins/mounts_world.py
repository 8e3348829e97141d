"""A site to download from, which does as it is told, and a queue that knows artifacts there."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial

import trio

from plugins.mounts.downloads import DownloadSettings
from worker.queue.errors import NotFound
from worker.queue.models import GetArtifactResponse
from worker.queue.retry import RetryPolicy
from worker.testing.runs import RecordingQueue

MIB = 2**20
POLICY = RetryPolicy(attempts=4, total=60.0, first=0.01, longest=0.02)
SETTINGS = DownloadSettings(kept=100 * MIB, max_size=50 * MIB, time=60.0, parallelism=4, ratio=100, policy=POLICY)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Page:
    """What is at a path. Without an `etag` it cannot be recognized, and `ranges` says whether parts can be had."""

    content: bytes
    etag: str | None = None
    modified: str | None = None
    encoding: str = ""
    ranges: bool = True
    chunked: bool = False


# What becomes of one answer: a status instead, or how many bytes of the body come before the connection breaks.
@dataclass
class Trouble:
    status: int = 0
    breaks_at: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Site:
    """`troubles` are for the first requests, by path. With a `gate` bodies wait for it after their first half.

    What is at a path in `then` takes its place after the first answer. One that does not heed `If-Range` sends the rest
    of whatever there is.
    """

    pages: dict[str, Page] = field(default_factory=dict)
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    then: dict[str, Page] = field(default_factory=dict)
    heeds_if_range: bool = True
    sent: int = 0  # bytes of bodies
    gate: trio.Event | None = None
    halfway: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(0))
    progress: trio.Event = field(default_factory=trio.Event)
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    got = await stream.receive_some()
                    if not got:
                        return
                    head += got
                first, *lines = head.decode().partition("\r\n\r\n")[0].split("\r\n")
                path = first.split()[1]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                self.requests.append((path, headers))
                await self._answer(stream, path.partition("?")[0], headers)

    async def _answer(self, stream: trio.SocketStream, path: str, headers: dict[str, str]) -> None:
        waiting = self.troubles.get(path, [])
        trouble = waiting.pop(0) if waiting else Trouble()
        page = self.pages.get(path)
        if path in self.then:
            self.pages[path] = self.then.pop(path)
        if trouble.status or page is None:
            await self._head(stream, trouble.status or 404, {"Content-Length": "0", **trouble.headers})
            return
        about = {"Date": formatdate(usegmt=True)}
        about |= {"ETag": page.etag} if page.etag else {}
        about |= {"Last-Modified": page.modified} if page.modified else {}
        about |= {"Content-Encoding": page.encoding} if page.encoding else {}
        if page.etag and headers.get("if-none-match") == page.etag:
            await self._head(stream, 304, about)
            return
        if page.modified and "if-none-match" not in headers and headers.get("if-modified-since") == page.modified:
            await self._head(stream, 304, about)
            return
        status, body = 200, page.content
        same = not self.heeds_if_range or headers.get("if-range") in {page.etag, page.modified}
        if page.ranges and same and (asked := headers.get("range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, body = 206, page.content[start:]
            about["Content-Range"] = f"bytes {start}-{len(page.content) - 1}/{len(page.content)}"
        if not page.chunked:
            about["Content-Length"] = str(len(body))
        await self._head(stream, status, {**about, **trouble.headers})
        if trouble.breaks_at is not None:
            body = body[: trouble.breaks_at]
        await self._send(stream, body[: len(body) // 2])
        if self.gate is not None:
            self.halfway.release()
            await self.gate.wait()
        await self._send(stream, body[len(body) // 2 :])

    async def _send(self, stream: trio.SocketStream, body: bytes) -> None:
        await stream.send_all(body)
        self.sent += len(body)
        self.progress.set()
        self.progress = trio.Event()

    async def until(self, sent: int) -> None:
        """Wait until so many bytes of bodies were sent."""
        while self.sent < sent:
            await self.progress.wait()

    @staticmethod
    async def _head(stream: trio.SocketStream, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} X", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())


@asynccontextmanager
async def open_site() -> AsyncGenerator[Site, None]:
    site = Site()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, site.serve, 0, host="127.0.0.1"))
        site.port = listeners[0].socket.getsockname()[1]
        yield site
        nursery.cancel_scope.cancel()


class ArtifactQueue(RecordingQueue):
    """Knows where artifacts are; each answer has another signature. What is not in `places` is not there."""

    def __init__(self, places: dict[str, str] | None = None) -> None:
        super().__init__()
        self.places = places or {}
        self.asked: list[tuple[str, str]] = []
        self.error: Exception | None = None

    async def latest_artifact(self, task_id: str, name: str) -> GetArtifactResponse:
        self.asked.append((task_id, name))
        if self.error is not None:
            raise self.error
        if name not in self.places:
            raise NotFound("queue.getLatestArtifact", 404, "ResourceNotFound", f"Artifact {name} not found")
        return GetArtifactResponse(storage_type="s3", url=f"{self.places[name]}?signature={len(self.asked)}")


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
