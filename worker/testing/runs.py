"""What a plugin sees of a run, without a queue, a worker or an engine.

    async with open_services(tmp_path) as services, open_run(tmp_path, MyPayload()) as run:
        plugin = MyPlugin(MyPlugin.Config(), services)
        async with plugin.task_scope(run) as hooks:
            verdict = await hooks.stopped(FolderResult(tmp_path / "task"))
        assert "..." in await log_text(run)

The files that the task left are `worker.testing.results`' affair.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import trio

from worker.disk import Disk
from worker.http import HttpClients, open_http
from worker.model import Cause, RunKey
from worker.ports import Ports
from worker.queue.models import (
    ErrorArtifactRequest,
    ErrorArtifactResponse,
    LinkArtifactRequest,
    LinkArtifactResponse,
    ReferenceArtifactRequest,
    ReferenceArtifactResponse,
    S3ArtifactRequest,
    S3ArtifactResponse,
    TaskDefinition,
)
from worker.queue.retry import RetryPolicy
from worker.queue.services import ArtifactAnswer, ArtifactRequest, PurgeCache, Queue
from worker.queue.transfer import UPLOAD_POLICY
from worker.queue.upload import DeploymentStorage
from worker.run import Run
from worker.schema import Slice
from worker.services import Identity, Services
from worker.tasklog import open_tasklog
from worker.trash import FOLDER as TRASH
from worker.trash import open_trash

if TYPE_CHECKING:
    from worker.webhooks import Webhooks

P = TypeVar("P", bound=Slice)

ROOT_URL = "http://taskcluster.invalid"
TASK_ID = "VtJ5S3MCRjGWdMkpUAYpdg"
KEY = RunKey(TASK_ID, 0)
IDENTITY = Identity(ROOT_URL, "proj-test/native", "local", "w1")


def task_definition(created: datetime | None = None, **changes: Any) -> TaskDefinition:
    """A task, created now, with a deadline in an hour and kept for a day; `changes` by their names in Python."""
    created = created or datetime.now(UTC).replace(microsecond=0)
    values: dict[str, Any] = {
        "created": created,
        "deadline": created + timedelta(hours=1),
        "dependencies": [],
        "expires": created + timedelta(days=1),
        "extra": {},
        "metadata": {
            "name": "test",
            "description": "A task of the tests",
            "owner": "nobody@example.com",
            "source": "https://example.com/",
        },
        "payload": {},
        "priority": "lowest",
        "provisioner_id": "proj-test",
        "requires": "all-completed",
        "retries": 5,
        "routes": [],
        "scheduler_id": "-",
        "scopes": [],
        "tags": {},
        "task_group_id": TASK_ID,
        "task_queue_id": "proj-test/native",
        "worker_type": "native",
    }
    return TaskDefinition.model_validate(values | changes)


class RecordingQueue(Queue):
    """Takes artifacts and remembers them; it answers no other call.

    `created` has every request by name, in the order of arrival, also those that are then refused: a name in `refusals`
    is answered with its exception. An upload is sent to `storage_url`, a slash and the name.
    """

    # There is no deployment behind it, so the constructor of the real one is left out.
    def __init__(self, storage_url: str = "http://storage.invalid") -> None:
        self.storage_url = storage_url
        self.created: list[tuple[str, ArtifactRequest]] = []
        self.refusals: dict[str, Exception] = {}

    # The overloads only tell callers more exactly what they get.
    async def create_artifact(  # type: ignore[override]
        self, key: RunKey, name: str, request: ArtifactRequest
    ) -> ArtifactAnswer:
        """Remember the request, which must be about the run that `open_run` makes."""
        assert key == KEY
        self.created.append((name, request))
        if refusal := self.refusals.get(name):
            raise refusal
        match request:
            case S3ArtifactRequest():
                return S3ArtifactResponse(
                    content_type=request.content_type,
                    expires=request.expires,
                    put_url=f"{self.storage_url}/{quote(name)}?attempt={len(self.created)}",
                )
            case ErrorArtifactRequest():
                return ErrorArtifactResponse()
            case ReferenceArtifactRequest():
                return ReferenceArtifactResponse()
            case LinkArtifactRequest():
                return LinkArtifactResponse()
        raise NotImplementedError(f"artifacts of storage type {request.storage_type}")


def _nobody_stops(cause: Cause) -> None:
    raise AssertionError(f"the run was stopped: {cause}")


@asynccontextmanager
async def open_run(
    folder: Path,
    payload: P,
    *,
    task: TaskDefinition | None = None,
    queue: Queue | None = None,
    stop: Callable[[Cause], None] = _nobody_stops,
    ports: Ports | None = None,
) -> AsyncGenerator[Run[P], None]:
    """A run with a real log in `folder`. Being stopped is an error, unless a `stop` is given (`causes.append`)."""
    async with open_tasklog(ports or Ports(), folder / "task.log") as log:
        yield Run(KEY, task or task_definition(), payload, log, queue or RecordingQueue(), stop)


async def log_text(run: Run[P]) -> str:
    """All that is in the run's log so far."""
    text = bytearray()
    while len(text) < run.log.size:
        text += await run.log.read(len(text))
    return text.decode()


@asynccontextmanager
async def open_services(
    folder: Path,
    *,
    ports: Ports | None = None,
    http: HttpClients | None = None,
    webhooks: Webhooks | None = None,
    capacity: int = 1,
    purge_cache: PurgeCache | None = None,
    upload_policy: RetryPolicy = UPLOAD_POLICY,
) -> AsyncGenerator[Services, None]:
    """The worker's services, with real HTTP clients unless some are given; without `webhooks` none can be attached."""
    ports = ports or Ports()
    work_dir = folder / "work"
    work_dir.mkdir(exist_ok=True)
    leftovers = (work_dir / TRASH).exists()
    missing = cast("Webhooks", None)
    async with open_http(ports) as real, open_trash(ports, work_dir, trio.Event(), leftovers=leftovers) as trash:
        http = http or real
        yield Services(
            IDENTITY,
            ports,
            http,
            webhooks or missing,
            work_dir,
            trash,
            Disk(ports, work_dir, trash, minimum_space=0, minimum_inodes=0),
            timedelta(seconds=5),
            DeploymentStorage(http, ports, policy=upload_policy),
            capacity,
            purge_cache,
        )
