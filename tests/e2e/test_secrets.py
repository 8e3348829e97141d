"""A token that came by the environment is nowhere to be read while tasks run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from worker.testing.world import open_world

# All environments and command lines that a task can read; what is searched for is not a part of the command itself.
SEARCH = """
for p in /proc/[0-9]*; do cat $p/environ $p/cmdline 2>/dev/null; done | tr '\\0' '\\n' > everything
echo token: $(grep -c "$FIRST$SECOND" everything)
echo first: $(grep -c "^FIRST=$FIRST" everything)
echo worker: $(grep -c "^$CONFIG$" everything)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is searched is /proc")
async def test_no_task_can_find_the_workers_token_in_proc(tmp_path: Path) -> None:
    works, config = tmp_path / "works", tmp_path / "tc-worker.yml"
    works.mkdir()
    config.write_text("worker: {taskQueueId: proj-test/native, workDir: work, numberOfTasks: 1, minimumDiskSpace: 0}\n")
    async with open_world(works) as world:
        token = world.credentials.access_token
        env = {"FIRST": token[:10], "SECOND": token[10:], "CONFIG": str(config)}
        task_id = await world.create({"command": [["sh", "-c", SEARCH]], "env": env, "maxRunTime": 60})
        result = await trio.run_process(
            [sys.executable, "-m", "worker", "run", "--config", str(config)],
            env={
                **os.environ,
                "TASKCLUSTER_ROOT_URL": world.embedded.root_url,
                "TASKCLUSTER_CLIENT_ID": world.credentials.client_id,
                "TASKCLUSTER_ACCESS_TOKEN": token,
            },
            capture_stdout=True,
            capture_stderr=True,
        )
        log = await world.log(task_id)
    assert token not in (result.stdout + result.stderr).decode()
    found = dict(line.split(": ") for line in log.splitlines() if not line.startswith("[taskcluster"))
    assert found["token"] == "0"
    # The search does find what is there: the task's own environment, and the worker's command line.
    assert int(found["first"]) > 0
    assert int(found["worker"]) > 0
