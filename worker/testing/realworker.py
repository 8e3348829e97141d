"""Workers in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from worker.testing.world import TASK_QUEUE, World

ROOT = Path(__file__).parents[2]


class RealWorker:
    """A worker's process, and what it has said."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._said = ""

    async def hear(self, text: str) -> None:
        """Return when it has said that, on stderr."""
        assert self.process.stderr is not None
        with trio.fail_after(30):
            while text not in self._said:
                chunk = await self.process.stderr.receive_some()
                assert chunk, self._said
                self._said += chunk.decode()

    async def end(self) -> int:
        """Its exit code, when it has ended."""
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            self._said += chunk.decode()
        return await self.process.wait()


@asynccontextmanager
async def real_worker(
    world: World,
    folder: Path,
    python: Sequence[str] = (sys.executable,),
    parts: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncGenerator[RealWorker, None]:
    """`python -m worker run` on the world's queue, with these settings of `worker`; KILLed at the end if it still runs.

    `parts` are other parts of its config. `folder` has its config and its workDir, which stays for the next one.
    """
    own = {"taskQueueId": TASK_QUEUE, "workerId": "real", "workDir": str(folder / "work"), "minimumDiskSpace": 0}
    config = folder / "config.json"
    await trio.Path(config).write_text(
        json.dumps({**(parts or {}), "worker": {**own, "cancelPollInterval": 0.1, **settings}})
    )
    environment = {
        **environment_of(python),
        "TASKCLUSTER_ROOT_URL": world.embedded.root_url,
        "TASKCLUSTER_CLIENT_ID": world.credentials.client_id,
        "TASKCLUSTER_ACCESS_TOKEN": world.credentials.access_token,
    }
    process = await trio.lowlevel.open_process(
        [*python, "-m", "worker", "run", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    assert process.stderr is not None
    try:
        yield RealWorker(process)
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            await process.stderr.aclose()


def environment_of(python: Sequence[str]) -> dict[str, str]:
    """The environment in which `python` finds the worker and what it needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKCLUSTER_", "TC_WORKER_"))}
    if python[-1] == sys.executable:
        return kept
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]), "HOME": "/"}
