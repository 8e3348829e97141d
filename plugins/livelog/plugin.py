"""The plugin `livelog`.

while it runs   live.log ─ reference ─▸ the worker's web server
afterwards      live.log ─ link ─▸ live_backing.log ─▸ storage
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import ClassVar
from urllib.parse import quote

import trio

from plugins.base import Plugin, TaskHooks
from plugins.livelog.backing import BackingLog, open_backing
from plugins.livelog.payload import DockerWorkerLiveLog, GenericWorkerLiveLog, LiveLogPayload
from plugins.livelog.viewers import Viewers
from worker.errors import ResourceUnavailable, TaskFault, WorkerFault
from worker.http import HttpError
from worker.model import Resolution
from worker.quantities import Duration
from worker.queue.errors import Conflict, QueueError
from worker.queue.models import LinkArtifactRequest, ReferenceArtifactRequest, TaskDefinition
from worker.queue.transfer import NewArtifact
from worker.run import Run
from worker.schema import Document
from worker.services import Services
from worker.viewer import LogView, Viewer

CONTENT_TYPE = "text/plain; charset=utf-8"

# Beyond the deadline, for the end of a task that was ended by it: until the link is there.
REFERENCE_GRACE = timedelta(minutes=15)


class LiveLogConfig(Document):
    """`delay`: how long a task must run before its live log is announced, which costs the queue a call.

    `lag`: how long viewers get after the report to read the rest of the log. The run's place is taken for so long.
    """

    delay: Duration = timedelta(seconds=1)
    lag: Duration = timedelta(seconds=1)


class Place:
    """Where a live log can be seen: a URL, and later perhaps another one."""

    def __init__(self) -> None:
        self._moved = trio.Event()  # replaced whenever it is set
        self.url = ""

    def move(self, url: str) -> None:
        """It can be seen there from now on."""
        self.url = url
        self._moved.set()
        self._moved = trio.Event()

    async def wait_moved(self, url: str) -> None:
        """Return when it can no longer be seen at `url`."""
        while self.url == url:
            await self._moved.wait()


class LiveLogHooks(TaskHooks):
    """One run's log. `place` is where the live log can be seen, None where the task wants none."""

    def __init__(
        self,
        config: LiveLogConfig,
        services: Services,
        run: Run[LiveLogPayload],
        place: Place | None,
        backing: BackingLog,
    ) -> None:
        self._config = config
        self._services = services
        self._run = run
        self._names = run.payload.names
        self._place = place
        self._backing = backing

    async def background(self) -> None:
        """Announce the live log, and compress what will be stored of it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce_everywhere)
            if self._names.backing is not None:
                nursery.start_soon(self._backing.keep_up)

    async def _announce_everywhere(self) -> None:
        """Unless the task ends before anybody could look; and anew whenever the log has another URL."""
        await trio.sleep(self._config.delay.total_seconds())
        if self._names.live is None or self._place is None:
            return
        while True:
            url = self._place.url
            await self._announce(self._names.live, url)
            await self._place.wait_moved(url)

    async def _announce(self, name: str, url: str) -> None:
        request = ReferenceArtifactRequest(
            content_type=CONTENT_TYPE, expires=_reference_expires(self._run.task), url=url
        )
        try:
            await self._run.queue.create_artifact(self._run.key, name, request)
        except (QueueError, HttpError) as error:
            # The queue's message may quote the request, and in it the URL that holds a secret.
            self._run.log.warn(f"the live log could not be announced: {str(error).replace(url, '***')}")

    async def finished(self, resolution: Resolution) -> None:
        """Store the log and point the live log to it. Raises `ResourceUnavailable`, or `WorkerFault` for the disk."""
        if self._names.backing is None:
            return
        errors: list[Exception] = []

        async def kept(attempt: Callable[..., Awaitable[None]], *names: str) -> None:
            # One that fails must not cut off the other.
            try:
                await attempt(*names)
            except (TaskFault, ResourceUnavailable, WorkerFault) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            # The queue takes a link to what is not there yet.
            if self._names.live is not None:
                nursery.start_soon(kept, self._link, self._names.live, self._names.backing)
            nursery.start_soon(kept, self._store, self._names.backing)
        if errors:
            raise ExceptionGroup("the log is not where it should be", errors)

    async def _store(self, name: str) -> None:
        try:
            content = await self._backing.finish()
            run, plain = self._run, self._backing.plain
            artifact = NewArtifact(run.queue, run.key, name, CONTENT_TYPE, _expires(run.task), content, plain)
            await self._services.storage.upload(artifact)
        except Conflict as error:
            raise TaskFault(f"the log could not be stored as {name}: {error.message}") from error
        except (QueueError, HttpError) as error:
            raise ResourceUnavailable(f"the log could not be uploaded: {error}") from error
        except OSError as error:
            raise WorkerFault(f"the log could not be read: {error.strerror or error}") from error

    async def _link(self, live: str, backing: str) -> None:
        request = LinkArtifactRequest(artifact=backing, content_type=CONTENT_TYPE, expires=_expires(self._run.task))
        try:
            await self._run.queue.create_artifact(self._run.key, live, request)
        except Conflict as error:
            raise TaskFault(f"the log could not be linked as {live}: {error.message}") from error
        except (QueueError, HttpError) as error:
            raise ResourceUnavailable(f"the log could not be linked: {error}") from error


class LiveLog(Plugin[LiveLogConfig, LiveLogPayload]):
    """Every run has a log that can be read while it runs and afterwards, also where its payload is malformed."""

    Config = LiveLogConfig
    payloads: ClassVar = {"generic-worker": GenericWorkerLiveLog, "docker-worker": DockerWorkerLiveLog}
    malformed = True

    def __init__(self, config: LiveLogConfig, services: Services) -> None:
        super().__init__(config, services)
        self._viewer: Viewer | None = None

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        """Read the viewer's files, once for all runs."""
        self._viewer = await self.services.ports.run_sync(Viewer)
        yield

    @asynccontextmanager
    async def task_scope(self, run: Run[LiveLogPayload]) -> AsyncGenerator[TaskHooks, None]:
        """Serve the log, if the task wants that; viewers that lag behind get a moment to read the rest."""
        async with open_backing(self.services.ports, run.log.file) as backing:
            if run.payload.names.live is None:
                yield self._hooks(run, None, backing)
                return
            viewers = Viewers(run.log, self._page(run, run.payload.names.live))
            place = Place()
            async with self.services.webhooks.attach(viewers, moved=place.move) as url:
                place.move(url)
                yield self._hooks(run, place, backing)
                with trio.move_on_after(self.config.lag.total_seconds()):
                    await viewers.wait_read()

    def _page(self, run: Run[LiveLogPayload], name: str) -> LogView:
        """The page of a run's log. When that is no longer here, a browser gets it from the queue, if anybody may."""
        assert self._viewer is not None, "a run outside of the worker's scope"
        root_url, (task_id, run_id) = self.services.identity.root_url, (run.key.task_id, run.key.run_id)
        stored = f"{root_url}/api/queue/v1/task/{task_id}/runs/{run_id}/artifacts/{quote(name, safe='')}"
        return LogView(self._viewer, title=f"Log of {run.key}", artifact=stored if name.startswith("public/") else None)

    def _hooks(self, run: Run[LiveLogPayload], place: Place | None, backing: BackingLog) -> LiveLogHooks:
        return LiveLogHooks(self.config, self.services, run, place, backing)


def _expires(task: TaskDefinition) -> datetime:
    """The log is kept as long as the task. The queue fills `expires` in; without it the deadline is surely allowed."""
    return task.expires or task.deadline


def _reference_expires(task: TaskDefinition) -> datetime:
    """Soon after the run's end at the latest, which is its deadline: `maxRunTime` is another plugin's to know.

    The queue lets an expiry only grow, and the link that follows has a later one.
    """
    return min(task.deadline + REFERENCE_GRACE, _expires(task))
