"""What the pages show, from the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.embedded import artifact_table, task_table
from worker.embedded.artifact_table import Artifact
from worker.embedded.store import Transaction
from worker.embedded.tasks import Task
from worker.lognames import log_names

STATES = ("unscheduled", "pending", "running", "completed", "failed", "exception")
AT_ONCE = 100  # tasks on a page
DEFAULT_TASK_QUEUE = "local/native"


@dataclass(frozen=True)
class Listing:
    """Tasks, the latest ones first. `older` says where the next page begins, if there is one."""

    counts: Mapping[str, int]
    tasks: list[Task]
    older: int | None


@dataclass(frozen=True)
class Sheet:
    """A task, and the artifacts of each of its runs."""

    task: Task
    artifacts: list[list[Artifact]]

    def log_name(self, run_id: int) -> str:
        """The artifact that is a run's log, or will be."""
        names = log_names(self.task.definition["payload"])
        there = {artifact.name for artifact in self.artifacts[run_id]}
        return next((name for name in names if name in there), names[0])


def listing(tx: Transaction, state: str | None, before: int | None) -> Listing:
    """One page of the tasks, of one state or of all; `before` is an `older`."""
    counts = {row["state"]: row["count"] for row in tx.all("SELECT state, count(*) AS count FROM tasks GROUP BY state")}
    rows = task_table.select(
        tx,
        "(?1 IS NULL OR state = ?1) AND (?2 IS NULL OR seq < ?2) ORDER BY seq DESC LIMIT ?3",
        state,
        before,
        AT_ONCE + 1,
    )
    older = rows[AT_ONCE - 1]["seq"] if len(rows) > AT_ONCE else None
    return Listing(counts, [task_table.from_row(row) for row in rows[:AT_ONCE]], older)


def sheet(tx: Transaction, task_id: str, now: str) -> Sheet:
    """All of a task. Raises ResourceNotFound."""
    task = task_table.get(tx, task_id)
    artifacts: list[list[Artifact]] = [[] for _ in task.runs]
    for row in tx.all(
        "SELECT * FROM artifacts WHERE task_id = ? AND present AND expires > ? ORDER BY name", task_id, now
    ):
        artifact = artifact_table.from_row(row)
        artifacts[artifact.run_id].append(artifact)
    return Sheet(task, artifacts)


def task_queue(tx: Transaction) -> str:
    """The task queue from which a worker has claimed last."""
    row = tx.one("SELECT task_queue_id FROM workers ORDER BY last_active DESC LIMIT 1")
    return DEFAULT_TASK_QUEUE if row is None else str(row["task_queue_id"])
