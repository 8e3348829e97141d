"""A run with artifacts: a folder of files, a queue that records, and a storage that takes PUTs over real HTTP."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import trio

from engines.base import Result
from plugins.artifacts import Artifacts
from plugins.artifacts.payload import ArtifactsPayload, DockerWorkerPayload, GenericWorkerPayload
from plugins.artifacts.plugin import ArtifactsConfig
from plugins.artifacts.stores import Store
from worker.model import Verdict
from worker.ports import Ports
from worker.queue.models import ErrorArtifactRequest, S3ArtifactRequest
from worker.serving import ServingLimits, listen, port_of, serve
from worker.testing.results import FolderResult
from worker.testing.runs import RecordingQueue, log_text, open_run, open_services, task_definition

CREATED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
TASK = task_definition(CREATED)
KEPT = 1024 * 1024  # bytes of a body; of longer ones there is the hash


@dataclass
class Put:
    """One upload as it arrived."""

    headers: dict[str, str]
    body: bytes
    length: int
    sha256: str

    @property
    def content(self) -> bytes:
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body


@dataclass
class Storage:
    """Takes PUTs. `answers` has statuses for the first ones; `refusal` is the body of those that are not 200.

    With a `gate` they wait for it before they are answered, and with a `door` before their bodies are read; `arrivals`
    counts those that came as far.
    """

    puts: dict[str, Put] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    refusal: bytes = b""
    gate: trio.Event | None = None
    door: trio.Event | None = None
    arrivals: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(0))
    busy: int = 0
    most_busy: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            if self.door is not None:
                self.arrivals.release()
                await self.door.wait()
            put = await self._receive(scope, receive)
            if put is None:
                return
            if self.gate is not None:
                self.arrivals.release()
                await self.gate.wait()
        finally:
            self.busy -= 1
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.puts[unquote(scope["path"]).removeprefix("/")] = put
        body = b"" if status == 200 else self.refusal
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _receive(self, scope: Any, receive: Any) -> Put | None:
        assert scope["method"] == "PUT"
        body, length, digest = b"", 0, hashlib.sha256()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            length += len(part)
            digest.update(part)
            body += part if length <= KEPT else b""
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        return Put(headers, body, length, digest.hexdigest())


@dataclass
class World:
    """One run. `task` is its folder; `upload` runs the plugin on it."""

    folder: Path
    storage: Storage
    queue: RecordingQueue
    config: ArtifactsConfig = field(default_factory=ArtifactsConfig)
    ports: Ports = field(default_factory=Ports)
    store: Store | None = None
    log: str = ""

    @property
    def task(self) -> Path:
        return self.folder / "task"

    def write(self, path: str, content: bytes = b"some text\n") -> None:
        full = self.task / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)

    @property
    def errors(self) -> dict[str, str]:
        """The error artifacts: name to reason."""
        return {name: made.reason for name, made in self.queue.created if isinstance(made, ErrorArtifactRequest)}

    @property
    def announced(self) -> list[str]:
        return sorted(name for name, made in self.queue.created if isinstance(made, S3ArtifactRequest))

    async def upload(self, *artifacts: dict[str, Any], result: Result | None = None) -> Verdict:
        return await self.perform(generic(*artifacts), result or FolderResult(self.task))

    async def perform(self, payload: ArtifactsPayload, result: Result | None) -> Verdict:
        async with (
            open_services(self.folder, ports=self.ports) as services,
            open_run(self.folder, payload, task=TASK, queue=self.queue, ports=self.ports) as run,
        ):
            plugin = Artifacts(self.config, services, store=self.store)
            try:
                async with plugin.worker_scope(), plugin.task_scope(run) as hooks:
                    return await hooks.stopped(result)
            finally:
                with trio.CancelScope(shield=True):
                    self.log = await log_text(run)


def generic(*artifacts: dict[str, Any]) -> GenericWorkerPayload:
    """A payload as a task has it."""
    return GenericWorkerPayload.model_validate({"artifacts": list(artifacts)})


def docker(artifacts: dict[str, Any]) -> DockerWorkerPayload:
    """A payload as a task for docker-worker has it."""
    return DockerWorkerPayload.model_validate({"artifacts": artifacts})


def file(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, **more}


def directory(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "directory", "path": path, **more}


@asynccontextmanager
async def open_world(folder: Path) -> AsyncGenerator[World, None]:
    (folder / "task").mkdir()
    storage = Storage()
    async with trio.open_nursery() as nursery:
        listeners = await listen("127.0.0.1", 0)
        await nursery.start(partial(serve, storage, listeners, limits=ServingLimits(request_body=2**30)))
        yield World(folder, storage, RecordingQueue(f"http://127.0.0.1:{port_of(listeners)}"))
        nursery.cancel_scope.cancel()
