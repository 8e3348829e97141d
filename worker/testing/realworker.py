"""Workers in processes of their own."""

from __future__ import annotations

import codecs
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
        self._over = False
        self._more = trio.Event()

    async def listen(self) -> None:
        """Take what it says on stderr, to the end: it would wait where nobody does."""
        assert self.process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        async for chunk in self.process.stderr:
            self._say(decoder.decode(chunk))
        self._over = True
        self._say(decoder.decode(b"", final=True))

    def _say(self, text: str) -> None:
        self._said += text
        self._more.set()
        self._more = trio.Event()

    async def hear(self, text: str) -> None:
        """Return when it has said that, on stderr."""
        with trio.fail_after(30):
            while text not in self._said:
                assert not self._over, self._said
                await self._more.wait()

    async def end(self) -> int:
        """Its exit code, when it has ended."""
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
    worker = RealWorker(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.listen)
            yield worker
            nursery.cancel_scope.cancel()
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
