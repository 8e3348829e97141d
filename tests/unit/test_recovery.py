from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from process_world import cold_group

from worker import cgroups, proctree
from worker.errors import FatalWorkerFault
from worker.orphans import MARK
from worker.ports import Ports
from worker.process import owner_of
from worker.recovery import open_work_dir
from worker.trash import open_trash

# A worker that is to be killed: without a namespace, so that what it starts outlives it.
WORKER = """
import sys, trio
from pathlib import Path
from worker.ports import Ports
from worker.process import open_containment, owner_of
from worker.recovery import open_work_dir
async def main(work_dir, cgroups):
    ports = Ports()
    async with (
        open_work_dir(ports, work_dir),
        open_containment(ports, owner_of(work_dir), use_cgroups=cgroups, use_namespaces=False) as containment,
        containment.open_tree("task", 1) as tree,
    ):
        (work_dir / "tasks" / "task").mkdir(parents=True)
        (work_dir / "logs").mkdir()
        (work_dir / "logs" / "task.log").write_text("half a log")
        script = "(trap '' TERM HUP; cd tasks/task; : > file; chmod 0 .; echo ready; setsid sleep 1000) & sleep 1000"
        await tree.spawn(["sh", "-c", script], cwd=work_dir, env={"PATH": "/bin:/usr/bin"}, output=1)
        await trio.sleep_forever()
trio.run(main, Path(sys.argv[1]), sys.argv[2] == "cgroups")
"""


async def start_worker(work_dir: Path, how: str, *before: str) -> trio.Process:
    """Started by the command `before`, if there is one."""
    process = await trio.lowlevel.open_process(
        [*before, sys.executable, "-c", WORKER, str(work_dir), how],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    with trio.fail_after(30):
        assert await process.stdout.receive_some() == b"ready\n"
    return process


async def close(process: trio.Process) -> None:
    assert process.stdout is not None
    process.kill()
    await process.wait()
    await process.stdout.aclose()


@pytest.mark.skipif(not proctree.is_told(), reason="processes are found by /proc")
@pytest.mark.parametrize("how", ["cgroups", "marks"])
async def test_what_a_killed_worker_left_is_removed(tmp_path: Path, how: str) -> None:
    owner = owner_of(tmp_path)
    await close(await start_worker(tmp_path, how))
    assert proctree.marked(MARK, f"{owner}-")
    async with open_work_dir(Ports(), tmp_path):
        assert proctree.marked(MARK, f"{owner}-") == []
        assert cgroups.leftovers(f"{cgroups.PREFIX}{owner}-") == []
        assert [*(tmp_path / "tasks").iterdir(), *(tmp_path / "logs").iterdir()] == []


async def test_what_is_frozen_is_removed_too(tmp_path: Path) -> None:
    with cold_group() as cold:
        process = await start_worker(tmp_path, "marks")
        frozen = proctree.marked(MARK, f"{owner_of(tmp_path)}-")
        for pid in frozen:
            (cold / "cgroup.procs").write_text(str(pid))
        (cold / "freezer.state").write_text("FROZEN")
        await close(process)
        async with open_work_dir(Ports(), tmp_path):
            assert not [pid for pid in frozen if proctree.is_alive(pid)]


async def test_a_child_of_what_is_left_is_removed_though_it_has_no_mark(tmp_path: Path) -> None:
    script = "trap '' HUP TERM; env -i sh -c 'echo $$; exec sleep 1000' & wait"
    env = {MARK: f"{owner_of(tmp_path)}-", "PATH": "/bin:/usr/bin"}
    left = await trio.lowlevel.open_process(["sh", "-c", script], stdout=subprocess.PIPE, env=env)
    assert left.stdout is not None
    async with left.stdout:
        child = int(await left.stdout.receive_some())
        async with open_work_dir(Ports(), tmp_path):
            assert not proctree.is_alive(left.pid)
            assert not proctree.is_alive(child)
        await left.wait()


async def test_a_directory_is_one_workers_at_a_time(tmp_path: Path) -> None:
    process = await start_worker(tmp_path, "marks")
    with pytest.raises(FatalWorkerFault, match=f"in use by another worker .process {process.pid}.: give each its own"):
        async with open_work_dir(Ports(), tmp_path):
            pytest.fail("both have it")
    assert proctree.marked(MARK, f"{owner_of(tmp_path)}-")
    await close(process)
    async with open_work_dir(Ports(), tmp_path):
        pass


async def test_another_workers_processes_are_not_touched(tmp_path: Path) -> None:
    process = await start_worker(tmp_path / "one", "marks")
    async with open_work_dir(Ports(), tmp_path / "other"):
        assert proctree.marked(MARK, f"{owner_of(tmp_path / 'one')}-")
    await close(process)
    async with open_work_dir(Ports(), tmp_path / "one"):
        pass


async def test_a_directory_of_the_same_path_on_another_file_system_is_another_workers(tmp_path: Path) -> None:
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path)]
    if (await trio.run_process([*apart, "true"], check=False, capture_stderr=True)).returncode != 0:
        pytest.skip("no mount namespace is to be had")
    process = await start_worker(tmp_path, "marks", *apart)
    there = proctree.descendants([process.pid])
    async with open_work_dir(Ports(), tmp_path):
        assert len(there) >= 2
        assert proctree.descendants([process.pid]) == there
    await close(process)
    proctree.send(there, signal.SIGKILL)


async def test_a_directory_can_be_had_again(tmp_path: Path) -> None:
    for _ in range(3):
        async with open_work_dir(Ports(), tmp_path / "new"):
            pass


async def test_what_was_left_is_moved_away_at_once_and_removed_by_the_trash(tmp_path: Path) -> None:
    (tmp_path / "caches" / "kept").mkdir(parents=True)
    for left in (2, 4):  # the first of these two starts is killed before it has removed anything
        for place in ("tasks/one", "leased/0/content"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "file").touch()
        async with open_work_dir(Ports(), tmp_path):
            assert len(list((tmp_path / "trash").iterdir())) == left
            assert [*(tmp_path / "tasks").iterdir(), *(tmp_path / "leased").iterdir()] == []
    async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
        with trio.fail_after(30):
            await trash.wait_empty()
    assert list((tmp_path / "trash").iterdir()) == []
    assert (tmp_path / "caches" / "kept").exists()
