"""What must be true at the very end: of every run, its log and its artifacts."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from worker.model import RunKey
from worker.queue.errors import QueueError
from worker.queue.models import TaskStatus
from worker.testing.simulation import limits
from worker.testing.simulation.engine import content_of, line_of
from worker.testing.simulation.expected import check_report

if TYPE_CHECKING:
    from worker.testing.simulation.witness import Seen
    from worker.testing.simulation.world import Created, World

LIVE_LOG = "public/logs/live.log"
BACKING_LOG = "public/logs/live_backing.log"


async def check_end(world: World) -> None:
    """What the queue has in the end is what the tasks were to make."""
    for created in world.tasks:
        status = await world.queue.status(created.task_id)
        for run in status.runs:
            await _check_run(world, created, status, run.run_id)
    for key, seen in world.witness.runs.items():
        if world.ledger.is_executing(key):
            world.history.fail("nothing executes in the end", f"{seen.who} {key}")
    if world.ledger.leftovers:
        world.history.fail("nothing executes in the end", f"{len(world.ledger.leftovers)} processes of killed workers")


async def _check_run(world: World, created: Created, status: TaskStatus, run_id: int) -> None:
    key, run = RunKey(created.task_id, run_id), status.runs[run_id]
    seen = world.witness.runs.get(key)
    world.history.note("observer", f"{key} {run.state}/{run.reason_resolved}")
    if seen is None:
        return
    late = seen.arrived_at is not None and seen.arrived_at > world.calm_since
    if run.reason_resolved == "claim-expired" and (late or _could_be_kept(world, seen)):
        world.history.fail("a claim is kept where it can be", f"{key} expired")
    if seen.accepted:
        check_report(world, key, created.plan, seen.accepted, faultless=late or not world.plan.rates)
    if seen.accepted == "completed":
        await _check_artifacts(world, created, key)
    names = {artifact.name for artifact in await world.queue.list_artifacts(key)}
    log = await _fetch(world, key, BACKING_LOG) if BACKING_LOG in names else None
    if log is not None:
        _check_log(world, created, key, seen.accepted, log.decode())
    if seen.accepted in {"completed", "failed"}:
        if log is None:
            world.history.fail("a run that was reported has its log", str(key))
        elif await _fetch(world, key, LIVE_LOG) != log:
            world.history.fail("the live log leads to the whole log", str(key))


def _could_be_kept(world: World, seen: Seen) -> bool:
    """Whether nothing but an outage went wrong, and that was over early enough."""
    plan, grace = world.plan, world.plan_for(seen.who).kill_grace
    outages = [event.at + event.length for event in plan.events if event.kind == "outage"]
    in_time = all(end < seen.taken_until - grace - limits.OUTAGE_RECOVERY for end in outages)
    return not plan.rates and in_time and seen.arrived_at is not None and not world.is_over(seen.who)


async def _check_artifacts(world: World, created: Created, key: RunKey) -> None:
    files: dict[str, int] = created.plan.payload["sim"].get("files", {})
    for declared in created.plan.payload.get("artifacts", []):
        path = declared["path"]
        if path not in files:
            world.history.fail("completed means that every artifact is there", f"{key} {path} was never made")
            return
        got, wanted = await _fetch(world, key, declared["name"]), content_of(key, path, files[path])
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


def _check_log(world: World, created: Created, key: RunKey, report: str, log: str) -> None:
    """The task's lines are there in order, all of them where it came to its end, and the worker's last line fits."""
    script = created.plan.payload["sim"]
    lines = log.splitlines()
    numbered = [line for line in lines if not line.startswith("[taskcluster")]
    wanted = [line_of(key, number, script.get("width", 0)) for number in range(script.get("lines", 0))]
    # A disk that is full is no place for a log: that is an internal error.
    ended = key in world.ledger.ended and report != "exception/internal-error"
    if numbered != (wanted if ended else wanted[: len(numbered)]):
        what = f"{key} {report}: {len(numbered)} lines of {len(wanted)}: {[line[:60] for line in numbered]}"
        world.history.fail("the log is whole and in order", what)
    if log and not log.endswith("\n"):
        world.history.fail("the log is whole and in order", f"{key} {report}: ends in {log[-40:]!r}")
    last = lines[-1] if lines else ""
    # What a hook does when the log is closed can change the report, not the log.
    told = last.startswith("[taskcluster:error]")
    if report in {"completed", "failed"} and told != (report == "failed") and (key, "finished") not in world.troubled:
        world.history.fail("the log's last line fits the end", f"{key} {report}: {last[:200]}")
