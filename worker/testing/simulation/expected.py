"""What a run of a task is to be reported as, as follows from what the task does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.model import RunKey
from worker.testing.simulation.plan import TaskPlan

if TYPE_CHECKING:
    from worker.testing.simulation.world import World

SHUTDOWN = "exception/worker-shutdown"


def expected(plan: TaskPlan) -> str:
    """The report where nothing goes wrong and nobody intervenes."""
    payload = plan.payload
    script = payload["sim"]
    if "unknown" in payload:
        return "exception/malformed-payload"
    if is_too_long(plan):
        return "failed"
    if script.get("exitCode", 0) in payload.get("onExitStatus", {}).get("retry", []):
        return "exception/intermittent-task"
    made = script.get("files", {})
    missing = any(artifact["path"] not in made for artifact in payload.get("artifacts", []))
    return "failed" if script.get("exitCode", 0) or missing else "completed"


def is_too_long(plan: TaskPlan) -> bool:
    """Whether it runs for longer than it said."""
    return bool(plan.payload["sim"].get("seconds", 0) > plan.payload["maxRunTime"])


def check_report(world: World, key: RunKey, plan: TaskPlan, report: str, *, faultless: bool) -> None:
    """A run was reported as what it came to. `faultless`: nothing went wrong, though somebody may have intervened."""
    wanted = expected(plan)
    if report == "completed" and wanted != "completed":
        world.history.fail("completed means that the task succeeded", f"{key} is to be {wanted}")
    if not faultless:
        return
    allowed = {wanted}
    who = world.witness.runs[key].who
    if who in world.told or who in world.broken_for_good:
        allowed.add(SHUTDOWN)
    by_itself = wanted in {"completed", "failed"} and not is_too_long(plan)
    if who in world.told and by_itself and key not in world.ledger.ended:
        allowed = {SHUTDOWN}  # It was ended before it could tell.
    if world.plan.has_outage:
        allowed.add("exception/resource-unavailable")
    if report not in allowed:
        world.history.fail("a run is reported as it ended", f"{key} as {report}, not as {' or '.join(sorted(allowed))}")
