"""Real signals to a real worker process."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from worker.process import owner_of
from worker.queue.models import TaskStatus
from worker.testing.hostile import HOSTILE, command
from worker.testing.leaks import no_leaks
from worker.testing.realworker import RealWorker, real_worker
from worker.testing.trees import Arrivals
from worker.testing.world import World, open_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the trees are Linux'")

TOLD = "told to stop: no more claims"  # what a worker says when it has had the first signal
HURRIED = ("lock", "trash")  # no second signal waits until the trash is empty; the next start goes on with it
SHUTDOWN = [("exception", "worker-shutdown"), ("pending", None)]


def told(status: TaskStatus) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason_resolved) for run in status.runs]


@dataclass
class Running:
    """A worker whose task is complete, and as deaf as it can be."""

    world: World
    worker: RealWorker
    task_id: str

    async def resolution(self) -> list[tuple[str, str | None]]:
        return told(await self.world.queue.status(self.task_id))


@asynccontextmanager
async def running(folder: Path, *, kept: Sequence[str] = ("lock",), **settings: Any) -> AsyncGenerator[Running, None]:
    """It has ended when the block has, and left nothing but what is `kept`."""
    mark, work = f"tree-{folder.name}", folder / "work"
    work.mkdir()
    with Arrivals(folder / "ready") as arrivals:
        async with no_leaks(work, marks=[mark, owner_of(work)], kept=kept), open_world(folder) as world:
            argv = command(mark, *HOSTILE, ready=arrivals.path)
            task_id = await world.create({"command": [argv], "maxRunTime": 600})
            async with real_worker(world, folder, **settings) as worker:
                with trio.fail_after(20):
                    await arrivals.wait(mark)
                yield Running(world, worker, task_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_ends_the_task_and_reports_it(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path, killGrace=0.5) as now:
        now.worker.process.send_signal(number)
        with trio.fail_after(10):
            assert await now.worker.end() == 0
        assert await now.resolution() == SHUTDOWN
        assert "told to stop" in (await now.world.log(now.task_id)).splitlines()[-1]


async def test_the_second_signal_waits_for_no_grace(tmp_path: Path) -> None:
    async with running(tmp_path, kept=HURRIED, killGrace=60) as now:
        now.worker.process.send_signal(signal.SIGTERM)
        await now.worker.hear(TOLD)
        now.worker.process.send_signal(signal.SIGTERM)
        with trio.fail_after(5):
            assert await now.worker.end() == 0
        assert await now.resolution() == SHUTDOWN


async def test_a_task_that_is_waited_for_can_still_be_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, killGrace=0.5, shutdown={"onTerm": "finish"}) as now:
        now.worker.process.send_signal(signal.SIGTERM)
        await now.worker.hear(TOLD)
        await now.world.queue.cancel_task(now.task_id)
        with trio.fail_after(10):
            assert await now.worker.end() == 0
        assert await now.resolution() == [("exception", "canceled")]


async def test_the_second_signal_ends_a_task_that_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, kept=HURRIED, killGrace=60, shutdown={"onTerm": "finish"}) as now:
        now.worker.process.send_signal(signal.SIGTERM)
        await now.worker.hear(TOLD)
        now.worker.process.send_signal(signal.SIGTERM)
        with trio.fail_after(5):
            assert await now.worker.end() == 0
        assert await now.resolution() == SHUTDOWN
