"""A task that uses all processors and much memory does not make the worker miss a reclaim."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import trio

from worker.cgroups import Limits, open_homes
from worker.ports import Ports
from worker.supervisor import run_worker
from worker.testing.world import open_world

# Arguments: seconds, processes, MiB that each of them writes to, over and over.
GREED = """
import os, sys, time
seconds, number, size = map(int, sys.argv[1:])
end = time.monotonic() + seconds
for _ in range(number - 1):
    if not os.fork():
        break
memory = bytearray(size << 20)
while time.monotonic() < end:
    for place in range(0, len(memory), 4096):
        memory[place] ^= 1
"""


class CountingPorts(Ports):
    """`reclaims` has how each reclaim was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.reclaims: list[int] = []

    def transport(self, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
        return CountingTransport(super().transport(limits), self.reclaims)


class CountingTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, reclaims: list[int]) -> None:
        self._inner = inner
        self._reclaims = reclaims

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.url.path.endswith("/reclaim"):
            self._reclaims.append(response.status_code)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def run_greed(folder: Path, claims: int, seconds: int, processes: int, size: int) -> None:
    """Claims last so many seconds; the task has twice the memory that it needs, and no more, where limits exist."""
    limit = max(64, 2 * processes * size) << 20
    homes = open_homes()
    limited = homes is not None and not homes.lacking(Limits(memory=limit, processes=2 * processes))
    limits = {"memory": limit, "processes": 2 * processes} if limited else {}
    argv = [sys.executable, "-ISc", GREED, str(seconds), str(processes), str(size)]
    ports = CountingPorts()
    async with open_world(folder, claim_timeout=timedelta(seconds=claims)) as world:
        task_id = await world.create({"command": [argv], "maxRunTime": 10 * seconds})
        config = world.config(numberOfTasks=1, engines={"native": {"limits": limits}})
        with trio.fail_after(10 * seconds):
            await run_worker(config, ports, root_url=world.embedded.root_url, credentials=world.credentials)
        status = await world.queue.status(task_id)
    assert [(run.state, run.reason_resolved) for run in status.runs] == [("completed", "completed")]
    assert ports.reclaims == [200] * len(ports.reclaims)
    assert len(ports.reclaims) >= 2


async def test_a_greedy_task_keeps_its_claim(tmp_path: Path) -> None:
    await run_greed(tmp_path, claims=8, seconds=8, processes=6, size=32)


@pytest.mark.full
async def test_a_very_greedy_task_keeps_its_claim(tmp_path: Path) -> None:
    """A hundred processes, 1 GiB."""
    await run_greed(tmp_path, claims=30, seconds=60, processes=100, size=10)
