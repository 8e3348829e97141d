"""Artifacts in the store: the rules of making one again, and of following links."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from worker.embedded import blobs
from worker.embedded.errors import InputError, RequestConflict, ResourceExpired, ResourceNotFound
from worker.embedded.store import Transaction
from worker.embedded.tasks import Json


@dataclass(frozen=True)
class Artifact:
    """An artifact of a run. `details` depend on the storage type; `present` is false until an object is finished."""

    task_id: str
    run_id: int
    name: str
    storage_type: str
    content_type: str
    expires: str
    details: Json
    present: bool


def find(tx: Transaction, task_id: str, run_id: int, name: str) -> Artifact | None:
    """The artifact, if there is one."""
    row = tx.one("SELECT * FROM artifacts WHERE task_id = ? AND run_id = ? AND name = ?", task_id, run_id, name)
    return None if row is None else from_row(row)


def get(tx: Transaction, task_id: str, run_id: int, name: str, now: str) -> Artifact:
    """The artifact, if it can be read. Raises ResourceNotFound and ResourceExpired."""
    artifact = find(tx, task_id, run_id, name)
    if artifact is not None and artifact.expires <= now:
        raise ResourceExpired(f"Artifact {name!r} of run {run_id} of task {task_id} expired at {artifact.expires}")
    if artifact is None or not artifact.present:
        raise ResourceNotFound(f"Artifact {name!r} of run {run_id} of task {task_id} does not exist")
    return artifact


def from_row(row: sqlite3.Row) -> Artifact:
    """The artifact in a row of the table."""
    values: dict[str, Any] = dict(row)
    return Artifact(**{**values, "details": json.loads(row["details"]), "present": bool(row["present"])})


def put(tx: Transaction, new: Artifact) -> Artifact:
    """Add an artifact, or make one again as far as the rules allow. Raises RequestConflict.

    `expires` may only grow, a reference may change its URL, and it may become a link; all else must be the same. An
    upload keeps its details of the first time.
    """
    old = find(tx, new.task_id, new.run_id, new.name)
    if old is not None:
        _refuse_conflict(old, new)
        if new.storage_type in {"s3", "object"}:
            new = Artifact(**{**new.__dict__, "details": old.details, "present": old.present})
    tx.run(
        "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        new.task_id,
        new.run_id,
        new.name,
        new.storage_type,
        new.content_type,
        new.expires,
        json.dumps(new.details),
        int(new.present),
    )
    tx.act_at(new.expires)
    return new


def _refuse_conflict(old: Artifact, new: Artifact) -> None:
    became_link = (old.storage_type, new.storage_type) == ("reference", "link")
    problem = None
    if old.storage_type != new.storage_type and not became_link:
        problem = f"storage type is {old.storage_type}, not {new.storage_type}"
    elif old.content_type != new.content_type and not became_link:
        problem = f"content type is {old.content_type}, not {new.content_type}"
    elif new.expires < old.expires:
        problem = f"expires is {old.expires} and can only grow"
    elif old.details != new.details and new.storage_type in {"link", "error"} and not became_link:
        problem = "details are others"
    if problem:
        raise RequestConflict(f"Artifact {new.name!r} was already created: its {problem}")


def resolve(tx: Transaction, artifact: Artifact, now: str) -> tuple[Artifact, list[str]]:
    """What the links lead to, and every name on the way. Raises InputError for a cycle."""
    names = [artifact.name]
    while artifact.storage_type == "link":
        target = str(artifact.details["artifact"])
        if target in names:
            raise InputError(f"Artifact {names[0]!r} links to itself by way of {' → '.join(names)}")
        names.append(target)
        artifact = get(tx, artifact.task_id, artifact.run_id, target, now)
    return artifact, names


def information(tx: Transaction, artifact: Artifact) -> Json:
    """The artifact as lists show it."""
    shown = {
        "storageType": artifact.storage_type,
        "name": artifact.name,
        "expires": artifact.expires,
        "contentType": artifact.content_type,
    }
    blob_id = artifact.details.get("blobId")
    blob = None if blob_id is None else blobs.find(tx, blob_id)
    return shown if blob is None else {**shown, "contentLength": blob.length}
