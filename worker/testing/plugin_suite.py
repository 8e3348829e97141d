"""What every plugin must do. Derive from `PluginSuite` in a test module and say which plugin it is.

class TestMine(PluginSuite):
    plugin_class = Mine
    payload = {"mine": {"colour": "green"}}
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import httpx
import pytest
import trio
import trio.testing

from engines.base import Builder, Result, Sandbox
from plugins.base import Plugin, TaskHooks
from worker.model import Cause, Resolution, State, Verdict
from worker.payload import Dialect, Owner, PayloadSchema
from worker.ports import Ports
from worker.queue.models import ReferenceArtifactRequest, TaskDefinition
from worker.run import Run
from worker.schema import Document, JsonObject, Slice
from worker.testing.results import FolderResult
from worker.testing.runs import RecordingQueue, open_run, open_services, task_definition
from worker.webhooks import Webhooks

PROMPT = 5.0  # seconds; a hook that was cancelled has nothing to wait for but its own limited cleanup


class OfflinePorts(Ports):
    """The real world but for the network, in which every request is answered with 200 and nothing else."""

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        """No network."""
        return httpx.MockTransport(_accept)


async def _accept(request: httpx.Request) -> httpx.Response:
    await request.aread()
    return httpx.Response(200)


class IdleSandbox(Sandbox):
    """Runs for ever."""

    async def wait(self) -> NoReturn:
        """Never return."""
        await trio.sleep_forever()


class IdleBuilder(Builder):
    """Gathers what plugins add; it cannot be started."""

    def sandbox(self) -> AbstractAsyncContextManager[Sandbox]:
        """Not here."""
        raise NotImplementedError

    def result(self) -> AbstractAsyncContextManager[Result]:
        """Not here."""
        raise NotImplementedError


@dataclass
class Opened:
    """A plugin's hooks for one run, and what they reached of the world."""

    hooks: TaskHooks
    run: Run[Slice]
    queue: RecordingQueue
    causes: list[Cause] = field(default_factory=list)


class PluginSuite:
    """Each method that begins with `test_` is one promise of `plugins.base`."""

    plugin_class: ClassVar[type[Plugin[Any, Any]]]
    dialect: ClassVar[Dialect] = "generic-worker"
    payload: ClassVar[JsonObject] = {}  # a payload, or the part of one that the plugin owns

    def config(self) -> Document:
        """The plugin's part of the config; the defaults unless overridden."""
        return self.plugin_class.Config()

    def task(self) -> TaskDefinition:
        """The task; one without any scopes unless overridden."""
        return task_definition()

    def slice(self) -> Slice:
        """The plugin's slice of `payload`, which must be valid."""
        schema = PayloadSchema([self.dialect], [Owner("plugin", self.plugin_class.payloads)])
        return schema.validate(self.payload)["plugin"]

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncGenerator[Opened, None]:
        """One run of the plugin, in its worker scope. At the end nothing of it may be left."""
        ports, queue = OfflinePorts(), RecordingQueue()
        causes: list[Cause] = []
        webhooks = Webhooks(ports, "http://webhooks.invalid")
        async with (
            open_services(folder, ports=ports, webhooks=webhooks) as services,
            open_run(folder, self.slice(), task=self.task(), queue=queue, stop=causes.append, ports=ports) as run,
        ):
            plugin = self.plugin_class(self.config(), services)
            async with plugin.worker_scope():
                before = trio.lowlevel.current_statistics().tasks_living
                async with plugin.task_scope(run) as hooks:
                    yield Opened(hooks, run, queue, causes)
                assert trio.lowlevel.current_statistics().tasks_living == before, "a run's tasks outlived it"
                assert await _answering(webhooks, queue) == [], "a run's web pages outlived it"

    async def test_it_is_entered_and_left(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as opened:
            assert isinstance(opened.hooks, TaskHooks)
        assert opened.causes == []

    async def test_it_judges_a_run_that_never_started(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as opened:
            assert isinstance(await opened.hooks.stopped(None), Verdict)

    async def test_it_judges_a_run_that_was_killed_and_left_nothing(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as opened:
            assert isinstance(await opened.hooks.stopped(FolderResult(tmp_path, ended=None)), Verdict)

    async def test_it_finishes_with_a_closed_log_without_any_hook_before(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as opened:
            await opened.run.log.close()
            await opened.hooks.finished(Resolution(State.EXCEPTION, "", "malformed-payload"))

    @pytest.mark.parametrize("hook", ["prepare", "background", "alongside"])
    async def test_a_hook_that_is_cancelled_ends(self, tmp_path: Path, hook: str) -> None:
        async with self.opened(tmp_path) as opened:
            async with trio.open_nursery() as nursery:
                match hook:
                    case "prepare":
                        nursery.start_soon(opened.hooks.prepare, IdleBuilder())
                    case "background":
                        nursery.start_soon(opened.hooks.background)
                    case "alongside":
                        nursery.start_soon(opened.hooks.alongside, IdleSandbox())
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                began = trio.current_time()
            assert trio.current_time() - began < PROMPT
            await opened.hooks.stopped(None)

    async def test_a_whole_run_may_be_cancelled_around_it(self, tmp_path: Path) -> None:
        began = trio.current_time()
        with trio.CancelScope() as scope:
            async with self.opened(tmp_path):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert trio.current_time() - began < PROMPT

    def test_the_defaults_do_where_it_is_entered_for_malformed_payloads(self) -> None:
        if self.plugin_class.malformed:
            for model in self.plugin_class.payloads.values():
                model()


async def _answering(webhooks: Webhooks, queue: RecordingQueue) -> list[str]:
    """The URLs the queue was told of which still lead somewhere."""
    urls = [request.url for _, request in queue.created if isinstance(request, ReferenceArtifactRequest)]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(webhooks)) as client:
        return [url for url in urls if (await client.get(url)).status_code != 404]
