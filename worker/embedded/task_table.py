"""Tasks, their dependencies and groups in the store, and what one task's change means for others."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict

from worker.embedded import index_table, tasks
from worker.embedded.errors import ResourceNotFound
from worker.embedded.store import Transaction
from worker.embedded.tasks import PRIORITIES, RESOLVED, Json, Run, Task

COLUMNS = "seq, task_id, definition, runs, retries_left, priority"


def find(tx: Transaction, task_id: str) -> Task | None:
    """The task, if there is one."""
    row = tx.one(f"SELECT {COLUMNS} FROM tasks WHERE task_id = ?", task_id)  # noqa: S608  # constant columns
    return None if row is None else from_row(row)


def get(tx: Transaction, task_id: str) -> Task:
    """The task. Raises ResourceNotFound."""
    task = find(tx, task_id)
    if task is None:
        raise ResourceNotFound(f"Task {task_id} does not exist. Are you sure it was created?")
    return task


def select(tx: Transaction, condition: str, *parameters: object) -> list[sqlite3.Row]:
    """Rows for `from_row`, with `seq`, by a constant `condition` that may hold ORDER BY and LIMIT."""
    return tx.all(f"SELECT {COLUMNS} FROM tasks WHERE {condition}", *parameters)  # noqa: S608  # constant texts


def from_row(row: sqlite3.Row) -> Task:
    """The task in a row of `select`."""
    return Task(
        task_id=row["task_id"],
        definition=json.loads(row["definition"]),
        priority=PRIORITIES[row["priority"]],
        retries_left=row["retries_left"],
        runs=tuple(Run(**run) for run in json.loads(row["runs"])),
    )


def insert(tx: Transaction, task: Task, now: str) -> Task:
    """Add a new task; it is pending at once where it waits for nothing. Returns it as it is then."""
    definition = task.definition
    for required in definition["dependencies"]:
        other = find(tx, required) if required != task.task_id else None
        satisfied = other is not None and _satisfies(other.state, definition["requires"])
        tx.run("INSERT INTO dependencies VALUES (?, ?, ?)", required, task.task_id, int(satisfied))
    tx.run(
        "INSERT INTO tasks (task_id, task_queue_id, task_group_id, definition, runs, retries_left, priority, state,"
        " expires) VALUES (?, ?, ?, ?, '[]', ?, ?, 'unscheduled', ?)",
        task.task_id,
        definition["taskQueueId"],
        definition["taskGroupId"],
        json.dumps(definition),
        task.retries_left,
        PRIORITIES.index(task.priority),
        definition["expires"],
    )
    if not _waits(tx, task.task_id):
        task = tasks.schedule(task, now)
    return save(tx, task, now)


def save(tx: Transaction, task: Task, now: str) -> Task:
    """Write what became of a task, tell those who wait for it, index it, and schedule what depended on its end."""
    before = tx.one("SELECT state, runs FROM tasks WHERE task_id = ?", task.task_id)
    runs = json.dumps([asdict(run) for run in task.runs])
    tx.run(
        "UPDATE tasks SET runs = ?, retries_left = ?, priority = ?, state = ?, scheduled = ?, due = ?"
        " WHERE task_id = ?",
        runs,
        task.retries_left,
        PRIORITIES.index(task.priority),
        task.state,
        task.runs[-1].scheduled if task.runs else None,
        task.due,
        task.task_id,
    )
    if task.due is not None:
        tx.act_at(task.due)
    if before is None or before["runs"] == runs:
        return task
    if task.state == "pending":
        tx.became_pending(task.definition["taskQueueId"])
    if task.state == "completed":
        # First: what depends on the task may look for it there.
        index_table.insert_completed(tx, task, now)
    if task.state in RESOLVED:
        _release_dependents(tx, task, now)
    return task


def _release_dependents(tx: Transaction, task: Task, now: str) -> None:
    waiting = tx.all("SELECT task_id FROM dependencies WHERE required = ? AND NOT satisfied", task.task_id)
    for row in waiting:
        dependent = find(tx, row["task_id"])
        if dependent is None or not _satisfies(task.state, dependent.definition["requires"]):
            continue
        tx.run(
            "UPDATE dependencies SET satisfied = 1 WHERE required = ? AND task_id = ?", task.task_id, dependent.task_id
        )
        if dependent.state == "unscheduled" and now < dependent.deadline and not _waits(tx, dependent.task_id):
            save(tx, tasks.schedule(dependent, now), now)


def _waits(tx: Transaction, task_id: str) -> bool:
    return tx.one("SELECT 1 FROM dependencies WHERE task_id = ? AND NOT satisfied LIMIT 1", task_id) is not None


def _satisfies(state: str, requires: str) -> bool:
    return state == "completed" or (requires == "all-resolved" and state in RESOLVED)


def definition_and_status(task: Task) -> Json:
    """Both, as the lists of tasks have them."""
    return {"task": task.definition, "status": tasks.status(task)}
