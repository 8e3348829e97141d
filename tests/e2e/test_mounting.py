"""Whole workers, whose tasks bring in what others have made."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.testing.realworker import real_worker
from worker.testing.world import World, open_world

MAKE = """
mkdir out && echo hello > out/hello.txt && ln -s hello.txt out/link
tar czf out.tar.gz -C out .
sha256sum out.tar.gz
"""


async def completed(world: World, task_id: str) -> str:
    status = await world.resolved(task_id)
    log = await world.log(task_id)
    assert status.state == "completed", log
    return log


def sh(script: str) -> dict[str, object]:
    return {"maxRunTime": 60, "command": [["sh", "-euc", script]]}


@pytest.mark.parametrize("name", ["public/out.tar.gz", "private/out.tar.gz"])
async def test_a_task_mounts_what_another_has_made(tmp_path: Path, name: str) -> None:
    async with open_world(tmp_path) as world, world.worker(world.config(capacity=2)):
        artifact = {"type": "file", "path": "out.tar.gz", "name": name}
        maker = await world.create({**sh(MAKE), "artifacts": [artifact]})
        made = await completed(world, maker)
        digest = next(line.split()[0] for line in made.splitlines() if line.endswith("  out.tar.gz"))
        mounts = [
            {"directory": "in", "content": {"taskId": maker, "artifact": name, "sha256": digest}, "format": "tar.gz"},
            {"file": "in/again/out.tar.gz", "content": {"taskId": maker, "artifact": name}},
        ]
        user = await world.create(
            {**sh("cat in/link; sha256sum in/again/out.tar.gz"), "mounts": mounts},
            dependencies=[maker],
            scopes=[] if name.startswith("public/") else [f"queue:get-artifact:{name}"],
        )
        log = await completed(world, user)
        assert "\nhello\n" in log
        assert f"{digest}  in/again/out.tar.gz" in log
        assert f"[mounts] Downloaded artifact {name} of task {maker}" in log


async def test_a_task_needs_the_scope_for_what_is_private(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.worker(world.config()):
        artifact = {"type": "file", "path": "out.tar.gz", "name": "private/out.tar.gz"}
        maker = await world.create({**sh(MAKE), "artifacts": [artifact]})
        await completed(world, maker)
        mount = {"file": "in", "content": {"taskId": maker, "artifact": "private/out.tar.gz"}}
        user = await world.create({**sh("true"), "mounts": [mount]}, dependencies=[maker])
        status = await world.resolved(user)
        assert status.state == "failed"
        assert "queue:get-artifact:private/out.tar.gz" in (await world.log(user)).splitlines()[-1]


@pytest.mark.parametrize("name", ["public/out.tar.gz", "private/out.tar.gz"])
async def test_a_task_mounts_what_the_index_names(tmp_path: Path, name: str) -> None:
    async with open_world(tmp_path) as world, real_worker(world, tmp_path, capacity=2):
        content = {"namespace": "project.x.latest", "artifact": name}
        use = {**sh("cat in/link"), "mounts": [{"directory": "in", "content": content, "format": "tar.gz"}]}
        scopes = ["index:find-task:project.x.latest", "queue:get-artifact:private/*"]
        artifact = {"type": "file", "path": "out.tar.gz", "name": name}
        maker = await world.create({**sh(MAKE), "artifacts": [artifact]}, routes=["index.project.x.latest"])
        # A dependency is for the order alone: the queue starts the one when the other is in the index.
        user = await world.create(use, dependencies=[maker], scopes=scopes)
        found = f"artifact {name} of task {maker}"
        for said in (f"Downloaded {found} in ", f"{found} has not changed"):
            log = await completed(world, user)
            assert "\nhello\n" in log
            assert f"[mounts] {said}" in log
            user = await world.create(use, scopes=scopes)


async def test_what_the_index_does_not_name_and_who_may_not_ask_it_are_told(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, real_worker(world, tmp_path):
        maker = await world.create(sh("true"), routes=["index.project.x.latest"])
        await completed(world, maker)
        for path, scopes, words in (
            ("project.x.nothing", ["index:find-task:project.x.*"], "Indexed task not found: project.x.nothing"),
            ("project.x.latest", [], "index:find-task:project.x.latest"),
            ("project.x.latest", ["index:find-task:project.x.*"], f"artifact public/a of task {maker}"),
        ):
            mount = {"file": "in", "content": {"namespace": path, "artifact": "public/a"}}
            user = await world.create({**sh("echo it ran"), "mounts": [mount]}, scopes=scopes)
            status = await world.resolved(user)
            log = await world.log(user)
            assert status.state == "failed", log
            assert "is not to be had: " in log.splitlines()[-1]
            assert words in log.splitlines()[-1]
            assert "it ran\n" not in log


async def test_caches_outlive_tasks_and_workers(tmp_path: Path) -> None:
    mount = {"cacheName": "c", "directory": "deep/cache"}
    count = {**sh("echo x >> deep/cache/runs; wc -l < deep/cache/runs; exit ${1:-0}"), "mounts": [mount]}
    async with open_world(tmp_path) as world:
        config = world.config(numberOfTasks=2)
        scopes = ["generic-worker:cache:c"]
        tasks = [await world.create(count, scopes=scopes) for _ in range(3)]
        await world.run_worker(config)
        async with world.worker(config):
            logs = [await completed(world, task) for task in tasks]
        assert sorted(line for log in logs for line in log.splitlines() if line in {"1", "2", "3"}) == ["1", "2", "3"]


async def test_a_malformed_mount_is_told_and_nothing_runs(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.worker(world.config()):
        mounts = [{"cacheName": "c", "directory": "a"}, {"file": "b", "content": {"raw": ""}, "format": "rar"}]
        for number, words in enumerate(["mounts[1].format", "needs the scope generic-worker:cache:c"]):
            task = await world.create({**sh("echo it ran"), "mounts": mounts if number == 0 else mounts[:1]})
            status = await world.resolved(task)
            assert (status.state, status.runs[-1].reason_resolved) == ("exception", "malformed-payload")
            log = await world.log(task)
            assert words in log
            assert "it ran\n" not in log
