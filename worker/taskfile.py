"""Task files: a task definition as `createTask` takes it, in YAML or JSON, where all but `payload` may be left out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from worker.documents import BadDocument, read_document
from worker.errors import Problem
from worker.queue.models import CreateTaskRequest
from worker.queue.wire import format_time
from worker.schema import JsonObject, names_by_path, problems_of

DEADLINE = timedelta(days=1)  # from creation, where the file names none
EXPIRES = timedelta(days=30)  # from the deadline
LONGEST = timedelta(days=5)  # from creation to deadline, by the queue's rule (facts page, 1)


class TaskFileError(BadDocument):
    """The file is no task definition: every problem, each with its path."""


def load_task(path: Path, task_queue_id: str, now: datetime) -> CreateTaskRequest:
    """The task in the file at `path`, completed. Raises TaskFileError. Blocks."""
    try:
        document = read_document(path)
    except BadDocument as error:
        raise TaskFileError(error.source, error.problems) from None
    return complete_task(document, str(path), task_queue_id, now)


def complete_task(document: JsonObject, source: str, task_queue_id: str, now: datetime) -> CreateTaskRequest:
    """`document` with what is missing filled in: the task queue, times, and metadata made from the name `source`.

    Raises TaskFileError with every problem.
    """
    filled = {"created": format_time(now), **document}
    if not filled.keys() & {"taskQueueId", "provisionerId", "workerType"}:
        filled["taskQueueId"] = task_queue_id
    created = _moment(filled["created"]) or now
    filled.setdefault("deadline", format_time(created + DEADLINE))
    filled.setdefault("expires", format_time((_moment(filled["deadline"]) or now) + EXPIRES))
    metadata = filled.setdefault("metadata", {})
    if isinstance(metadata, dict):
        filled["metadata"] = {**_metadata(Path(source)), **metadata}
    try:
        task = CreateTaskRequest.model_validate(filled)
    except ValidationError as error:
        raise TaskFileError(source, problems_of(error, names_by_path(CreateTaskRequest))) from None
    if problems := list(_contradictions(task)):
        raise TaskFileError(source, problems)
    return task


def _metadata(path: Path) -> JsonObject:
    return {
        "name": path.stem[:255],
        "description": "",
        "owner": "nobody@localhost",
        "source": f"https://localhost/{quote(path.name)}"[:4096],
    }


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None  # The model tells what was expected.
    return moment if moment.tzinfo else None


def _contradictions(task: CreateTaskRequest) -> Iterator[Problem]:
    if not timedelta() <= task.deadline - task.created <= LONGEST:
        yield Problem("deadline", "expected a time from `created` to 5 days after it")
    if task.expires is not None and task.expires < task.deadline:
        yield Problem("expires", "expected a time not before `deadline`")
    if task.task_queue_id is None and not (task.provisioner_id and task.worker_type):
        yield Problem("taskQueueId", "is required, unless there are both provisionerId and workerType")
