"""Artifacts from wherever the queue says they are."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from io import FileIO
from pathlib import Path

import click
import httpx
import trio

from worker.cli.common import NO_QUEUE, Failure, Session
from worker.http import HttpError, HttpStream, plain_url
from worker.model import RunKey
from worker.ports import Ports
from worker.quantities import format_size
from worker.queue.errors import ApiError, QueueError
from worker.queue.models import ArtifactResponse

MAX_REDIRECTS = 5
AT_ONCE = 4

Progress = Callable[[int], None]  # is told how many more bytes there are


def _no_headers(_url: httpx.URL) -> Mapping[str, str]:
    return {}


@asynccontextmanager
async def open_artifact(
    session: Session, key: RunKey, name: str, headers_for: Callable[[httpx.URL], Mapping[str, str]] = _no_headers
) -> AsyncGenerator[tuple[httpx.URL, HttpStream], None]:
    """Where the content of an artifact is in the end, and the content to be read, or the part that headers ask for.

    Raises Failure, QueueError or HttpError.
    """
    url = httpx.URL((await session.queue.get_artifact(key, name)).url)
    for _ in range(MAX_REDIRECTS):
        headers = headers_for(url)
        async with session.http.bulk.stream("GET", url, headers=headers) as stream:
            if stream.status in {301, 302, 303, 307, 308}:
                url = url.join(stream.headers.get("Location", ""))
                continue
            if stream.status != 200 and not (headers and stream.status in {206, 416}):
                raise Failure(f"{name}: {plain_url(url)} answers with status {stream.status}", NO_QUEUE)
            yield url, stream
            return
    raise Failure(f"{name}: more than {MAX_REDIRECTS} redirections", NO_QUEUE)


def path_below(directory: Path, name: str) -> Path:
    """Where an artifact of that name goes: below `directory`, whatever the name."""
    # A segment that is no name becomes one: `..` is `__`.
    segments = [segment if segment.strip(".") else "_" * max(1, len(segment)) for segment in name.split("/")]
    return directory.joinpath(*(segment.replace("\0", "_").replace("\\", "_") for segment in segments))


async def download_all(session: Session, key: RunKey, directory: Path, tell: Callable[[str], None]) -> int:
    """Bring all artifacts of a run into `directory`; returns how many could not be had, each of them told.

    An error artifact has no content and is told of only.
    """
    artifacts = await session.queue.list_artifacts(key)
    failed: list[str] = []
    limiter = trio.CapacityLimiter(AT_ONCE)
    with progress(tell) as started:

        async def fetch(artifact: ArtifactResponse, target: Path) -> None:
            async with limiter:
                try:
                    await _download(session, key, artifact.name, target, started(artifact))
                except (Failure, QueueError, HttpError, OSError) as error:
                    failed.append(artifact.name)
                    tell(f"{artifact.name}: {error}")

        async with trio.open_nursery() as nursery:
            targets: set[Path] = set()
            for artifact in artifacts:
                target = path_below(directory, artifact.name)
                if target in targets:
                    failed.append(artifact.name)
                    tell(f"{artifact.name}: another artifact has the same file name")
                elif artifact.storage_type == "error":
                    await _tell_error(session, key, artifact.name, tell)
                else:
                    targets.add(target)
                    nursery.start_soon(fetch, artifact, target)
    return len(failed)


async def _tell_error(session: Session, key: RunKey, name: str, tell: Callable[[str], None]) -> None:
    try:
        await session.queue.get_artifact(key, name)
    except ApiError as error:
        tell(f"{name}: {error.code}: {error.message}")


async def _download(session: Session, key: RunKey, name: str, target: Path, more: Progress) -> None:
    """Write to a file beside the target, which takes its place when it is whole."""
    await session.ports.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    partial = target.with_name(f".{target.name[:200]}.part")
    try:
        async with open_artifact(session, key, name) as (_, stream):
            await _write(session.ports, partial, stream, more)
        await session.ports.run_sync(partial.replace, target)
    finally:
        with trio.CancelScope(shield=True):
            await session.ports.run_sync(lambda: partial.unlink(missing_ok=True))


async def _write(ports: Ports, path: Path, stream: HttpStream, more: Progress) -> None:
    with await ports.run_sync(_create, path) as file:
        async for chunk in stream.chunks():
            await ports.run_sync(_write_whole, file, chunk)
            more(len(chunk))


def _write_whole(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _create(path: Path) -> FileIO:
    # Where somebody else may write too, a link in the file's place must not lead elsewhere.
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), "wb")


@contextmanager
def progress(tell: Callable[[str], None]) -> Generator[Callable[[ArtifactResponse], Progress], None, None]:
    """Bars on a terminal, else a line for each file; what it yields makes a `Progress` for an artifact."""
    if not sys.stderr.isatty():

        def line(artifact: ArtifactResponse) -> Progress:
            size = "" if artifact.content_length is None else f", {format_size(artifact.content_length)}"
            tell(f"{artifact.name}{size}")
            return lambda _more: None

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:

        def bar(artifact: ArtifactResponse) -> Progress:
            row = bars.add_task(artifact.name, total=artifact.content_length)
            return lambda more: bars.advance(row, more)

        yield bar


def tell(message: str) -> None:
    """A line on stderr."""
    click.echo(message, err=True)
