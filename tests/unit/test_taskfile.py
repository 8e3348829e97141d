from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from worker.queue.models import CreateTaskRequest
from worker.taskfile import TaskFileError, complete_task, load_task

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def complete(document: dict[str, object]) -> CreateTaskRequest:
    return complete_task(document, "dir/my task.yml", "local/native", NOW)


def problems(document: dict[str, object]) -> dict[str, str]:
    with pytest.raises(TaskFileError) as caught:
        complete(document)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_all_but_the_payload_is_filled_in() -> None:
    task = complete({"payload": {"command": []}})
    assert task.task_queue_id == "local/native"
    assert task.created == NOW
    assert task.deadline == NOW + timedelta(days=1)
    assert task.expires is not None
    assert task.expires > task.deadline
    assert task.metadata.name == "my task"
    assert task.metadata.source == "https://localhost/my%20task.yml"


def test_what_is_there_stays() -> None:
    task = complete(
        {
            "payload": {},
            "provisionerId": "p",
            "workerType": "w",
            "created": "2026-01-30T00:00:00.000Z",
            "deadline": "2026-01-30T01:00:00.000Z",
            "expires": "2026-01-30T02:00:00.000Z",
            "metadata": {"name": "mine"},
            "priority": "high",
        }
    )
    assert (task.task_queue_id, task.provisioner_id, task.worker_type) == (None, "p", "w")
    assert task.deadline - task.created == timedelta(hours=1)
    assert task.metadata.name == "mine"
    assert task.priority == "high"


def test_times_follow_from_those_that_are_there() -> None:
    task = complete({"payload": {}, "deadline": "2026-02-03T00:00:00Z"})
    assert task.expires == datetime(2026, 3, 5, tzinfo=UTC)


def test_every_problem_is_told_with_its_path() -> None:
    found = problems({"pay": {}, "metadata": {"owner": 5, "naem": "x"}, "retries": 50, "created": "soon"})
    assert found["payload"] == "is required and is missing"
    assert found["metadata.naem"] == "is not a known name; did you mean name?"
    assert "metadata.owner" in found
    assert "retries" in found
    assert "created" in found
    assert "pay" in found


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"deadline": "2026-01-31T11:00:00Z"}, "deadline"),
        ({"deadline": "2026-02-06T00:00:00Z"}, "deadline"),
        ({"expires": "2026-01-31T13:00:00Z"}, "expires"),
        ({"workerType": "w"}, "taskQueueId"),
        ({"taskQueueId": "x"}, "taskQueueId"),
    ],
)
def test_what_the_queue_would_refuse_is_told(document: dict[str, object], path: str) -> None:
    assert set(problems({"payload": {}, **document})) == {path}


def test_the_examples_are_tasks() -> None:
    examples = Path(__file__).parents[2] / "docs" / "examples"
    assert load_task(examples / "hello-world.yml", "local/native", NOW).metadata.name == "hello-world"
