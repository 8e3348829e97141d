from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trio

import plugins.registry
from plugins.artifacts import Artifacts
from plugins.base import Plugin, TaskHooks
from plugins.env import Env
from plugins.livelog import LiveLog, LiveLogConfig
from plugins.logprefix import LogPrefix
from plugins.maxruntime import MaxRunTime
from plugins.mounts import Mounts
from plugins.success import Success
from worker.queue.models import ReferenceArtifactRequest, TaskDefinition
from worker.run import Run
from worker.schema import Document, Slice
from worker.testing.plugin_suite import PluginSuite
from worker.testing.runs import task_definition


class TestArtifacts(PluginSuite):
    plugin_class: ClassVar = Artifacts
    payload: ClassVar = {"artifacts": [{"type": "file", "path": "public/missing.txt"}]}


class TestEnv(PluginSuite):
    plugin_class: ClassVar = Env
    payload: ClassVar = {"env": {"A": "b"}}


class TestLiveLog(PluginSuite):
    plugin_class: ClassVar = LiveLog

    def config(self) -> Document:
        return LiveLogConfig.model_validate({"delay": 0})

    async def test_the_suite_sees_whether_the_page_is_gone(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as opened, trio.open_nursery() as nursery:
            nursery.start_soon(opened.hooks.background)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [type(request) for _, request in opened.queue.created] == [ReferenceArtifactRequest]


class TestLogPrefix(PluginSuite):
    plugin_class: ClassVar = LogPrefix


class TestMaxRunTime(PluginSuite):
    plugin_class: ClassVar = MaxRunTime
    payload: ClassVar = {"maxRunTime": 60}


class TestMounts(PluginSuite):
    plugin_class: ClassVar = Mounts
    payload: ClassVar = {
        "mounts": [
            {"file": "a.txt", "content": {"raw": "hello"}},
            {"directory": "b", "cacheName": "c"},
        ]
    }

    def task(self) -> TaskDefinition:
        return task_definition(scopes=["generic-worker:cache:c"])


class TestSuccess(PluginSuite):
    plugin_class: ClassVar = Success
    payload: ClassVar = {"onExitStatus": {"retry": [4]}}


def test_every_plugin_has_passed_the_suite() -> None:
    tested = {suite.plugin_class for suite in PluginSuite.__subclasses__() if suite.__module__ == __name__}
    assert tested == {plugins.registry.load(name) for name in plugins.registry.names()}


class Leaky(Plugin[Document, Slice]):
    """Leaves a task behind for each run."""

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        async with trio.open_nursery() as self.nursery:
            yield

    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        self.nursery.start_soon(trio.sleep_forever)
        yield TaskHooks()


async def test_the_suite_notices_what_outlives_a_run(tmp_path: Path) -> None:
    suite = PluginSuite()
    suite.plugin_class = Leaky  # type: ignore[misc]  # for this one object
    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="outlived")):
        await suite.test_it_is_entered_and_left(tmp_path)
