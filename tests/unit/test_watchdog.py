from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from worker.cli import common
from worker.tasktree import describe_tasks, describe_threads
from worker.watchdog import STUCK, Watchdog


class Clock:
    """Stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_due_first_is_overdue_first() -> None:
    clock = Clock()
    watchdog = Watchdog(1, clock)
    with watchdog.expects("long", 100), watchdog.expects("short", 10), watchdog.expects("open"):
        clock.now = 10.9
        assert watchdog.overdue() is None
        clock.now = 11
        overdue = watchdog.overdue()
        assert overdue is not None
        assert overdue.what == "short"
    assert watchdog.overdue() is None


def test_a_limit_can_be_set_later() -> None:
    clock = Clock()
    watchdog = Watchdog(1, clock)
    with watchdog.expects("the end") as ending:
        clock.now = 1e9
        assert watchdog.overdue() is None
        watchdog.limit(ending, 5)
        clock.now += 6
        assert watchdog.overdue() is ending


def test_the_thread_that_waits_is_told_of_what_is_due_sooner() -> None:
    clock = Clock()
    watchdog = Watchdog(1, clock)
    found: list[str] = []

    def wait() -> None:
        overdue = watchdog.wait_overdue()
        found.append("" if overdue is None else overdue.what)

    with watchdog.expects("open"):
        thread = threading.Thread(target=wait)
        thread.start()
        with watchdog.expects("due", -2):
            thread.join(30)
    assert found == ["due"]


def test_the_thread_ends_when_the_watchdog_is_closed() -> None:
    watchdog = Watchdog(1, Clock())
    thread = threading.Thread(target=watchdog.wait_overdue)
    thread.start()
    watchdog.close()
    thread.join(30)
    assert not thread.is_alive()


async def test_the_tree_of_tasks_names_them_and_where_they_are() -> None:
    async def sleeps(*, task_status: trio.TaskStatus[None]) -> None:
        secret = "do not tell"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name=f"child of {len(secret)}")
            task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(sleeps)
        root = trio.lowlevel.current_root_task()
        assert root is not None
        told = describe_tasks(root)
        nursery.cancel_scope.cancel()
    assert "sleeps" in told
    assert "child of 11" in told
    assert "sleep_forever" in told
    assert "do not tell" not in told


def test_the_threads_are_shown_with_their_stacks() -> None:
    assert "test_the_threads_are_shown" in describe_threads()


# A worker with a plugin whose `stopped` does what the argument says.
WORKER = """
import os, sys, trio
from contextlib import asynccontextmanager
from pathlib import Path
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED
from worker.testing.world import open_world

class Hangs(TaskHooks):
    async def stopped(self, result):
        if sys.argv[2] == "shields":
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        os.read(os.pipe()[0], 1)
        return COMPLETED

class HangsPlugin(Plugin):
    @asynccontextmanager
    async def task_scope(self, run):
        yield Hangs()

async def main():
    async with open_world(Path(sys.argv[1])) as world:
        limits = {"stopped": 1, "stuck": 5}
        await world.create({})
        config = world.config(engine="mock", plugins={"disabled": ["maxRunTime"]}, limits=limits)
        await world.run_worker(config, extra_plugins={"hangs": HangsPlugin})

trio.run(main)
"""


@pytest.mark.parametrize(
    ("how", "overdue"), [("shields", "plugin hangs: stopped"), ("blocks", "the event loop|plugin hangs: stopped")]
)
async def test_a_worker_that_is_stuck_tells_where_and_ends(tmp_path: Path, how: str, overdue: str) -> None:
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, "-c", WORKER, str(tmp_path), how],
            check=False,
            capture_stderr=True,
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )
    told = done.stderr.decode()
    assert done.returncode == STUCK == common.STUCK, told
    assert any(f"overdue is {what}" in told for what in overdue.split("|")), told
    assert "in stopped" in told or "Hangs.stopped" in told
