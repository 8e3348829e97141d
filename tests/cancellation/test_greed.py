"""A task that uses all processors, and more memory than it may have, does not make the worker miss a reclaim."""

from __future__ import annotations

import re
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

# Arguments: seconds, processes, MiB that each of them writes to, over and over. Who is killed is replaced.
# Beside them one for each processor computes.
GREED = """
import os, sys, time
seconds, number, size = map(int, sys.argv[1:])
end = time.monotonic() + seconds
def consume():
    memory = bytearray(size << 20)
    while time.monotonic() < end:
        for place in range(0, len(memory), 4096):
            memory[place] ^= 1
    os._exit(0)
def compute():
    while time.monotonic() < end:
        pass
    os._exit(0)
def add():
    return os.fork() or consume()
for _ in range(os.cpu_count()):
    os.fork() or compute()
left = {add() for _ in range(number)}
while left:
    left.discard(os.wait()[0])
    if len(left) < number and time.monotonic() < end:
        left.add(add())
"""


class CountingPorts(Ports):
    """`reclaims` has how each reclaim was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.reclaims: list[int] = []

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return CountingTransport(super().transport(idle_limit), self.reclaims)


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
    """Claims last so many seconds; the task has half of the memory that it wants, where limits exist."""
    limit = processes * size // 2 << 20
    homes = open_homes()
    limited = homes is not None and not homes.lacking(Limits(memory=limit))
    limits = {"memory": limit} if limited else {}
    argv = [sys.executable, "-ISc", GREED, str(seconds), str(processes), str(size)]
    ports = CountingPorts()
    async with open_world(folder, claim_timeout=timedelta(seconds=claims)) as world:
        task_id = await world.create({"command": [argv], "maxRunTime": 10 * seconds})
        config = world.config(numberOfTasks=1, engines={"native": {"limits": limits}})
        with trio.fail_after(10 * seconds):
            await run_worker(config, ports, root_url=world.embedded.root_url, credentials=world.credentials)
        status = await world.queue.status(task_id)
        log = await world.log(task_id)
    end = "failed" if limited else "completed"
    assert [(run.state, run.reason_resolved) for run in status.runs] == [(end, end)]
    assert ("out of memory" in log) == limited
    # All processors, as far as others on this machine leave them.
    used = re.search(r"Resources used: ([0-9.]+) s user, ([0-9.]+) s kernel", log)
    assert used is None or float(used[1]) + float(used[2]) >= 0.25 * seconds
    assert ports.reclaims == [200] * len(ports.reclaims)
    assert len(ports.reclaims) >= 2


async def test_a_greedy_task_keeps_its_claim(tmp_path: Path) -> None:
    await run_greed(tmp_path, claims=8, seconds=8, processes=6, size=32)


@pytest.mark.full
async def test_a_very_greedy_task_keeps_its_claim(tmp_path: Path) -> None:
    """A hundred processes that want 1 GiB, and have half of it."""
    await run_greed(tmp_path, claims=30, seconds=60, processes=100, size=10)
