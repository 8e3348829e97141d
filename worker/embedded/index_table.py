"""The index in the store: tasks by paths such as `project.x.latest`, and the namespaces that hold them.

Of tasks with one path that of the highest rank is kept, of equal ranks the latest. Rules that the
reference leaves open are those of Taskcluster's `services/index/src/handlers.js` and `helpers.js`.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from worker.embedded.errors import ResourceNotFound
from worker.embedded.routing import PATTERNS
from worker.embedded.store import Transaction
from worker.embedded.tasks import Json, Task
from worker.embedded.times import normal

log = logging.getLogger(__name__)

ROUTE = "index."
"""A route that begins so names a path for the task when it has completed."""


@dataclass(frozen=True)
class Entry:
    """What the index has at a path."""

    path: str
    task_id: str
    rank: float
    expires: str
    data: Json = field(default_factory=dict)

    def document(self) -> Json:
        """The entry as the schema `indexed-task-response` has it."""
        rank = int(self.rank) if self.rank.is_integer() else self.rank
        return {
            "namespace": self.path,
            "taskId": self.task_id,
            "rank": rank,
            "data": self.data,
            "expires": self.expires,
        }


class Wishes(BaseModel):
    """A task's `extra.index`, all of it optional."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    rank: float = 0
    expires: Annotated[str, AfterValidator(normal)] | None = None
    data: dict[str, Any] = {}


def get(tx: Transaction, path: str, now: str) -> Entry:
    """The entry at `path`. Raises ResourceNotFound."""
    entry = find(tx, path, now)
    if entry is None:
        raise ResourceNotFound(f"Indexed task not found: {path}")
    return entry


def find(tx: Transaction, path: str, now: str) -> Entry | None:
    """The entry at `path`, if there is one that has not expired."""
    row = tx.one("SELECT * FROM indexed_tasks WHERE namespace = ? AND name = ? AND expires > ?", *split(path), now)
    return None if row is None else _from_row(row)


def select(tx: Transaction, namespace: str, after: str, now: str, limit: int) -> list[Entry]:
    """The entries immediately within a namespace that have not expired, by name, those that come after `after`."""
    rows = tx.all(
        "SELECT * FROM indexed_tasks WHERE namespace = ? AND name > ? AND expires > ? ORDER BY name LIMIT ?",
        namespace,
        after,
        now,
        limit,
    )
    return [_from_row(row) for row in rows]


def _from_row(row: sqlite3.Row) -> Entry:
    path = join(row["namespace"], row["name"])
    return Entry(path, row["task_id"], row["rank"], row["expires"], json.loads(row["data"]))


def insert(tx: Transaction, entry: Entry, now: str) -> None:
    """Put an entry in its place, unless one of a higher rank is there. The namespaces last as long as it does."""
    namespace, name = split(entry.path)
    inserted = tx.run(
        "INSERT INTO indexed_tasks VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET task_id = excluded.task_id,"
        " rank = excluded.rank, expires = excluded.expires, data = excluded.data"
        " WHERE excluded.rank >= rank OR expires <= ?",
        namespace,
        name,
        entry.task_id,
        entry.rank,
        entry.expires,
        json.dumps(entry.data),
        now,
    )
    while inserted and namespace:
        parent, last = split(namespace)
        tx.run(
            "INSERT INTO namespaces VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET expires = max(expires, excluded.expires)",
            parent,
            last,
            entry.expires,
        )
        namespace = parent


def insert_completed(tx: Transaction, task: Task, now: str) -> None:
    """Put a completed task where its routes say, as its `extra.index` wishes.

    A task whose wishes are not of their form is not indexed, and only the log says so: its worker cannot help it.
    """
    paths = [route.removeprefix(ROUTE) for route in task.definition["routes"] if route.startswith(ROUTE)]
    paths = [path for path in paths if PATTERNS["indexPath"].fullmatch(path)]
    if not paths:
        return
    try:
        wishes = Wishes.model_validate(task.definition["extra"].get("index", {}))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(["extra.index", *(str(part) for part in problem["loc"])])
        log.warning("task %s is not indexed: %s: %s", task.task_id, place, problem["msg"])
        return
    expires = wishes.expires or task.definition["expires"]
    for path in paths:
        insert(tx, Entry(path, task.task_id, wishes.rank, expires, wishes.data), now)


def split(path: str) -> tuple[str, str]:
    """The namespace, empty for the root, and the name in it."""
    namespace, _, name = path.rpartition(".")
    return namespace, name


def join(namespace: str, name: str) -> str:
    """The path of `name` in a namespace."""
    return f"{namespace}.{name}" if namespace else name
