from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from worker.ports import Ports
from worker.process import (
    CgroupGroup,
    Group,
    ProcessTree,
    SessionGroup,
    SpawnFailed,
    cgroup_home,
    containment,
    open_tree,
)

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
GROUPS = ["session", *(["cgroup"] if containment() == "cgroup" else [])]


def make_group(kind: str) -> Group:
    home = cgroup_home()
    if kind == "session" or home is None:
        return SessionGroup()
    return CgroupGroup(home / f"tc-worker-test-{Ports().slug()}")


async def start(tree: ProcessTree, script: str) -> bytes:
    """Start a shell in the tree; its first output."""
    process = await tree.spawn(
        ["sh", "-c", script], cwd=Path("/"), env=ENV, stdin=subprocess.DEVNULL, output=subprocess.PIPE
    )
    assert process.stdout is not None
    with trio.fail_after(10):
        return bytes(await process.stdout.receive_some())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", GROUPS)
async def test_a_tree_that_obeys_is_gone_without_waiting_for_the_grace(kind: str) -> None:
    tree = ProcessTree(make_group(kind))
    pids = await start(tree, "sleep 1000 & echo $$ $!; wait")
    with trio.fail_after(30):
        await tree.end(Ports(), grace=60)
    assert not any(alive(int(pid)) for pid in pids.split())


@pytest.mark.parametrize("kind", GROUPS)
async def test_a_tree_that_ignores_term_is_killed_after_the_grace(kind: str) -> None:
    tree = ProcessTree(make_group(kind))
    pids = await start(
        tree, "trap '' TERM; sh -c 'while :; do sleep 1000; done' & echo $$ $!; while :; do sleep 1000; done"
    )
    began = trio.current_time()
    await tree.end(Ports(), grace=0.5)
    assert trio.current_time() - began >= 0.5
    assert not any(alive(int(pid)) for pid in pids.split())


@pytest.mark.skipif("cgroup" not in GROUPS, reason="no cgroup v2 that the worker may divide")
async def test_what_leaves_its_session_and_its_parent_does_not_leave_its_cgroup() -> None:
    tree = ProcessTree(make_group("cgroup"))
    pid = int(
        await start(tree, 'setsid sh -c \'(trap "" TERM; setsid sh -c "echo \\$\\$; exec sleep 1000" &)\'; sleep 1000')
    )
    await tree.end(Ports(), grace=0.1)
    assert not alive(pid)


async def test_an_empty_tree_ends_at_once() -> None:
    async with open_tree(Ports(), Ports().slug(), grace=60):
        pass


async def test_the_end_is_not_cut_off_by_cancellation() -> None:
    with trio.CancelScope() as scope:
        async with open_tree(Ports(), Ports().slug(), grace=0.1) as tree:
            pid = int(await start(tree, "echo $$; exec sleep 1000"))
            scope.cancel()
    assert not alive(pid)


async def test_a_command_without_a_directory_cannot_be_started() -> None:
    async with open_tree(Ports(), Ports().slug(), grace=0.1) as tree:
        with pytest.raises(SpawnFailed, match="No such file or directory"):
            await tree.spawn(["true"], cwd=Path("/no/such"), env=ENV, stdin=subprocess.DEVNULL, output=subprocess.PIPE)


@pytest.mark.skipif("cgroup" not in GROUPS, reason="no cgroup v2 that the worker may divide")
async def test_computing_is_counted_for_the_dead_too() -> None:
    async with open_tree(Ports(), Ports().slug(), grace=0.1) as tree:
        script = "import time\nwhile time.process_time() < 0.2: pass"
        process = await tree.spawn(
            [sys.executable, "-c", script], cwd=Path("/"), env=ENV, stdin=subprocess.DEVNULL, output=subprocess.PIPE
        )
        await process.wait()
        computed = tree.group.cpu_time()
        assert computed is not None
        assert computed.user + computed.kernel >= 0.2


async def test_nothing_of_a_tree_is_left_among_the_cgroups() -> None:
    async with open_tree(Ports(), name := Ports().slug(), grace=0.1) as tree:
        await start(tree, "echo x; exec sleep 1000")
    home = cgroup_home()
    assert home is None or list(home.glob(f"tc-worker-{name}*")) == []


class Unsettled(SessionGroup):
    """A group whose members cannot be listed at first, as when descriptors run out."""

    failures = 1

    def members(self) -> list[int]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().members()


async def test_what_hinders_the_request_to_end_does_not_hinder_the_killing() -> None:
    tree = ProcessTree(Unsettled())
    pid = int(await start(tree, "echo $$; exec sleep 1000"))
    await tree.end(Ports(), grace=60)
    assert not alive(pid)
