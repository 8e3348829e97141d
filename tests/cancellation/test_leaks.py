"""The leak detector finds what it says that it finds, each kind by itself, and nothing where nothing was left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from worker.cgroups import PREFIX, open_homes
from worker.ports import Ports
from worker.testing.hostile import command
from worker.testing.leaks import Leaked, Watch, no_leaks
from worker.testing.trees import Arrivals, survivors, wait_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the detector reads /proc")

Leave = Callable[[Path], AbstractContextManager[str]]


@contextmanager
def a_child(folder: Path) -> Generator[str, None, None]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield f"process {child.pid}: sleep 1000"
        child.kill()


@contextmanager
def a_zombie(folder: Path) -> Generator[str, None, None]:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield f"process {child.pid}: was not reaped"


@contextmanager
def an_orphan_in_a_folder_of_ours(folder: Path) -> Generator[str, None, None]:
    script = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, check=True).stdout)
    yield f"process {pid}: "
    os.kill(pid, 9)


@contextmanager
def a_descriptor(folder: Path) -> Generator[str, None, None]:
    descriptor = os.open(folder, os.O_RDONLY)
    yield f"descriptor {descriptor}: {folder}"
    os.close(descriptor)


@contextmanager
def a_thread(folder: Path) -> Generator[str, None, None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="straggler")
    thread.start()
    yield "thread straggler"
    end.set()
    thread.join()


@contextmanager
def a_file(folder: Path) -> Generator[str, None, None]:
    (folder / "logs").mkdir()
    (folder / "logs" / "left.log").touch()
    yield f"file {folder}/logs/left.log"


@contextmanager
def a_folder(folder: Path) -> Generator[str, None, None]:
    (folder / "tasks" / "task").mkdir(parents=True)
    yield f"folder {folder}/tasks/task"


@contextmanager
def a_cgroup(folder: Path) -> Generator[str, None, None]:
    homes = open_homes()
    if homes is None:
        pytest.skip("no cgroup v2 that this user may divide")
    path = homes.unified / f"{PREFIX}{Ports().slug()}"
    path.mkdir()
    yield f"cgroup {path}"
    path.rmdir()


@contextmanager
def a_mount(folder: Path) -> Generator[str, None, None]:
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    yield f"mount {folder} (tmpfs)"
    subprocess.run(["umount", folder], check=True)


KINDS: list[Leave] = [
    a_child,
    a_zombie,
    an_orphan_in_a_folder_of_ours,
    a_descriptor,
    a_thread,
    a_file,
    a_folder,
    a_cgroup,
    a_mount,
]


@pytest.mark.parametrize("leave", KINDS, ids=lambda kind: kind.__name__)
async def test_each_kind_is_told(tmp_path: Path, leave: Leave) -> None:
    with ExitStack() as left:
        with pytest.raises(Leaked) as caught:
            async with no_leaks(tmp_path):
                told = left.enter_context(leave(tmp_path))
        assert any(line.startswith(told) for line in str(caught.value).splitlines()), (told, str(caught.value))


async def test_a_trio_task_is_told(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(Leaked, match=r"Trio task .*sleep_forever"):
            async with no_leaks(tmp_path):
                nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()


async def test_what_has_fled_is_known_by_its_mark(tmp_path: Path) -> None:
    mark = Ports().slug()
    with Arrivals(tmp_path / "ready") as arrivals:
        argv = command(mark, "orphan", "setsid", "env", "mute", "exit", ready=arrivals.path)
        with pytest.raises(Leaked, match=mark):
            async with no_leaks(marks=[mark]):
                await trio.run_process(argv, cwd="/")
    for process in survivors(mark):
        os.kill(process.pid, 9)
    await wait_gone(mark)


async def test_nothing_is_told_where_nothing_is_left(tmp_path: Path) -> None:
    async with no_leaks(tmp_path):
        await trio.run_process(["true"])
        await trio.to_thread.run_sync(os.getpid)
        (tmp_path / "file").touch()
        (tmp_path / "file").unlink()
        (tmp_path / "logs").mkdir()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
            nursery.start_soon(trio.lowlevel.checkpoint)


async def test_what_may_stay_is_not_told(tmp_path: Path) -> None:
    async with no_leaks(tmp_path, kept=["lock", "trash"]):
        (tmp_path / "lock").touch()
        (tmp_path / "trash" / "0").mkdir(parents=True)
        (tmp_path / "trash" / "0" / "file").touch()


async def test_what_is_only_named_alike_may_not_stay(tmp_path: Path) -> None:
    (tmp_path / "trash-2").mkdir()
    with pytest.raises(Leaked, match="trash-2/file"):
        await leave(tmp_path / "trash-2" / "file", tmp_path, kept="trash")


async def leave(path: Path, folder: Path, kept: str) -> None:
    async with no_leaks(folder, kept=[kept]):
        os.mkfifo(path)


async def test_other_workers_do_not_count_where_ours_has_a_mark(tmp_path: Path) -> None:
    with ExitStack() as others:
        async with no_leaks(tmp_path, marks=["ours"]):
            others.enter_context(a_cgroup(tmp_path))


async def fail_and_leave(path: Path) -> None:
    async with no_leaks(path.parent):
        os.mkfifo(path)
        raise RuntimeError("the block's own")


async def test_an_error_of_the_block_is_not_hidden_by_what_it_left(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        await fail_and_leave(tmp_path / "file")
    assert caught.value.__notes__ == [f"left: file {tmp_path}/file"]


@pytest.fixture
async def nothing_left(tmp_path: Path) -> AsyncIterator[Watch]:
    async with no_leaks(tmp_path) as watch:
        yield watch


async def test_it_serves_as_a_fixture(nothing_left: Watch, tmp_path: Path) -> None:
    nothing_left.marks.append(str(tmp_path))
    await trio.run_process(["true"], cwd=tmp_path)
