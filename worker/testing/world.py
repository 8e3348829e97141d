"""A whole small world for tests: an embedded queue on loopback, and workers on it, all in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import trio

from plugins.base import Plugin
from worker.claims import StopReason
from worker.config import Config, parse_config
from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.http import HttpClients, open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.errors import NotFound
from worker.queue.models import CreateTaskRequest, TaskStatus
from worker.queue.services import Queue
from worker.schema import JsonObject
from worker.supervisor import Supervisor, run_worker

TASK_QUEUE = "proj-test/native"
TOP_LEVEL = ("engine", "engines", "plugins", "webhooks")
LIVE_LOG = "public/logs/live.log"
BACKING_LOG = "public/logs/live_backing.log"


@dataclass
class Worker:
    """A worker of the world; `reason` is why it stopped, when it has."""

    supervisor: Supervisor
    done: trio.Event
    reason: StopReason | None = None


@dataclass
class World:
    """`queue` may do everything."""

    ports: Ports
    embedded: EmbeddedQueue
    http: HttpClients
    credentials: Credentials
    queue: Queue
    folder: Path

    def config(self, **worker: Any) -> Config:
        """A config whose part `worker` has these settings; those of `TOP_LEVEL` go to the top."""
        document: JsonObject = {key: worker.pop(key) for key in TOP_LEVEL if key in worker}
        number = len(list(self.folder.iterdir()))
        own = {
            "taskQueueId": TASK_QUEUE,
            "workerId": f"w{number}",
            "workDir": str(self.folder / f"work{number}"),
            "minimumDiskSpace": 0,
            "minimumInodes": 0,
            "killGrace": 1,
        }
        return parse_config({**document, "worker": own | worker}, {})

    async def create(self, payload: JsonObject, **changes: Any) -> str:
        """Create a task, with `changes` to its definition by the names in JSON; its id."""
        task_id, now = self.ports.slug(), self.ports.now()
        definition = {
            "taskQueueId": TASK_QUEUE,
            "created": now,
            "deadline": now + timedelta(hours=1),
            "metadata": {
                "name": "test",
                "description": "A task of the tests",
                "owner": "nobody@example.com",
                "source": "https://example.com/",
            },
            "payload": payload,
        }
        await self.queue.create_task(task_id, CreateTaskRequest.model_validate(definition | changes))
        return task_id

    async def run_worker(
        self, config: Config, extra_plugins: Mapping[str, type[Plugin[Any, Any]]] | None = None
    ) -> StopReason:
        """Run a worker until it stops by itself."""
        return await run_worker(
            config,
            self.ports,
            root_url=self.embedded.root_url,
            credentials=self.credentials,
            extra_plugins=extra_plugins,
        )

    @asynccontextmanager
    async def worker(
        self,
        config: Config,
        *,
        answers_polls: bool = True,
        extra_plugins: Mapping[str, type[Plugin[Any, Any]]] | None = None,
    ) -> AsyncGenerator[Worker, None]:
        """A worker that runs beside the block. It is aborted at the end unless it has stopped.

        `answers_polls`: whether the queue answers its polls when the worker is told to stop.
        """
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[Supervisor]) -> None:
                worker_reason = await run_worker(
                    config,
                    self.ports,
                    root_url=self.embedded.root_url,
                    credentials=self.credentials,
                    extra_plugins=extra_plugins,
                    on_stop=self.embedded.answer_polls if answers_polls else lambda: None,
                    task_status=task_status,
                )
                worker.reason = worker_reason
                worker.done.set()

            worker = Worker(await nursery.start(run), trio.Event())
            yield worker
            worker.supervisor.abort()

    async def resolved(self, task_id: str) -> TaskStatus:
        """Wait, for a minute at most, until a task is resolved."""
        return await self.until(task_id, "completed", "failed", "exception")

    async def until(self, task_id: str, *states: str) -> TaskStatus:
        """Wait, for a minute at most, until a task is in one of `states`."""
        with trio.fail_after(60):
            while True:
                changed = self.embedded.changed()
                status = await self.queue.status(task_id)
                if status.state in states:
                    return status
                await changed.wait()

    async def live_log(self, task_id: str, run_id: int = 0) -> str:
        """Wait, for a minute at most, until a run's live log is announced: where it is."""
        with trio.fail_after(60):
            while True:
                changed = self.embedded.changed()
                try:
                    return (await self.queue.get_artifact(RunKey(task_id, run_id), LIVE_LOG)).url
                except NotFound:
                    await changed.wait()

    async def artifact(self, task_id: str, name: str, run_id: int = 0) -> bytes:
        """The content of an artifact, decoded."""
        place = await self.queue.get_artifact(RunKey(task_id, run_id), name)
        answer = await self.http.bulk.request("GET", place.url, limit=2**30)
        assert answer.status == 200, answer
        return answer.body

    async def log(self, task_id: str, run_id: int = 0) -> str:
        """The backing log of a run."""
        return (await self.artifact(task_id, BACKING_LOG, run_id)).decode()


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    ports: Ports | None = None,
    claim_timeout: timedelta = timedelta(minutes=20),
    objects_once: bool = False,
) -> AsyncGenerator[World, None]:
    """A world with its workers' folders in `folder`, which must be empty."""
    ports = ports or Ports()
    async with (
        open_embedded_queue(ports, claim_timeout=claim_timeout, objects_once=objects_once) as embedded,
        open_http(ports) as http,
    ):
        credentials = Credentials(embedded.credentials.client_id, embedded.credentials.access_token)
        queue = Queue(Deployment(embedded.root_url, http, ports), lambda: credentials)
        yield World(ports, embedded, http, credentials, queue, folder)
