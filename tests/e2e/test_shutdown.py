"""What becomes of running tasks when a worker is told to stop, once or twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from engines.base import Result
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Resolution, Verdict
from worker.queue.models import TaskStatus
from worker.run import Run
from worker.schema import Document, Slice
from worker.testing.world import open_world

# Runs until it is told to end, and leaves a file then.
LASTS = "trap 'echo saved > left; exit 1' TERM; echo runs; while :; do sleep 0.1; done"


def shell(script: str, **payload: Any) -> dict[str, Any]:
    return {"command": [["sh", "-c", script]], "maxRunTime": 600, **payload}


def resolved(status: TaskStatus) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason_resolved) for run in status.runs]


def recorder(calls: list[str], *, hangs: str = "", hung: trio.Event | None = None) -> type[Plugin[Document, Slice]]:
    """A plugin that writes down when its hooks are called; the one that `hangs` sets `hung` and never returns."""

    class RecorderHooks(TaskHooks):
        async def stopped(self, result: Result | None) -> Verdict:
            await self.called("stopped")
            return COMPLETED

        async def finished(self, resolution: Resolution) -> None:
            await self.called("finished")

        async def called(self, hook: str) -> None:
            calls.append(hook)
            if hook == hangs:
                if hung is not None:
                    hung.set()
                await trio.sleep_forever()

    class Recorder(Plugin[Document, Slice]):
        @asynccontextmanager
        async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
            yield RecorderHooks()

    return Recorder


async def test_after_a_signal_the_log_is_saved_first_and_then_the_artifacts(tmp_path: Path) -> None:
    calls: list[str] = []
    artifact = {"type": "file", "path": "left", "name": "public/left"}
    async with (
        open_world(tmp_path) as world,
        world.worker(world.config(), extra_plugins={"recorder": recorder(calls)}) as worker,
    ):
        task_id = await world.create(shell(LASTS, artifacts=[artifact]))
        await world.until(task_id, "running")
        worker.supervisor.stop()
        with trio.fail_after(30):
            await worker.done.wait()
        status = await world.queue.status(task_id)
        assert resolved(status)[0] == ("exception", "worker-shutdown")
        assert "told to stop" in (await world.log(task_id)).splitlines()[-1]
    assert calls == ["finished", "stopped"]


async def test_otherwise_the_log_is_saved_last(tmp_path: Path) -> None:
    calls: list[str] = []
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("true"))
        await world.run_worker(world.config(numberOfTasks=1), extra_plugins={"recorder": recorder(calls)})
        assert resolved(await world.queue.status(task_id)) == [("completed", "completed")]
    assert calls == ["stopped", "finished"]


async def test_what_does_not_fit_into_the_grace_is_cut_off_and_the_run_is_reported(tmp_path: Path) -> None:
    calls: list[str] = []
    config = {"shutdown": {"onTerm": "abort", "grace": 0.5}}
    plugins = {"recorder": recorder(calls, hangs="stopped")}
    async with (
        open_world(tmp_path) as world,
        world.worker(world.config(**config), extra_plugins=plugins) as worker,
    ):
        task_id = await world.create(shell(LASTS))
        await world.until(task_id, "running")
        worker.supervisor.stop()
        with trio.fail_after(30):
            await worker.done.wait()
        assert resolved(await world.queue.status(task_id))[0] == ("exception", "worker-shutdown")
        assert "told to stop" in (await world.log(task_id)).splitlines()[-1]


async def test_the_second_signal_leaves_no_grace(tmp_path: Path) -> None:
    config = {"killGrace": "5 minutes", "shutdown": {"onTerm": "abort", "grace": "1 hour"}}
    async with open_world(tmp_path) as world, world.worker(world.config(**config)) as worker:
        task_id = await world.create(shell("trap '' TERM; while :; do sleep 1; done"))
        await world.until(task_id, "running")
        worker.supervisor.stop()
        worker.supervisor.abort()
        with trio.fail_after(30):
            await worker.done.wait()
        assert resolved(await world.queue.status(task_id))[0] == ("exception", "worker-shutdown")


async def test_a_task_can_be_cancelled_while_the_worker_drains(tmp_path: Path) -> None:
    config = {"shutdown": {"onTerm": "finish"}, "cancelPollInterval": 0.2}
    async with open_world(tmp_path) as world, world.worker(world.config(**config)) as worker:
        task_id = await world.create(shell(LASTS))
        await world.until(task_id, "running")
        worker.supervisor.stop()
        await world.queue.cancel_task(task_id)
        with trio.fail_after(30):
            await worker.done.wait()
        assert resolved(await world.queue.status(task_id)) == [("exception", "canceled")]


async def test_a_hook_that_hangs_is_named_and_the_run_ends(tmp_path: Path) -> None:
    plugins = {"recorder": recorder([], hangs="stopped")}
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("true"))
        await world.run_worker(world.config(numberOfTasks=1, limits={"stopped": 1}), extra_plugins=plugins)
        assert resolved(await world.queue.status(task_id)) == [("exception", "internal-error")]
        assert "plugin recorder: stopped: took longer than 1 second" in (await world.log(task_id)).splitlines()[-1]


async def test_a_task_that_ended_by_itself_is_not_completed_when_its_artifacts_were_cut_off(tmp_path: Path) -> None:
    hung = trio.Event()
    plugins = {"recorder": recorder([], hangs="stopped", hung=hung)}
    async with open_world(tmp_path) as world, world.worker(world.config(), extra_plugins=plugins) as worker:
        task_id = await world.create(shell("true"))
        with trio.fail_after(30):
            await hung.wait()
            worker.supervisor.stop()
            worker.supervisor.abort()
            await worker.done.wait()
        assert resolved(await world.queue.status(task_id))[0] == ("exception", "worker-shutdown")
