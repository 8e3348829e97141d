"""A task created with the official client is claimed, run, streamed and resolved, and its artifacts can be had.

Against the embedded queue, in a process of its own; or against a deployment, where TEST_TASKCLUSTER_ROOT_URL,
_CLIENT_ID and _ACCESS_TOKEN (and _CERTIFICATE, _TASK_QUEUE_ID) are set: the client must be allowed to create tasks for
that queue and to claim from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import taskcluster

PREFIX = "TEST_TASKCLUSTER_"


@dataclass(frozen=True)
class Target:
    """Where to run: what the environment of a client would say."""

    root_url: str
    client_id: str
    access_token: str
    certificate: str | None
    task_queue_id: str

    def options(self) -> dict[str, Any]:
        credentials = {"clientId": self.client_id, "accessToken": self.access_token, "certificate": self.certificate}
        return {"rootUrl": self.root_url, "credentials": credentials}

    def environ(self) -> dict[str, str]:
        values = {
            "TASKCLUSTER_ROOT_URL": self.root_url,
            "TASKCLUSTER_CLIENT_ID": self.client_id,
            "TASKCLUSTER_ACCESS_TOKEN": self.access_token,
        }
        return values | ({"TASKCLUSTER_CERTIFICATE": self.certificate} if self.certificate else {})


def target_of(environ: Mapping[str, str], prefix: str) -> Target:
    return Target(
        environ[f"{prefix}ROOT_URL"],
        environ[f"{prefix}CLIENT_ID"],
        environ[f"{prefix}ACCESS_TOKEN"],
        environ.get(f"{prefix}CERTIFICATE"),
        environ.get(f"{prefix}TASK_QUEUE_ID", "proj-test/native"),
    )


@pytest.fixture(scope="module", params=["embedded", "deployment"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if request.param == "deployment":
        if f"{PREFIX}ROOT_URL" not in os.environ:
            pytest.skip(f"no deployment to test against: {PREFIX}ROOT_URL is not set")
        yield target_of(os.environ, PREFIX)
        return
    command = [sys.executable, "-m", "worker", "queue", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        yield target_of(dict(line.split("=", 1) for line in lines), "TASKCLUSTER_")
        process.terminate()


@pytest.fixture
def queue(target: Target) -> Any:
    return taskcluster.Queue(target.options())


def create(queue: Any, target: Target, payload: dict[str, Any]) -> str:
    now = datetime.now(UTC)
    task_id: str = taskcluster.slugId()
    queue.createTask(
        task_id,
        {
            "taskQueueId": target.task_queue_id,
            "created": now.isoformat(),
            "deadline": (now + timedelta(hours=1)).isoformat(),
            "expires": (now + timedelta(days=1)).isoformat(),
            "payload": payload,
            "metadata": {
                "name": "contract test",
                "description": "Made by a test of tc-worker",
                "owner": "nobody@example.com",
                "source": "https://example.com/",
            },
        },
    )
    return task_id


def work(target: Target, folder: Path, number_of_tasks: int) -> str:
    """Run a worker until it has run so many tasks; what it logged."""
    config = folder / "tc-worker.yml"
    config.write_text(
        f"worker: {{taskQueueId: {target.task_queue_id}, workerId: contract, workDir: work, minimumDiskSpace: 0,\n"
        f"         capacity: 2, numberOfTasks: {number_of_tasks}}}\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "worker", "run", "--config", str(config)],
        env={**os.environ, **target.environ()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def download(queue: Any, task_id: str, name: str) -> requests.Response:
    url = queue.buildUrl("getLatestArtifact", task_id, name)
    return requests.get(url, timeout=30)


def test_create_run_read_the_log_and_download_the_artifacts(queue: Any, target: Target, tmp_path: Path) -> None:
    payload = {
        "command": [
            ["sh", "-c", "echo hello $NAME; mkdir -p out/deep; echo data > out/deep/a.txt; printf '{}' > b.json"]
        ],
        "env": {"NAME": "world"},
        "maxRunTime": 60,
        "artifacts": [
            {"type": "directory", "path": "out", "name": "public/out"},
            {"type": "file", "path": "b.json", "name": "public/b.json"},
        ],
    }
    task_id = create(queue, target, payload)
    said = work(target, tmp_path, 1)
    status = queue.status(task_id)["status"]
    assert (status["state"], status["runs"][0]["reasonResolved"]) == ("completed", "completed")

    artifacts = {artifact["name"]: artifact for artifact in queue.listLatestArtifacts(task_id)["artifacts"]}
    logs = {"public/logs/live.log", "public/logs/live_backing.log"}
    assert artifacts.keys() == logs | {"public/out/deep/a.txt", "public/b.json"}
    assert artifacts["public/logs/live.log"]["storageType"] == "link"

    assert download(queue, task_id, "public/out/deep/a.txt").text == "data\n"
    answer = download(queue, task_id, "public/b.json")
    assert (answer.headers["Content-Type"], answer.content) == ("application/json", b"{}")
    log = download(queue, task_id, "public/logs/live.log")
    assert log.headers["Content-Type"].startswith("text/plain")
    assert "hello world" in log.text.splitlines()
    assert target.access_token not in log.text + said


def test_a_failure_and_a_malformed_payload_are_told_in_the_log(queue: Any, target: Target, tmp_path: Path) -> None:
    missing = [{"type": "file", "path": "nothing", "name": "public/nothing"}]
    failed = create(queue, target, {"command": [["true"]], "maxRunTime": 60, "artifacts": missing})
    malformed = create(queue, target, {"command": "true", "maxRunTime": 60})
    work(target, tmp_path, 2)
    assert queue.status(failed)["status"]["runs"][0]["reasonResolved"] == "failed"
    assert queue.status(malformed)["status"]["runs"][0]["reasonResolved"] == "malformed-payload"
    assert download(queue, failed, "public/nothing").status_code == 424
    assert "command: " in download(queue, malformed, "public/logs/live_backing.log").text.splitlines()[-1]
