"""What must be true when the faults have stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from worker.model import RunKey
from worker.testing.simulation import limits
from worker.testing.simulation.plan import TaskPlan

if TYPE_CHECKING:
    from worker.testing.simulation.world import Created, World

RESOLVED = {"completed", "failed", "exception"}
LOOK = 5.0  # virtual seconds between two looks at the queue


async def wait_completed(world: World, task: Created, limit: float, promise: str) -> None:
    """The task has completed within `limit` seconds, or the promise is broken."""
    await wait_resolved(world, [task], limit, promise)
    status = await world.queue.status(task.task_id)
    if status.state != "completed":
        world.history.fail(promise, f"{task.task_id} has not completed: {status.runs[-1].reason_resolved}")


async def wait_resolved(world: World, tasks: Sequence[Created], limit: float, promise: str) -> None:
    """All of `tasks` are resolved within `limit` seconds, or the promise is broken."""
    wanted = {task.task_id for task in tasks}
    with trio.move_on_after(limit):
        while True:
            found = await world.queue.statuses(wanted)
            wanted -= {one.task_id for one in found if one.status.state in RESOLVED}
            if not wanted:
                return
            await trio.sleep(LOOK)
    world.history.fail(promise, f"not within {limit:g} s: {sorted(wanted)}")
    await trio.lowlevel.checkpoint()


async def wait_idle(world: World, limit: float) -> None:
    """Wait, for `limit` seconds at most, until the workers have nothing open any more; then a little for its traces.

    A run that has nothing else may still try to store its log.
    """
    with trio.move_on_after(limit):
        await world.ledger.wait_idle()
        while any(keeper.logs() for keeper in world.keepers):  # noqa: ASYNC110 - nothing tells when a file goes
            await trio.sleep(LOOK)
    await trio.sleep(2)


async def check_cancel(world: World) -> None:
    """A task that is cancelled is dead within the poll's interval and the kill grace."""
    script = {"lines": 1, "seconds": 500.0, "stubborn": True}
    created = await world.create(TaskPlan(world.time(), 86_000, {"maxRunTime": 600, "sim": script}), "highest")
    key = RunKey(created.task_id, 0)
    promise = "a cancelled task is dead in seconds"
    with trio.move_on_after(limits.RECOVERY) as in_time:
        await world.ledger.wait_executing(key)
    if in_time.cancelled_caught:
        world.history.fail(promise, f"{key} never executed")
    # A poll that was sent before the calm may still hang.
    await trio.sleep_until(world.calm_since + limits.POLL_LIMIT)
    if not world.ledger.is_executing(key):
        world.history.fail(promise, f"{key} had ended before")
    await world.cancel(created.task_id)
    slowest = max(worker.poll + worker.kill_grace for worker in world.plan.workers)
    await trio.sleep(slowest + limits.CANCEL_SLACK)
    if world.ledger.is_executing(key):
        world.history.fail(promise, str(key))


def check_settled(world: World) -> None:
    """The workers are idle: nothing of any run is open, and no task of Trio's is there that was not at the start."""
    for keeper in world.keepers:
        if keeper.life is None:
            continue
        who = keeper.life.ports.who
        keeper.check_left(who)
        if who in world.broken_for_good:
            world.history.fail("a worker that cannot be trusted any more stops", who)
        more = Counter(keeper.tasks()) - Counter(keeper.at_rest)
        if more and keeper.at_rest:
            world.history.fail("nothing outlives its run", f"{who}: tasks {sorted(more.elements())}")
