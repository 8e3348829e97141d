from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from process_world import ENV, KINDS, OWNER, living, opened, start

from worker import cgroups, proctree
from worker.cgroups import Limits
from worker.ports import Ports
from worker.process import NotContained, ProcessTree, SpawnFailed, open_containment, owner_of


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tree_that_obeys_is_gone_without_waiting_for_the_grace(kind: str) -> None:
    mark = Ports().slug()
    async with opened(kind) as containment:
        with trio.fail_after(30):
            async with containment.open_tree("obeys", grace=60) as tree:
                await start(tree, "sleep 1000 & echo ready; wait", mark)
                assert living(mark)
    assert living(mark) == []
    assert tree.ending.left >= 1
    assert tree.ending.strayed == 0
    assert tree.ending.killed == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tree_that_ignores_term_is_killed_after_the_grace(kind: str) -> None:
    mark = Ports().slug()
    async with opened(kind) as containment:
        async with containment.open_tree("ignores", grace=0.5) as tree:
            script = (
                "trap '' TERM; sh -c 'while :; do sleep 1000; done' \"$0\" & echo ready; while :; do sleep 1000; done"
            )
            await start(tree, script, mark)
            began = trio.current_time()
        assert trio.current_time() - began >= 0.5
    assert living(mark) == []
    assert tree.ending.killed >= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_hurry_cuts_the_grace_short(kind: str) -> None:
    hurry = trio.Event()
    async with opened(kind) as containment, trio.open_nursery() as nursery:
        with trio.fail_after(30):
            async with containment.open_tree("hurry", grace=1000, hurry=hurry) as tree:
                await start(tree, "trap '' TERM; echo ready; while :; do sleep 1000; done")
                hurry.set()
        nursery.cancel_scope.cancel()


ESCAPES = {
    "sets itself apart": "setsid {sleep} & echo ready",
    "forks twice": "(setsid sh -c '(setsid sh -c \"echo ready; exec {sleep}\" &)' &)",
    "ignores all": "(trap '' TERM HUP INT QUIT USR1; echo ready; setsid {sleep}) &",
    "clears its environment": "(setsid env -i /bin/sh -c '({sleep} &)'; echo ready)",
    "moves to another cgroup": "(for g in /sys/fs/cgroup /sys/fs/cgroup/*; do echo 0 > $g/cgroup.procs; done"
    " 2> /dev/null; (setsid env -i {sleep} &); echo ready)",
}


@pytest.mark.parametrize("how", ESCAPES)
@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_escapes(kind: str, how: str, tmp_path: Path) -> None:
    sleeper = tmp_path / (mark := Ports().slug())
    sleeper.write_text("#!/bin/sh\nwhile :; do sleep 1000; done\n")
    sleeper.chmod(0o700)
    # Its first shell has ended when the tree is, so that the rest are orphans.
    script = ESCAPES[how].format(sleep=sleeper)
    async with opened(kind) as containment:
        async with containment.open_tree("escapes", grace=0.3) as tree:
            await start(tree, script)
            await tree.leaders[0].wait()
        assert living(mark) == []
    assert tree.ending.left >= 1


@pytest.mark.parametrize("kind", ["cgroup and PID namespace", "cgroup and subreaper"])
async def test_who_left_the_cgroup_is_counted(kind: str) -> None:
    async with opened(kind) as containment, containment.open_tree("strays", grace=0.3) as tree:
        homes = containment.homes
        assert homes is not None
        await start(tree, f"echo 0 > {homes.unified}/cgroup.procs; echo ready; exec sleep 1000")
    assert tree.ending.strayed == 1


# Groups in one another, deeper than Python calls itself and than a path is long, and a process in the last of them.
DIG = """
import os, signal, sys
os.chdir(sys.argv[1])
for _ in range(1500):
    os.mkdir("deep")
    os.chdir("deep")
with open("cgroup.procs", "w") as file:
    file.write("0")
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("kind", ["cgroup and PID namespace", "cgroup and subreaper"])
async def test_groups_that_the_task_has_made_are_removed_however_deep(kind: str) -> None:
    mark = Ports().slug()
    async with opened(kind) as containment:
        async with containment.open_tree("digs", grace=0.3) as tree:
            (group,) = cgroups.leftovers(f"{cgroups.PREFIX}{tree.mark}")[:1]
            await start(tree, 'exec "$0" -c "$1" "$2" "$3"', sys.executable, DIG, str(group), mark)
        assert living(mark) == []
    assert cgroups.leftovers(cgroups.PREFIX + tree.mark) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_empty_tree_ends_at_once(kind: str) -> None:
    async with opened(kind) as containment:
        with trio.fail_after(30):
            async with containment.open_tree("empty", grace=60) as tree:
                pass
        assert tree.ending.left == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_end_is_not_cut_off_by_cancellation(kind: str) -> None:
    mark = Ports().slug()
    async with opened(kind) as containment:
        with trio.CancelScope() as scope:
            async with containment.open_tree("cancelled", grace=0.1) as tree:
                await start(tree, "echo ready; exec sleep 1000", mark)
                scope.cancel()
        assert living(mark) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_trees_side_by_side_end_alone(kind: str) -> None:
    one, other = Ports().slug(), Ports().slug()
    async with opened(kind) as containment, containment.open_tree("other", grace=0.3) as tree:
        await start(tree, '(setsid sh -c "sleep 1000; :" $0 &); echo ready', other)
        async with containment.open_tree("one", grace=0.3) as inner:
            await start(inner, '(setsid sh -c "sleep 1000; :" $0 &); echo ready', one)
        assert living(one) == []
        assert living(other)
    assert living(other) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_without_a_directory_cannot_be_started(kind: str) -> None:
    async with opened(kind) as containment, containment.open_tree("nowhere", grace=0.1) as tree:
        with pytest.raises(SpawnFailed, match="No such file or directory"):
            await tree.spawn(["true"], cwd=Path("/no/such"), env=ENV, output=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "env",
    [
        {"A": 'it\'s "all"\n$HOME `there`', "EMPTY": "", "ü": "ö"},
        {"odd-name": "1", "UID": "7", "IFS": "a", "SHELL": "/bin/sh"},
    ],
)
async def test_the_environment_arrives_whole_and_nothing_else(kind: str, env: dict[str, str]) -> None:
    async with opened(kind) as containment, containment.open_tree("environment", grace=0.1) as tree:
        reader, writer = os.pipe()
        process = await tree.spawn(
            [sys.executable, "-c", "import os; print(sorted(os.environb.items()))"],
            cwd=Path("/"),
            env=env,
            output=writer,
        )
        os.close(writer)
        async with trio.lowlevel.FdStream(reader) as output:
            said = b"".join([bytes(chunk) async for chunk in output])
        assert await process.wait() == 0, said
        expected = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        got = dict(ast.literal_eval(said.decode()))
        assert got.pop(b"TC_WORKER_TREE").decode() == tree.mark
        assert {name: value for name, value in got.items() if name != b"LC_CTYPE"} == expected  # Python's own (PEP 538)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_task_has_no_input_and_no_descriptors_but_its_output(kind: str) -> None:
    async with opened(kind) as containment, containment.open_tree("descriptors", grace=0.1) as tree:
        said = await start(tree, "cat; ls -m /proc/$$/fd")  # a pipeline's ends would be among them for a moment
    assert said == b"0, 1, 2\n"


async def test_libraries_that_a_task_names_are_loaded_in_its_tree_alone(tmp_path: Path) -> None:
    library, told = tmp_path / "spy.so", tmp_path / "told"
    source = tmp_path / "spy.c"
    source.write_text(
        "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void tell(void) {\n"
        f'  FILE *own = fopen("/proc/self/cgroup", "r"), *out = fopen("{told}", "a"); char line[4096];\n'
        "  while (own && fgets(line, sizeof line, own)) if (line[0] == '0') fprintf(out, \"%d %s\", getpid(), line);\n"
        "  fclose(out); }\n"
    )
    try:
        await trio.run_process(["cc", "-shared", "-fPIC", "-o", str(library), str(source)])
    except FileNotFoundError:
        pytest.skip("no C compiler")
    async with opened("cgroup and PID namespace") as containment, containment.open_tree("spy", grace=0.1) as tree:
        await start(tree, "echo ready", env={**ENV, "LD_PRELOAD": str(library)})
        await tree.leaders[0].wait()
        lines = told.read_text().splitlines()
        assert lines
        assert all(tree.mark in line for line in lines), lines


async def test_signals_to_its_own_process_group_do_not_reach_who_waits_for_a_command() -> None:
    async with opened("cgroup and PID namespace") as containment, containment.open_tree("group", grace=0.1) as tree:
        await start(tree, "trap '' TERM; kill 0; echo ready; exit 7")
        assert await tree.leaders[0].wait() == 7


def test_a_number_that_went_to_another_is_not_signalled() -> None:
    """It is looked at again when it is held, by when it was started."""
    with subprocess.Popen(["sleep", "60"]) as process:
        (held,) = proctree.identify(lambda: [process.pid])
        proctree.send([held._replace(started=held.started - 1)], signal.SIGKILL)
        assert process.poll() is None
        proctree.send([held], signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_number_that_went_to_another_between_two_looks_is_nobodys() -> None:
    looks = iter([[os.getpid()], []])
    assert proctree.identify(lambda: next(looks)) == set()


async def test_orphans_leave_no_zombies() -> None:
    async with opened("PID namespace") as containment, containment.open_tree("zombies", grace=0.1) as tree:
        said = await start(
            tree,
            "for i in 1 2 3; do (sh -c 'exit 0' & exec true); done;"
            " while ps -e -o stat= | grep -q Z; do :; done; echo none",
        )
    assert said == b"none\n"


async def test_when_the_worker_dies_its_trees_die(tmp_path: Path) -> None:
    mark = Ports().slug()
    script = (
        "import os, trio\n"
        "from pathlib import Path\n"
        "from worker.ports import Ports\n"
        "from worker.process import open_containment\n"
        "async def main():\n"
        "    async with open_containment(Ports(), 'dies') as containment, containment.open_tree('dies', 1) as tree:\n"
        "        loop = 'trap : TERM; echo ready; while :; do sleep 9; done'\n"
        f"        argv = ['sh', '-c', f'setsid sh -c \"{{loop}}\" {mark} & wait']\n"
        "        await tree.spawn(argv, cwd=Path('/'), env={'PATH': '/bin:/usr/bin'}, output=1)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    async with opened("PID namespace"):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
    assert process.stdout is not None
    async with process.stdout:
        with trio.fail_after(20):
            assert await process.stdout.receive_some() == b"ready\n"
            held = [os.pidfd_open(pid) for pid in living(mark)]
            assert held
            process.kill()
            await process.wait()
            for descriptor in held:
                await trio.lowlevel.wait_readable(descriptor)
                os.close(descriptor)
    assert living(mark) == []
    for group in cgroups.leftovers(f"{cgroups.PREFIX}dies-"):
        cgroups.remove(group)


@pytest.mark.parametrize("kind", ["cgroup and PID namespace", "cgroup and subreaper"])
async def test_what_was_used_is_counted_for_the_dead_too(kind: str, tmp_path: Path) -> None:
    async with opened(kind) as containment:
        async with containment.open_tree("computes", grace=0.1) as tree:
            script = "import time\nwhile time.process_time() < 0.2: pass\nlen(bytearray(50_000_000))"
            process = await tree.spawn([sys.executable, "-c", script], cwd=tmp_path, env=ENV, output=subprocess.DEVNULL)
            await process.wait()
        usage = tree.usage()
        assert usage is not None
        assert usage.user + usage.kernel >= 0.2
        if usage.peak_memory is not None:
            assert usage.peak_memory >= 50_000_000


async def test_no_cgroup_of_a_tree_is_left() -> None:
    async with opened("cgroup and PID namespace") as containment:
        async with containment.open_tree("traces", grace=0.1) as tree:
            await start(tree, "echo ready; exec sleep 1000")
            assert cgroups.leftovers(cgroups.PREFIX + tree.mark)
        assert cgroups.leftovers(cgroups.PREFIX + tree.mark) == []


async def limited(limits: Limits, script: str) -> tuple[ProcessTree, int, str]:
    async with opened("cgroup and PID namespace") as containment:
        if lacking := containment.lacking(limits):
            pytest.skip(f"no cgroup controller {lacking}")
        reader, writer = os.pipe()
        async with containment.open_tree("limited", grace=0.1, limits=limits) as tree:
            process = await tree.spawn([sys.executable, "-c", script], cwd=Path("/"), env=ENV, output=writer)
            os.close(writer)
            code = await process.wait()
        async with trio.lowlevel.FdStream(reader) as output:
            said = b"".join([bytes(chunk) async for chunk in output]).decode()
        return tree, code, said


async def test_too_much_memory_is_refused_and_named() -> None:
    tree, code, _ = await limited(Limits(memory=64 * 2**20), "len(bytearray(200_000_000))")
    assert code == -signal.SIGKILL
    told = tree.out_of_memory()
    assert told is not None
    assert "limit of 64 MiB" in told
    assert "peak was 6" in told


async def test_enough_memory_is_no_matter() -> None:
    tree, code, _ = await limited(Limits(memory=512 * 2**20), "len(bytearray(20_000_000))")
    assert code == 0
    assert tree.out_of_memory() is None


async def test_too_many_processes_are_refused() -> None:
    script = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 100:\n"
        "        if os.fork() == 0: time.sleep(1000)\n"
        "        made += 1\n"
        "except OSError: print(made, flush=True)\n"
        "os._exit(0)\n"
    )
    _, _, said = await limited(Limits(processes=10), script)
    assert said == "9\n"


async def test_processors_are_shared_out() -> None:
    script = (
        "import time\nbegun, used = time.monotonic(), time.process_time()\n"
        "while time.process_time() - used < 0.2: pass\nprint(time.monotonic() - begun)"
    )
    _, _, said = await limited(Limits(cpus=0.25), script)
    assert float(said) >= 0.5


def test_the_owner_of_a_directory_is_the_same_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    assert owner_of(tmp_path) == owner_of(tmp_path / "link" / ".") != owner_of(tmp_path / "other")


async def test_limits_that_cannot_be_kept_are_named() -> None:
    async with open_containment(Ports(), OWNER, use_cgroups=False) as containment:
        assert containment.lacking(Limits(memory=1, cpus=1)) == ["memory", "cpu"]


async def test_a_tree_that_cannot_be_held_is_not_begun() -> None:
    async with opened("cgroup and PID namespace") as containment:
        with pytest.raises(NotContained, match="No such file or directory"):
            async with containment.open_tree("no/such", grace=1):
                pytest.fail("it was begun")
