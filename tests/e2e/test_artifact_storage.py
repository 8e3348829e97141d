"""Whole workers on deployments that take artifacts in different ways: artifacts and logs go the same way."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.model import RunKey
from worker.testing.world import BACKING_LOG, open_world

SCRIPT = "mkdir -p out/deep; echo small > out/a.txt; seq 100000 > out/deep/b.txt; : > out/empty; echo said"


@pytest.mark.parametrize("storage", ["auto", "s3", "object"])
async def test_artifacts_and_log_are_stored_as_configured(tmp_path: Path, storage: str) -> None:
    async with open_world(tmp_path) as world:
        artifacts = [{"type": "directory", "path": "out", "name": "public/out"}]
        payload = {"command": [["sh", "-c", SCRIPT]], "maxRunTime": 60, "artifacts": artifacts}
        task_id = await world.create(payload)
        await world.run_worker(world.config(numberOfTasks=1, artifactStorage=storage))
        assert (await world.queue.status(task_id)).state == "completed"
        listed = await world.queue.list_artifacts(RunKey(task_id, 0))
        kinds = {artifact.name: artifact.storage_type for artifact in listed if artifact.storage_type != "link"}
        names = ["public/out/a.txt", "public/out/deep/b.txt", "public/out/empty"]
        assert kinds == dict.fromkeys([*names, BACKING_LOG], "object" if storage == "object" else "s3")
        assert await world.artifact(task_id, names[0]) == b"small\n"
        assert (await world.artifact(task_id, names[1])).splitlines()[-1] == b"100000"
        assert await world.artifact(task_id, names[2]) == b""
        assert "said\n" in await world.log(task_id)
