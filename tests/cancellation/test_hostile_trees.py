"""Trees that do not want to die are dead soon after a cancel, and after `kill -9` of the worker and its restart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cancellation_process import AS_NOBODY, common_folder, nobodys_python

from worker.cgroups import open_homes
from worker.process import owner_of
from worker.testing.hostile import HOSTILE, TRAITS, command, freezer
from worker.testing.leaks import no_leaks
from worker.testing.realworker import real_worker
from worker.testing.trees import Arrivals, survivors, wait_gone
from worker.testing.world import World, open_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the trees are Linux'")

GRACE = 0.5
MARGIN = 5.0  # seconds that an end may take beyond the grace
POLL = 0.2
SYSTEM_PYTHON = "/usr/bin/python3"
KILLED = "did not end when asked to"
STRAYED = "had left the task's cgroup"


def task(argv: list[str]) -> dict[str, Any]:
    return {"command": [argv], "maxRunTime": 600}


@contextmanager
def no_groups(mark: str) -> Iterator[None]:
    """Remove the groups of frozen ones whose marks begin with `mark`; nobody is to be in them any more."""
    try:
        yield
    finally:
        place = freezer()
        for group in [] if place is None else Path(place).glob(f"hostile-{mark}*"):
            group.rmdir()


async def cancelled(folder: Path, ready: Path, *traits: str, user: Sequence[str] = ()) -> tuple[float, str]:
    """Run a tree and cancel it when it is complete: how many seconds the whole end took, and the log."""
    mark, work = f"hostile-{folder.name}", folder / "work"
    work.mkdir()
    with Arrivals(ready) as arrivals, no_groups(mark):
        async with no_leaks(work, marks=[mark, owner_of(work)], kept=["lock"]), open_world(folder) as world:
            argv = [*user, *command(mark, *traits, ready=ready, python=SYSTEM_PYTHON if user else sys.executable)]
            task_id = await world.create(task(argv))
            settings = {"cancelPollInterval": POLL, "killGrace": GRACE, "workDir": str(work)}
            async with world.worker(world.config(numberOfTasks=1, **settings)) as worker:
                with trio.fail_after(20):
                    await arrivals.wait(mark)
                await world.queue.cancel_task(task_id)
                begun = trio.current_time()
                await worker.done.wait()
                seconds = trio.current_time() - begun
            assert survivors(mark) == []
            return seconds, await world.log(task_id)


EACH = [
    *((trait,) for trait in TRAITS if trait not in {"exit"}),
    ("mute",),
    ("stopped", "deaf"),
    HOSTILE,
    (*HOSTILE, "frozen"),
]


@pytest.mark.parametrize("traits", EACH, ids="-".join)
async def test_no_trait_saves_a_tree(tmp_path: Path, traits: tuple[str, ...]) -> None:
    seconds, log = await cancelled(tmp_path, tmp_path / "ready", *traits)
    assert seconds < GRACE + MARGIN
    # Of two that make each other anew, one may be born between two TERMs: then it takes KILL, and else it does not.
    if "respawn" not in traits or "deaf" in traits:
        assert (KILLED in log) == ("deaf" in traits or ("frozen" in traits and freezer() is not None))
    assert (STRAYED in log) == ("cgroup" in traits and open_homes() is not None)


async def test_a_tree_of_another_user_is_saved_by_nothing_either(tmp_path: Path) -> None:
    if nobodys_python() is None:
        pytest.skip("this takes root, setpriv and a Python that everybody may read")
    with common_folder() as folder:
        seconds, log = await cancelled(tmp_path, folder / "ready", *HOSTILE, user=AS_NOBODY)
    assert seconds < GRACE + MARGIN
    assert KILLED in log


async def test_who_obeys_is_not_killed_and_nobody_waits_for_the_grace(tmp_path: Path) -> None:
    mark = f"obedient-{tmp_path.name}"
    with Arrivals(tmp_path / "ready") as arrivals:
        async with open_world(tmp_path) as world:
            task_id = await world.create(task(command(mark, "orphan", "setsid", ready=arrivals.path)))
            config = world.config(numberOfTasks=1, cancelPollInterval=POLL, killGrace=60)
            async with world.worker(config) as worker:
                await arrivals.wait(mark)
                await world.queue.cancel_task(task_id)
                with trio.fail_after(MARGIN):
                    await worker.done.wait()
            log = await world.log(task_id)
            assert KILLED not in log
            assert STRAYED not in log


async def test_what_a_task_leaves_behind_dies_with_it(tmp_path: Path) -> None:
    mark = f"hostile-{tmp_path.name}"
    async with open_world(tmp_path) as world:
        task_id = await world.create(task(command(mark, *HOSTILE, "exit")))
        await world.run_worker(world.config(numberOfTasks=1, killGrace=GRACE))
        assert survivors(mark) == []
        assert (await world.queue.status(task_id)).state == "completed"
        assert "that the commands had left running" in await world.log(task_id)


# Many of them


async def cancel_batches(folder: Path, number: int, at_once: int) -> None:
    """Run and cancel so many trees, a batch at a time. Fails where one survives its batch."""
    prefix, work = f"tree-{folder.name}", folder / "work"
    work.mkdir()
    settings = {"cancelPollInterval": POLL, "killGrace": GRACE, "workDir": str(work), "capacity": at_once}
    with Arrivals(folder / "ready") as arrivals:
        async with no_leaks(work, marks=[owner_of(work), prefix], kept=["lock"]), open_world(folder) as world:
            async with world.worker(world.config(numberOfTasks=number, **settings)) as worker:
                for first in range(0, number, at_once):
                    batch = f"{prefix}-{first:05}"
                    marks = [f"{batch}-{index:03}" for index in range(min(at_once, number - first))]
                    await cancel_all(world, arrivals, marks)
                    with trio.fail_after(GRACE + 2 * POLL + MARGIN):
                        await wait_gone(batch)
                await worker.done.wait()
            assert survivors(prefix) == []


async def cancel_all(world: World, arrivals: Arrivals, marks: list[str]) -> None:
    ids = [await world.create(task(command(mark, *HOSTILE, ready=arrivals.path))) for mark in marks]
    with trio.fail_after(10 + len(marks)):
        for mark in marks:
            await arrivals.wait(mark)
    for task_id in ids:
        await world.queue.cancel_task(task_id)


async def test_thirty_of_thirty_are_dead_after_cancel(tmp_path: Path) -> None:
    await cancel_batches(tmp_path, 30, 15)


@pytest.mark.full
async def test_a_thousand_of_a_thousand_are_dead_after_cancel(tmp_path: Path) -> None:
    await cancel_batches(tmp_path, 1000, 25)


async def kill_batch(
    world: World, folder: Path, arrivals: Arrivals, number: int, python: tuple[str, ...], traits: tuple[str, ...]
) -> None:
    """Kill a worker that runs so many trees; the next one has ended them all before it claims anything."""
    prefix = f"tree-{world.ports.slug()}"
    marks = [f"{prefix}-{index}" for index in range(number)]
    for mark in marks:
        argv = command(mark, *traits, ready=arrivals.path, python=python[-1])
        await world.create(task(argv), retries=0)
    with no_groups(prefix):
        async with real_worker(world, folder, python, capacity=number, killGrace=GRACE) as worker:
            with trio.fail_after(10 + number):
                for mark in marks:
                    await arrivals.wait(mark)
            worker.process.kill()
            await worker.process.wait()
        canary = await world.create({"command": [["true"]], "maxRunTime": 60})
        async with real_worker(world, folder, python, capacity=1, killGrace=GRACE, numberOfTasks=1) as worker:
            # Seen when it has claimed: whatever it had to end before is to have ended by now.
            await world.until(canary, "running", "completed")
            assert survivors(prefix) == []
            assert await worker.end() == 0
        assert (await world.queue.status(canary)).state == "completed"


@pytest.mark.parametrize("traits", [HOSTILE, (*HOSTILE, "frozen")], ids=["hostile", "frozen"])
async def test_ten_of_ten_are_dead_when_a_killed_worker_is_back(tmp_path: Path, traits: tuple[str, ...]) -> None:
    with Arrivals(tmp_path / "ready") as arrivals:
        async with no_leaks(marks=[tmp_path.name]), open_world(tmp_path) as world:
            await kill_batch(world, tmp_path, arrivals, 10, (sys.executable,), traits)


async def test_a_worker_without_rights_ends_what_its_killed_predecessor_left(tmp_path: Path) -> None:
    """By their environment, so that those which have cleared theirs are not promised."""
    python = nobodys_python()
    if python is None:
        pytest.skip("this takes root, setpriv and a Python that everybody may read")
    with common_folder(owner=65534) as folder, Arrivals(folder / "ready") as arrivals:
        async with no_leaks(marks=[folder.name]), open_world(tmp_path) as world:
            await kill_batch(world, folder, arrivals, 5, python, tuple(set(HOSTILE) - {"env"}))


async def test_a_worker_without_rights_ends_a_hostile_tree(tmp_path: Path) -> None:
    python = nobodys_python()
    if python is None:
        pytest.skip("this takes root, setpriv and a Python that everybody may read")
    with common_folder(owner=65534) as folder, Arrivals(folder / "ready") as arrivals:
        mark = f"tree-{folder.name}"
        async with no_leaks(marks=[mark]), open_world(tmp_path) as world:
            argv = command(mark, *HOSTILE, ready=arrivals.path, python=python[-1])
            task_id = await world.create(task(argv))
            async with real_worker(world, folder, python, killGrace=GRACE, numberOfTasks=1) as worker:
                await arrivals.wait(mark)
                await world.queue.cancel_task(task_id)
                with trio.fail_after(GRACE + MARGIN):
                    assert await worker.end() == 0
                assert survivors(mark) == []


@pytest.mark.full
async def test_a_thousand_of_a_thousand_are_dead_when_a_killed_worker_is_back(tmp_path: Path) -> None:
    with Arrivals(tmp_path / "ready") as arrivals:
        async with no_leaks(marks=[tmp_path.name]), open_world(tmp_path) as world:
            for _ in range(25):
                await kill_batch(world, tmp_path, arrivals, 40, (sys.executable,), HOSTILE)
