"""A token that came by the environment is nowhere to be read while tasks run."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from worker.testing.world import open_world

# All environments and command lines that one can read; what is searched for is not a part of the command itself.
SEARCH = """
for p in /proc/[0-9]*; do cat $p/environ $p/cmdline 2>/dev/null; done | tr '\\0' '\\n' > everything
echo token: $(grep -c "$FIRST$SECOND" everything)
echo first: $(grep -c "^FIRST=$FIRST" everything)
echo worker: $(grep -c "^$CONFIG$" everything)
"""
# Tells that it runs, and waits until it may end.
TASK = f'{SEARCH}\necho > "$RUNS"; cat "$MAY_END" > /dev/null'


def found(text: str) -> dict[str, int]:
    lines = (line.split(": ") for line in text.splitlines() if not line.startswith("[taskcluster"))
    return {what: int(number) for what, number in lines}


@pytest.mark.skipif(sys.platform != "linux", reason="what is searched is /proc")
async def test_nobody_can_find_the_workers_token_in_proc(tmp_path: Path) -> None:
    config = tmp_path / "tc-worker.yml"
    for folder in ("works", "outside"):
        (tmp_path / folder).mkdir()
    for fifo in ("runs", "may-end"):
        os.mkfifo(tmp_path / fifo)
    config.write_text("worker: {taskQueueId: proj-test/native, workDir: work, numberOfTasks: 1, minimumDiskSpace: 0}\n")
    async with open_world(tmp_path / "works") as world, trio.open_nursery() as nursery:
        token = world.credentials.access_token
        search = {"FIRST": token[:10], "SECOND": token[10:], "CONFIG": str(config)}
        env = {**search, "RUNS": str(tmp_path / "runs"), "MAY_END": str(tmp_path / "may-end")}
        task_id = await world.create({"command": [["sh", "-c", TASK]], "env": env, "maxRunTime": 60})
        run = partial(
            trio.run_process,
            [sys.executable, "-m", "worker", "run", "--config", str(config)],
            env={
                **os.environ,
                "TASKCLUSTER_ROOT_URL": world.embedded.root_url,
                "TASKCLUSTER_CLIENT_ID": world.credentials.client_id,
                "TASKCLUSTER_ACCESS_TOKEN": token,
            },
            stdout=os.open(tmp_path / "told", os.O_WRONLY | os.O_CREAT),
            stderr=subprocess.STDOUT,
        )
        nursery.start_soon(run)
        runs, may_end = (os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK) for name in ("runs", "may-end"))
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(runs)
        outside = await trio.run_process(
            ["sh", "-c", SEARCH], env={**os.environ, **search}, cwd=tmp_path / "outside", capture_stdout=True
        )
        os.write(may_end, b"\n")
        os.close(may_end)
        os.close(runs)
        await world.resolved(task_id)
        from_inside = found(await world.log(task_id))
    assert token not in await trio.Path(tmp_path / "told").read_text()
    from_outside = found(outside.stdout.decode())
    assert from_inside["token"] == from_outside["token"] == 0
    # The searches do find what is there: the task's environment, and from outside the worker's command line.
    assert from_inside["first"] > 0
    assert from_outside["first"] > 1
    assert from_outside["worker"] > 0
