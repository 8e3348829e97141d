"""What must be true when the faults have stopped, and at the very end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import trio

from worker.cancelpoll import CALL_LIMIT
from worker.model import RunKey
from worker.queue.errors import QueueError
from worker.queue.models import TaskStatus
from worker.testing.simulation import limits
from worker.testing.simulation.engine import content_of, line_of
from worker.testing.simulation.plan import TaskPlan

if TYPE_CHECKING:
    from worker.testing.simulation.world import Created, World

BACKING_LOG = "public/logs/live_backing.log"
RESOLVED = {"completed", "failed", "exception"}
LOOK = 5.0  # virtual seconds between two looks at the queue


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
    with trio.move_on_after(limits.RECOVERY):
        await world.ledger.wait_executing(key)
    # A poll that was sent before the calm may still hang.
    await trio.sleep_until(world.calm_since + CALL_LIMIT)
    await world.queue.client.cancelTask(created.task_id)
    slowest = max(worker.poll + worker.kill_grace for worker in world.plan.workers)
    await trio.sleep(slowest + limits.CANCEL_SLACK)
    if world.ledger.is_executing(key):
        world.history.fail("a cancelled task is dead in seconds", str(key))


def check_settled(world: World) -> None:
    """The workers are idle: nothing of any run is open, and no task of Trio's is there that was not at the start."""
    for keeper in world.keepers:
        if keeper.life is None:
            continue
        keeper.check_left(keeper.life.ports.who)
        more = Counter(keeper.tasks()) - Counter(keeper.at_rest)
        if more and keeper.at_rest:
            world.history.fail("nothing outlives its run", f"{keeper.life.ports.who}: tasks {sorted(more.elements())}")


async def check_end(world: World) -> None:
    """What the queue has in the end is what the tasks were to make."""
    for created in world.tasks:
        status = await world.queue.status(created.task_id)
        for run in status.runs:
            await _check_run(world, created, status, run.run_id)
    for key, seen in world.witness.runs.items():
        if world.ledger.is_executing(key):
            world.history.fail("nothing executes in the end", f"{seen.who} {key}")


async def _check_run(world: World, created: Created, status: TaskStatus, run_id: int) -> None:
    key, run = RunKey(created.task_id, run_id), status.runs[run_id]
    seen = world.witness.runs.get(key)
    world.history.note("observer", f"{key} {run.state}/{run.reason_resolved}")
    if seen is None:
        return
    late = seen.arrived_at is not None and seen.arrived_at > world.calm_since
    if late and run.reason_resolved == "claim-expired":
        world.history.fail("a worker without faults resolves what it claims", f"{key} expired")
    names = {artifact.name for artifact in await world.queue.list_artifacts(key)}
    log = await _fetch(world, key, BACKING_LOG) if BACKING_LOG in names else None
    if run.state == "completed":
        await _check_completed(world, created, key)
        if log is None:
            world.history.fail("a completed run has its log", f"{key}")
    if log is not None:
        _check_log(world, created, key, run.state, log.decode())


async def _check_completed(world: World, created: Created, key: RunKey) -> None:
    files: dict[str, int] = created.plan.payload["sim"].get("files", {})
    for declared in created.plan.payload.get("artifacts", []):
        path = declared["path"]
        if path not in files:
            world.history.fail("completed means that every artifact is there", f"{key} {path} was never made")
            return
        got, wanted = await _fetch(world, key, declared["name"]), content_of(path, files[path])
        if got is None or sha256(got).digest() != sha256(wanted).digest():
            size = "nothing" if got is None else f"{len(got)} bytes"
            world.history.fail("completed means that every artifact is whole", f"{key} {path}: {size}")


async def _fetch(world: World, key: RunKey, name: str) -> bytes | None:
    try:
        place = await world.queue.get_artifact(key, name)
    except QueueError:
        return None
    answer = await world.http.bulk.request("GET", place.url)
    return answer.body if answer.status == 200 else None


def _check_log(world: World, created: Created, key: RunKey, state: str, log: str) -> None:
    """The task's lines are there in order, all of them where it completed, and the worker's last line fits."""
    lines = log.splitlines()
    numbered = [line for line in lines if not line.startswith("[taskcluster")]
    wanted = [line_of(number) for number in range(created.plan.payload["sim"].get("lines", 0))]
    whole = numbered == wanted if state == "completed" else numbered == wanted[: len(numbered)]
    if not whole:
        world.history.fail("the log is whole and in order", f"{key} {state}: {numbered}, not {wanted}")
    if log and not log.endswith("\n"):
        world.history.fail("the log is whole and in order", f"{key} {state}: ends in {log[-40:]!r}")
    says_error = bool(lines) and lines[-1].startswith("[taskcluster:error]")
    if state == "completed" and says_error:
        world.history.fail("the log's last line fits the end", f"{key} {state}: {lines[-1]}")
