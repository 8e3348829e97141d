"""Process trees that end amid others, amid faults, and in spite of what they do."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from process_world import ENV, KINDS, OWNER, cold_group, living, opened, start

from worker import cgroups, proctree
from worker.orphans import MARK
from worker.ports import Ports
from worker.process import KILL_LIMIT, Containment, Ending, ProcessTree

T = TypeVar("T")

SUBREAPERS = ["cgroup and subreaper", "subreaper"]
SYS_EXIT = {"x86_64": 60, "aarch64": 93}.get(platform.machine())


async def run_commands(tree: ProcessTree, ended: trio.Event) -> set[int]:
    """One after the other, until the event; how they ended."""
    codes = set()
    while not ended.is_set():
        process = await tree.spawn(["sh", "-c", "true"], cwd=Path("/"), env=ENV, output=subprocess.DEVNULL)
        codes.add(await process.wait())
    return codes


@pytest.mark.parametrize("kind", SUBREAPERS)
async def test_commands_that_start_while_other_trees_end_are_left_alone(kind: str) -> None:
    ended = trio.Event()

    async def open_and_end(containment: Containment) -> None:
        for _ in range(30):
            async with containment.open_tree("one", grace=0.1) as tree:
                await start(tree, "(trap '' TERM; setsid sleep 1000 & :); echo ready")
        ended.set()

    async with opened(kind) as containment, containment.open_tree("other", grace=0.1) as tree:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_and_end, containment)
                assert await run_commands(tree, ended) == {0}


@pytest.mark.parametrize("kind", SUBREAPERS)
async def test_orphans_that_execute_programs_while_other_trees_end_are_left_alone(kind: str) -> None:
    # Each of them says so in the end.
    script = 'for i in $(seq 300); do (setsid sh -c \'exec sh -c "exec sh -c \\"exec echo here\\""\' &); done; echo all'
    with trio.fail_after(60):
        async with opened(kind) as containment, containment.open_tree("other", grace=0.1) as tree:
            reader, writer = os.pipe()
            # It waits for the orphans, since they hold the pipe; the trees come and go meanwhile.
            process = await tree.spawn(["sh", "-c", script], cwd=Path("/"), env=ENV, output=writer)
            os.close(writer)
            async with trio.lowlevel.FdStream(reader) as output, trio.open_nursery() as nursery:
                nursery.start_soon(_open_and_end_for_good, containment)
                said = b"".join([bytes(chunk) async for chunk in output])
                nursery.cancel_scope.cancel()
            assert await process.wait() == 0
    assert said.split().count(b"here") == 300


async def _open_and_end_for_good(containment: Containment) -> None:
    while True:
        async with containment.open_tree("one", grace=0.1):
            await trio.lowlevel.checkpoint()


class FailingPorts(Ports):
    """Calls fail whose numbers are in `failing`, counted from when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[int] = set()
        self._calls = 0

    def fail(self, *calls: int) -> None:
        self.failing, self._calls = {*calls}, 0

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        self._calls += 1
        if self._calls in self.failing:
            raise OSError(errno.EMFILE, "Too many open files")
        return await super().run_sync(function, *args)


@pytest.mark.parametrize("calls", [(1,), (2,), (3, 4), (1, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_hinders_the_request_or_the_killing_leaves_nobody_alive(kind: str, calls: tuple[int, ...]) -> None:
    mark, ports = Ports().slug(), FailingPorts()
    async with opened(kind, ports) as containment:
        async with containment.open_tree("hindered", grace=0.2) as tree:
            await start(tree, "trap '' TERM; echo ready; while :; do sleep 1000; done", mark)
            ports.fail(*calls)
        assert living(mark) == []
        # Nor does it stand in the way of the next one.
        async with containment.open_tree("next", grace=10) as tree:
            await start(tree, "echo ready; exec sleep 1000")
        assert tree.ending == Ending(left=tree.ending.left)


async def test_where_only_process_groups_are_to_be_had_they_are_ended() -> None:
    mark = Ports().slug()
    containment = Containment(Ports(), OWNER, None, namespaces=False, is_told=False)
    assert containment.kind == "process group"
    async with containment.open_tree("obeys", grace=60) as tree:
        await start(tree, "sleep 1000 & echo ready; wait", mark)
    assert tree.ending == Ending(left=1)
    async with containment.open_tree("ignores", grace=0.1) as tree:
        await start(tree, "trap '' TERM; (while :; do sleep 9; done) & echo ready; while :; do sleep 9; done", mark)
        held = [os.pidfd_open(pid) for pid in living(mark)]
        assert len(held) >= 2
    assert tree.ending == Ending(left=1, killed=1)
    with trio.fail_after(10):
        for descriptor in held:
            await trio.lowlevel.wait_readable(descriptor)
            os.close(descriptor)


# Arguments: the kind, and how many children, none of which obeys TERM before it is there.
MANY = """
import resource, subprocess, sys, trio
from pathlib import Path
from worker.ports import Ports
from worker.process import open_containment
async def main(kind, number):
    groups, namespaces = "cgroup" in kind, "namespace" in kind
    async with open_containment(Ports(), "test", use_cgroups=groups, use_namespaces=namespaces) as containment:
        async with containment.open_tree("many", grace=60) as tree:
            script = f"for i in $(seq {number}); do sleep 1000 & done; echo ready; wait"
            process = await tree.spawn(["sh", "-c", script], cwd=Path("/"), env={"PATH": "/bin:/usr/bin"}, output=1)
            sys.stdin.readline()
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    print(tree.ending.left > number, tree.ending.killed)
trio.run(main, sys.argv[1], int(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tree_of_more_processes_than_the_worker_may_have_descriptors_is_asked_to_end(kind: str) -> None:
    async with opened(kind):
        pass
    argv = [sys.executable, "-c", MANY, kind, "200"]
    process = await trio.lowlevel.open_process(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        with trio.fail_after(60):
            assert await process.stdout.receive_some() == b"ready\n"
            await process.stdin.send_all(b"go on\n")
            assert b"".join([bytes(chunk) async for chunk in process.stdout]) == b"True 0\n"
            assert await process.wait() == 0


FORKS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        signal.pause()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    if os.fork() == 0:
        time.sleep(0.1)
        os._exit(0)
    time.sleep(0.005)
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_large_tree_that_forks_does_not_delay_its_end(kind: str) -> None:
    async with opened(kind) as containment:
        async with containment.open_tree("forks", grace=0.5) as tree:
            await start(tree, 'exec "$0" -c "$1" 400', sys.executable, FORKS)
            begun = trio.current_time()
        assert trio.current_time() - begun < 0.5 + KILL_LIMIT
    assert tree.ending.killed >= 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["cgroup.procs", "tasks"])
async def test_who_is_frozen_dies_too(kind: str, file: str) -> None:
    # A process, or its second thread alone.
    script = (
        "import sys, threading\n"
        "def move():\n"
        "    with open(sys.argv[1], 'w') as file: file.write('0')\n"
        "    print('ready', flush=True)\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=move).start()\n"
    )
    with cold_group() as cold:
        async with opened(kind) as containment, containment.open_tree("frozen", grace=0.1) as tree:
            await start(tree, 'exec "$0" -c "$@"', sys.executable, script, str(cold / file))
            (cold / "freezer.state").write_text("FROZEN")
            begun = trio.current_time()
        assert trio.current_time() - begun < KILL_LIMIT
    assert tree.ending.killed >= 1


@pytest.mark.parametrize("kind", ["cgroup and PID namespace", "cgroup and subreaper"])
async def test_a_tree_that_removes_its_own_group_ends_all_the_same(kind: str) -> None:
    async with opened(kind) as containment:
        async with containment.open_tree("removes", grace=0.1) as tree:
            groups = cgroups.leftovers(cgroups.PREFIX + tree.mark)
            before = tree.usage()
            assert groups
            assert before is not None
            script = (
                'for group; do while read pid; do echo $pid > "$group/../cgroup.procs"; done < "$group/cgroup.procs";'
                ' until rmdir "$group"; do :; done; done 2> /dev/null; echo ready; exec sleep 1000'
            )
            await start(tree, script, "sh", *map(str, groups))
            assert cgroups.leftovers(cgroups.PREFIX + tree.mark) == []
            assert tree.usage() == before
            assert tree.out_of_memory() is None
        assert tree.usage() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["NAME", "odd-name"])  # the second takes another launcher
async def test_the_kernel_is_to_take_a_task_before_the_worker(kind: str, name: str) -> None:
    own = int((await trio.run_process(["cat", "/proc/self/oom_score_adj"], capture_stdout=True)).stdout)
    async with opened(kind) as containment, containment.open_tree("greedy", grace=0.1) as tree:
        said = await start(tree, "cat /proc/self/oom_score_adj", env={**ENV, name: ""})
    assert int(said) == min(1000, own + 500)


def test_the_mark_of_a_process_is_read_though_its_first_thread_has_ended() -> None:
    script = (
        "import ctypes, threading\n"
        "def say():\n"
        "    first.join(0.01)\n"
        "    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z': pass\n"
        "    print('ready', flush=True)\n"
        "    threading.Event().wait()\n"
        "first = threading.current_thread()\n"
        "threading.Thread(target=say).start()\n"
        f"ctypes.CDLL(None).syscall({SYS_EXIT}, 0)\n"
    )
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**ENV, MARK: "of-this-test"}) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        mark = proctree.environment_value(process.pid, MARK)
        process.kill()
    assert (said, mark) == (b"ready\n", "of-this-test")
