"""What the queue does by itself: resolving tasks whose time has come, and removing what has expired.

The deployed services act up to a minute late on a deadline, and about 5 s late on a claim that expired; here it is
done when it is due.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from worker.embedded import blobs, task_table, tasks
from worker.embedded.store import Transaction


@dataclass(frozen=True)
class Upkeep:
    """When to look again, and the files of blobs that were removed."""

    due: str | None
    unused_files: list[str]


def perform(tx: Transaction, now: str) -> Upkeep:
    """Do all that is due at `now`."""
    for row in task_table.select(tx, "due <= ? ORDER BY due, seq", now):
        # An earlier one of these may have changed this one.
        task = task_table.get(tx, row["task_id"])
        if task.due is None or task.due > now:
            continue
        past_deadline = task.deadline <= now
        ended = tasks.meet_deadline(task, now) if past_deadline else tasks.expire_claim(task, now)
        task_table.save(tx, ended, now)
    files = _expire_artifacts(tx, now) + _expire_tasks(tx, now)
    tx.run("DELETE FROM secrets WHERE expires <= ?", now)
    tx.run("DELETE FROM workers WHERE expires <= ?", now)
    tx.run("DELETE FROM indexed_tasks WHERE expires <= ?", now)
    tx.run("DELETE FROM namespaces WHERE expires <= ?", now)
    return Upkeep(_next_due(tx), files)


def _expire_artifacts(tx: Transaction, now: str) -> list[str]:
    """Remove the content of expired artifacts; that there was one is remembered as long as the task is."""
    rows = tx.all("SELECT details FROM artifacts WHERE present AND expires <= ?", now)
    tx.run("UPDATE artifacts SET present = 0 WHERE present AND expires <= ?", now)
    return [file for row in rows for file in _forget(tx, row["details"])]


def _expire_tasks(tx: Transaction, now: str) -> list[str]:
    files: list[str] = []
    for row in tx.all("SELECT task_id FROM tasks WHERE expires <= ?", now):
        task_id = row["task_id"]
        for artifact in tx.all("SELECT details FROM artifacts WHERE task_id = ?", task_id):
            files += _forget(tx, artifact["details"])
        tx.run("DELETE FROM artifacts WHERE task_id = ?", task_id)
        tx.run("DELETE FROM dependencies WHERE task_id = ?", task_id)
        tx.run("DELETE FROM tasks WHERE task_id = ?", task_id)
    tx.run("DELETE FROM task_groups WHERE expires <= ?", now)
    return files


def _forget(tx: Transaction, details: str) -> list[str]:
    blob_id = json.loads(details).get("blobId")
    if blob_id is None:
        return []
    tx.run("DELETE FROM objects WHERE blob_id = ?", blob_id)
    return blobs.forget(tx, blob_id)


def _next_due(tx: Transaction) -> str | None:
    row = tx.one(
        "SELECT min(due) AS due FROM (SELECT min(due) AS due FROM tasks UNION ALL SELECT min(expires) FROM tasks"
        " UNION ALL SELECT min(expires) FROM artifacts WHERE present)"
    )
    due: str | None = row["due"] if row is not None else None
    return due
