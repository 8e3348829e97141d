"""Workers whose disk is really full: a small tmpfs in a mount namespace of their own."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from worker.queue.models import TaskStatus
from worker.testing.realworker import RealWorker, real_worker
from worker.testing.world import World, open_world

SMALL = "size=16m,nr_inodes=2000"


@asynccontextmanager
async def worker_on_small_disk(folder: Path, **settings: Any) -> AsyncGenerator[tuple[World, RealWorker], None]:
    (folder / "work").mkdir(parents=True)
    (folder / "world").mkdir()
    script = f'mount -t tmpfs -o {SMALL} none "$0" && exec "$@"'
    apart = ["unshare", "--mount", "sh", "-c", script, str(folder / "work")]
    if (await trio.run_process([*apart, "true"], check=False, capture_stderr=True)).returncode != 0:
        pytest.skip("a mount namespace is for root")
    own: dict[str, Any] = {"minimumDiskSpace": "8 MiB", "minimumInodes": 1000} | settings
    async with (
        open_world(folder / "world") as world,
        real_worker(world, folder, (*apart, sys.executable), **own) as worker,
    ):
        yield world, worker


async def run(world: World, script: str) -> tuple[TaskStatus, str]:
    task_id = await world.create({"command": [["sh", "-c", script]], "maxRunTime": 60})
    status = await world.resolved(task_id)
    return status, await world.log(task_id)


def ended(status: TaskStatus) -> tuple[str, str | None]:
    return status.runs[-1].state, status.runs[-1].reason_resolved


async def test_a_task_that_fills_the_disk_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    async with worker_on_small_disk(tmp_path) as (world, _):
        for _ in range(2):
            status, log = await run(world, "cat /dev/zero > big; yes | head -c 4000000; rm big; exit 0")
            assert ended(status) == ("exception", "internal-error")
            assert "cat: write error: No space left on device" in log
            assert "[taskcluster:error] the worker failed: its disk is full (incident " in log.splitlines()[-1]
        status, log = await run(world, "echo fine")
        assert ended(status) == ("completed", "completed")


async def test_a_task_that_fails_since_the_disk_is_full_has_that_in_its_log(tmp_path: Path) -> None:
    async with worker_on_small_disk(tmp_path) as (world, _):
        status, log = await run(world, "cat /dev/zero > big 2> /dev/null || exit 3")
        assert ended(status) == ("failed", "failed")
        assert "[taskcluster:warn" in log
        assert "the worker's disk is full" in log
        status, log = await run(world, "i=0; while : > f$i; do i=$((i+1)); done 2> /dev/null; exit 3")
        assert ended(status) == ("failed", "failed")
        assert "the worker's disk is full: no more files can be made" in log
        status, log = await run(world, "echo fine")
        assert ended(status) == ("completed", "completed")
        assert "full" not in log


async def test_a_disk_without_room_is_told_and_claims_nothing(tmp_path: Path) -> None:
    async with worker_on_small_disk(tmp_path, minimumDiskSpace="1 GiB") as (_, worker):
        await worker.hear("claims nothing: ")
        await worker.hear(" are free in workDir, and minimumDiskSpace is 1 GiB")
        worker.process.terminate()
        assert await worker.end() == 0


async def test_a_long_log_that_cannot_be_compressed_is_stored_from_a_full_disk_too(tmp_path: Path) -> None:
    async with worker_on_small_disk(tmp_path) as (world, _):
        # What could not be compressed makes room, once.
        fill = "for i in 1 2 3; do cat /dev/zero >> big 2> /dev/null; sleep 0.3; done"
        script = f"base64 < /dev/urandom | head -c 4000000; {fill}; exit 3"
        status, log = await run(world, script)
        # Where the disk is full before the log's last bytes are on it, that is an internal error.
        assert status.state in {"failed", "exception"}
        assert len(log) > 3_500_000
        assert "the worker's disk is full" in log or "its disk is full" in log
