"""A task file gives the same log, artifacts and verdict by `exec` as through a queue."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from worker.testing.world import open_world

TASKS = {
    "completes": """
        payload:
          command: [[sh, -c, 'echo $GREETING; mkdir out; echo one > out/1; echo two > out/2.txt'], [echo, second]]
          env: {GREETING: hello}
          maxRunTime: 60
          artifacts:
            - {type: directory, path: out, name: public/out}
            - {type: file, path: out/1, name: public/one}
    """,
    "fails": """
        payload:
          command: [[sh, -c, 'echo about to fail; exit 7']]
          maxRunTime: 60
          artifacts: [{type: file, path: nothing, name: public/nothing}]
    """,
    "is malformed": """
        payload: {command: echo, maxRunTime: 60, colour: red}
    """,
}
EXIT_CODES = {"completed": 0, "failed": 1, "exception": 3}

# Ids, times and the names of the worker; nothing else may differ.
VARYING = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"(Time|Duration): \d+\.\d{3}s", r"\1: N"),
    (r"Task ID: \S+", "Task ID: ID"),
    (r'"(workerId|workerGroup|taskQueueId)": "[^"]*"', r'"\1": "W"'),
    (r"(Resources used:).*", r"\1"),
]


def comparable(log: str) -> list[str]:
    for pattern, replacement in VARYING:
        log = re.sub(pattern, replacement, log)
    return log.splitlines()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "/logs/" not in str(path)
    }


def tc_worker(*args: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", *args]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("what", TASKS)
async def test_exec_and_queue_agree(tmp_path: Path, what: str) -> None:
    task = tmp_path / "task.yml"
    task.write_text(TASKS[what])
    (tmp_path / "works").mkdir()

    def by_exec() -> subprocess.CompletedProcess[str]:
        return tc_worker("exec", str(task), "--artifacts", str(tmp_path / "by-exec"), environ={})

    executed = await trio.to_thread.run_sync(by_exec)
    async with open_world(tmp_path / "works") as world:
        environ = {
            "TASKCLUSTER_ROOT_URL": world.embedded.root_url,
            "TASKCLUSTER_CLIENT_ID": world.credentials.client_id,
            "TASKCLUSTER_ACCESS_TOKEN": world.credentials.access_token,
        }
        config = tmp_path / "tc-worker.yml"
        config.write_text("worker: {taskQueueId: proj-test/native}\n")

        def command(*args: str) -> subprocess.CompletedProcess[str]:
            return tc_worker("--config", str(config), *args, environ=environ)

        submitted = await trio.to_thread.run_sync(command, "submit", str(task))
        task_id = submitted.stdout.strip()
        await world.run_worker(world.config(numberOfTasks=1))
        state = (await world.queue.status(task_id)).state
        log = await world.log(task_id)
        by_queue = str(tmp_path / "by-queue")
        await trio.to_thread.run_sync(command, "artifacts", "--download", by_queue, "--", task_id)

    assert executed.returncode == EXIT_CODES[state], executed.stderr
    assert comparable(executed.stdout) == comparable(log)
    assert files(tmp_path / "by-exec") == files(tmp_path / "by-queue")
    assert bool(files(tmp_path / "by-exec")) == (what == "completes")
