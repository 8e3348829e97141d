"""Workers and task queues in the store: when each was last seen, what it ran, and who is quarantined."""

from __future__ import annotations

import json
import sqlite3
from datetime import timedelta

from worker.embedded.store import Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import from_wire, to_wire

REMEMBERED = timedelta(days=5)
"""For how long a worker or a task queue that nobody heard of is still listed."""
RECENT_TASKS = 20


def queue_seen(tx: Transaction, task_queue_id: str, now: str) -> None:
    """Note that a task or a worker named a task queue."""
    tx.run(
        "INSERT INTO task_queues VALUES (?, ?)"
        " ON CONFLICT (task_queue_id) DO UPDATE SET last_active = excluded.last_active",
        task_queue_id,
        now,
    )


def seen(tx: Transaction, task_queue_id: str, worker_group: str, worker_id: str, now: str) -> bool:
    """Note that a worker called; returns whether it is quarantined."""
    queue_seen(tx, task_queue_id, now)
    tx.run(
        "INSERT INTO workers (task_queue_id, worker_group, worker_id, first_claim, last_active, expires, recent_tasks,"
        " quarantine_details) VALUES (?, ?, ?, ?, ?, ?, '[]', '[]') ON CONFLICT DO UPDATE SET"
        " last_active = excluded.last_active, expires = max(expires, excluded.expires)",
        task_queue_id,
        worker_group,
        worker_id,
        now,
        now,
        to_wire(from_wire(now) + REMEMBERED),
    )
    row = find(tx, task_queue_id, worker_group, worker_id)
    return row is not None and row["quarantine_until"] is not None and row["quarantine_until"] > now


def claimed(tx: Transaction, task_queue_id: str, worker_group: str, worker_id: str, task_run: Json, now: str) -> None:
    """Note that a worker claimed a run."""
    seen(tx, task_queue_id, worker_group, worker_id, now)
    row = find(tx, task_queue_id, worker_group, worker_id)
    if row is not None:
        recent = [*json.loads(row["recent_tasks"]), task_run][-RECENT_TASKS:]
        tx.run("UPDATE workers SET recent_tasks = ? WHERE seq = ?", json.dumps(recent), row["seq"])


def find(tx: Transaction, task_queue_id: str, worker_group: str, worker_id: str) -> sqlite3.Row | None:
    """The row of a worker, if there is one."""
    return tx.one(
        "SELECT * FROM workers WHERE task_queue_id = ? AND worker_group = ? AND worker_id = ?",
        task_queue_id,
        worker_group,
        worker_id,
    )
