"""Every cause at every stage, with real processes: one resolution of the right kind, and nothing is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cancellation_table import CannotBe, End, Reason, Stage, cells
from cancellation_world import GATE, GATED_NATIVE, Gate, GatedNative, Script, StagedPorts

from worker.model import RunKey
from worker.process import owner_of
from worker.queue.models import TaskStatus
from worker.supervisor import Supervisor, run_worker
from worker.testing.hostile import command
from worker.testing.leaks import no_leaks
from worker.testing.trees import Arrivals
from worker.testing.world import World, open_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the leak detector reads /proc")

ENDS = [(reason, stage, end) for reason, stage, end in cells() if isinstance(end, End)]
LIMIT = 30.0  # seconds for a cell; it takes one or two
# Long enough to get to any stage before it.
DEADLINE = timedelta(seconds=2.5)
WITH_PROCESSES = {Stage.STARTING, Stage.RUNNING, Stage.STOPPING, Stage.UPLOADING, Stage.REPORTING}


@dataclass
class Cell:
    """One run under test."""

    world: World
    ports: StagedPorts
    supervisor: Supervisor
    task_id: str
    go: int

    @property
    def script(self) -> Script:
        return self.ports.script

    async def bring_about(self, reason: Reason) -> None:
        """Have it happen, and return when the worker knows of it."""
        match reason:
            case Reason.CANCELLED:
                await self.world.queue.cancel_task(self.task_id)
                await self.ports.polled()
            case Reason.DEADLINE:
                await self.world.resolved(self.task_id)
                await self.ports.polled()
            case Reason.CLAIM_LOST:
                await self.world.queue.report_exception(RunKey(self.task_id, 0), "internal-error")
                await self.ports.polled()
            case Reason.SIGTERM:
                self.supervisor.stop()
            case Reason.SECOND_SIGTERM:
                self.supervisor.stop()
                self.supervisor.abort()
            case Reason.MAX_RUN_TIME:
                await self.world.resolved(self.task_id)
            case Reason.PLUGIN_CRASH:
                self.script.crasher = "plugin"
            case Reason.ENGINE_CRASH:
                self.script.crasher = "engine"
            case Reason.OUT_OF_DISK:
                self.ports.disk_is_full = True
                os.write(self.go, b"go\n")
                if self.script.stage is Stage.RUNNING:
                    await self.world.resolved(self.task_id)


def payload(stage: Stage, reason: Reason, arrivals: Path, go: Path) -> dict[str, Any]:
    """A task that leaves deaf processes behind and, unless it is to be held after its end, waits.

    At a word through `go` it writes more than the log keeps in memory.
    """
    wait = ["sh", "-c", 'read go < "$0"; head -c 200000 /dev/zero; exec sleep 1000', str(go)]
    hostile = command(mark_of(arrivals), "orphan", "setsid", "deaf", "exit", ready=arrivals)
    by_itself = stage in {Stage.STOPPING, Stage.UPLOADING, Stage.REPORTING}
    return {
        "command": [["sh", "-c", "echo made > a.txt"], hostile, *([] if by_itself else [wait])],
        "artifacts": [{"type": "file", "path": "a.txt", "name": "public/a.txt"}],
        "maxRunTime": 1 if reason is Reason.MAX_RUN_TIME else 60,
    }


def mark_of(path: Path) -> str:
    return f"tree-in-{path.parent.name}"


async def run_cell(world: World, ports: StagedPorts, reason: Reason, stage: Stage, folder: Path) -> str:
    """Have a worker run one task, let `reason` happen to it at `stage`, and see the worker end; the task's id."""
    if reason is Reason.ENGINE_CRASH and stage is Stage.PREPARING:
        ports.script.crasher = "engine"  # It comes before the plugins that hold this stage.
        ports.script.entered.set()
    config = world.config(numberOfTasks=1, cancelPollInterval=0.1, killGrace=0.2, workDir=str(folder / "work"))
    with Arrivals(folder / "ready") as arrivals, fifo(folder / "go") as go:
        changes = {"deadline": world.ports.now() + DEADLINE} if reason is Reason.DEADLINE else {}
        task_id = await world.create(payload(stage, reason, arrivals.path, folder / "go"), **changes)

        async def run(*, task_status: trio.TaskStatus[Supervisor]) -> None:
            await run_worker(
                config,
                ports,
                root_url=world.embedded.root_url,
                credentials=world.credentials,
                extra_plugins={GATE: Gate},
                extra_engines={GATED_NATIVE: GatedNative},
                on_stop=world.embedded.answer_polls,
                task_status=task_status,
            )
            ports.worker_ended()

        async with trio.open_nursery() as nursery:
            supervisor = await nursery.start(run)
            await ports.script.entered.wait()
            if stage in WITH_PROCESSES:
                await arrivals.wait(mark_of(arrivals.path))
            await Cell(world, ports, supervisor, task_id, go).bring_about(reason)
            ports.script.released.set()
    return task_id


@contextmanager
def fifo(path: Path) -> Generator[int, None, None]:
    """A descriptor to write to it with, also before anybody reads."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def told(status: TaskStatus) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason_resolved) for run in status.runs]


@pytest.mark.parametrize(
    ("reason", "stage", "end"), ENDS, ids=[f"{reason}-{stage}".replace(" ", "-") for reason, stage, _ in ENDS]
)
async def test_a_cell(tmp_path: Path, reason: Reason, stage: Stage, end: End) -> None:
    work = tmp_path / "work"
    work.mkdir()
    # A worker that hurries leaves what is in the trash to its next start.
    kept = ["lock", *(["trash/0", "trash/0/a.txt"] if reason is Reason.SECOND_SIGTERM else [])]
    with trio.fail_after(LIMIT):
        async with no_leaks(work, marks=[owner_of(work), mark_of(tmp_path / "ready")], kept=kept):
            (tmp_path / "workers").mkdir()
            ports = StagedPorts(Script(stage))
            async with open_world(tmp_path / "workers") as world:
                task_id = await run_cell(world, ports, reason, stage, tmp_path)
                status = await world.queue.status(task_id)
                again = [("pending", None)] if end.resolution[1] == "worker-shutdown" else []
                assert told(status) == [end.resolution, *again]
                assert len(ports.reports) == end.reports, ports.reports
                if end.last_line is not None:
                    assert end.last_line in (await world.log(task_id)).splitlines()[-1]
                if end.resolution[0] == "completed":
                    assert await world.artifact(task_id, "public/a.txt") == b"made\n"


def test_every_cell_is_in_the_table_or_says_why_it_cannot_be() -> None:
    every = list(cells())
    assert len(every) == len(Reason) * len(Stage)
    assert all(end.why for _, _, end in every if isinstance(end, CannotBe))
