"""Cgroups of both versions, on plain folders in their place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.cgroups import Cgroup, Home, Homes, Limits, Usage, hasten_moves, open_homes, own_groups, settings

ALL = Limits(memory=2**20, processes=10, cpus=1.5)


def make(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def machine(folder: Path, groups: str, **mounts: str) -> Path:
    """What /proc has of a worker in `groups`; `mounts` has the type and the options of each, by name."""
    lines = [
        f"1 1 0:1 / {folder / name} rw - {kind} cgroup {options}"
        for name, (kind, options) in ((name, mount.split()) for name, mount in mounts.items())
    ]
    return make(folder / "proc", {"cgroup": groups, "mountinfo": "\n".join(lines)})


def unified(folder: Path, procs: str, *, given: str = "", kind: str = "domain\n") -> Path:
    """A worker's group of v2, with `procs` in it, and controllers that are `given` to those below."""
    controllers = "cpuset cpu io memory hugetlb pids\n"
    files = {"cgroup.controllers": controllers, "cgroup.subtree_control": given, "cgroup.procs": procs}
    return make(folder / "unified/service", files | ({"cgroup.type": kind} if kind else {}))


def test_the_worker_moves_below_its_group_to_hand_out_what_it_gives(tmp_path: Path) -> None:
    group = unified(tmp_path, f"{os.getpid()}\n")
    open_homes(machine(tmp_path, "0::/service\n", unified="cgroup2 rw"))
    assert (group / "tc-worker/cgroup.procs").read_text() == "0"
    assert {*(group / "cgroup.subtree_control").read_text().split()} == {"+memory", "+pids", "+cpu", "+io"}


def test_it_does_not_move_where_others_are_in_its_group(tmp_path: Path) -> None:
    group = unified(tmp_path, f"1\n{os.getpid()}\n")
    open_homes(machine(tmp_path, "0::/service\n", unified="cgroup2 rw"))
    assert not (group / "tc-worker").exists()


def test_it_need_not_move_in_the_root(tmp_path: Path) -> None:
    group = unified(tmp_path, f"{os.getpid()}\n", kind="")
    open_homes(machine(tmp_path, "0::/service\n", unified="cgroup2 rw"))
    assert not (group / "tc-worker").exists()
    assert "+memory" in (group / "cgroup.subtree_control").read_text()


@pytest.mark.parametrize("own", ["/service", "/service/tc-worker"])
def test_what_was_handed_out_is_to_be_had(tmp_path: Path, own: str) -> None:
    group = unified(tmp_path, "", given="cpu io memory pids")
    make(group / "tc-worker", {"cgroup.procs": f"{os.getpid()}\n"})
    homes = open_homes(machine(tmp_path, f"0::{own}\n", unified="cgroup2 rw"))
    assert homes == Homes(group, dict.fromkeys(("memory", "pids", "cpu", "io"), Home(group, unified=True)))
    assert homes.lacking(ALL) == []


def test_what_v1_has_is_taken_from_there(tmp_path: Path) -> None:
    group = unified(tmp_path, "", given="pids", kind="")
    (group / "cgroup.controllers").write_text("pids\n")
    memory = make(tmp_path / "memory/own", {"cgroup.procs": ""})
    disk = make(tmp_path / "blkio", {"cgroup.procs": ""})
    groups = "3:blkio:/\n2:memory:/own\n1:name=systemd:/\n0::/service\n"
    proc = machine(tmp_path, groups, unified="cgroup2 rw", memory="cgroup rw,memory", blkio="cgroup rw,blkio")
    homes = open_homes(proc)
    assert homes is not None
    assert homes.controllers == {
        "memory": Home(memory, unified=False),
        "io": Home(disk, unified=False),
        "pids": Home(group, unified=True),
    }
    assert homes.lacking(ALL) == ["cpu"]
    assert own_groups(proc) == {"memory": memory, "io": disk, "": group}


def test_without_v2_there_are_no_homes(tmp_path: Path) -> None:
    make(tmp_path / "memory", {"cgroup.procs": ""})
    assert open_homes(machine(tmp_path, "2:memory:/\n0::/\n", memory="cgroup rw,memory")) is None
    assert open_homes(tmp_path / "nowhere") is None


def in_v2(folder: Path, limits: Limits) -> tuple[Cgroup, Path]:
    homes = Homes(folder, {name: Home(folder, unified=True) for name in ("memory", "pids", "cpu", "io")})
    return Cgroup(homes, "tree", limits), folder / "tree"


def test_limits_of_v2(tmp_path: Path) -> None:
    _, group = in_v2(tmp_path, ALL)
    assert {file.name: file.read_text() for file in group.iterdir()} == {
        "memory.max": "1048576",
        "pids.max": "10",
        "cpu.max": "150000 100000",
    }


def test_no_limits_are_no_settings(tmp_path: Path) -> None:
    _, group = in_v2(tmp_path, Limits())
    assert [*group.iterdir()] == []


@pytest.mark.parametrize(
    ("of_v2", "file", "value"), [(True, "memory.swap.max", "0"), (False, "memory.memsw.limit_in_bytes", "1048576")]
)
def test_swap_is_no_way_around_the_limit(tmp_path: Path, of_v2: bool, file: str, value: str) -> None:
    place = Home(make(tmp_path, {file: "max"}), of_v2)
    assert [*settings({"memory": place}, Limits(memory=2**20))][1:] == [(tmp_path / file, value)]


def test_use_by_v2(tmp_path: Path) -> None:
    group, folder = in_v2(tmp_path, ALL)
    make(folder, {"cpu.stat": "usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnr_periods 0\n"})
    make(folder, {"io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n9:0 \n"})
    assert group.usage() == Usage(2.5, 1.0, None, 11, 22)  # memory.peak is there since Linux 5.19
    make(folder, {"memory.peak": "4096\n"})
    assert group.usage() == Usage(2.5, 1.0, 4096, 11, 22)


EVENTS = "low 0\nhigh 0\nmax 7\noom {0}\noom_kill {0}\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("limits", "kills", "told"),
    [
        (ALL, 0, None),
        (ALL, 1, "a process of the task, which reached its limit of 1 MiB; its peak was 4 KiB"),
        (
            Limits(),
            2,
            "2 processes of the task, which reached the machine's memory; its peak was 4 KiB",
        ),
    ],
)
def test_out_of_memory_by_v2(tmp_path: Path, limits: Limits, kills: int, told: str | None) -> None:
    group, folder = in_v2(tmp_path, limits)
    make(folder, {"memory.events": EVENTS.format(kills), "memory.peak": "4096\n"})
    assert group.out_of_memory() == (None if told is None else f"out of memory: the kernel killed {told}")


def test_who_has_removed_the_group_is_told_by_an_error_and_is_no_member(tmp_path: Path) -> None:
    group, folder = in_v2(tmp_path, Limits())
    folder.rmdir()
    for ask in (group.usage, group.out_of_memory):
        with pytest.raises(FileNotFoundError):
            ask()
    group.kill()
    assert group.members() == set()
    group.remove()


def test_members_of_groups_below_are_members(tmp_path: Path) -> None:
    group, folder = in_v2(tmp_path, Limits())
    make(folder, {"cgroup.procs": "1\n2\n"})
    make(folder / "below/it", {"cgroup.procs": "3\n"})
    assert group.members() == {1, 2, 3}


def test_a_group_that_cannot_be_limited_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    homes = Homes(tmp_path, {"memory": Home(tmp_path / "other", unified=True), "pids": Home(tmp_path / "no", True)})
    with pytest.raises(FileNotFoundError):
        Cgroup(homes, "tree", ALL)
    assert not (tmp_path / "tree").exists()
    assert not (tmp_path / "other/tree").exists()


def test_what_hastens_moves_keeps_the_other_options(tmp_path: Path) -> None:
    own = machine(tmp_path, "0::/\n", memory="cgroup rw,memory", unified="cgroup2 rw,nsdelegate")
    assert hasten_moves(own) == f"mount -o remount,rw,nsdelegate,favordynmods {tmp_path}/unified"


def test_nothing_is_to_be_hastened_where_nobody_waits(tmp_path: Path) -> None:
    assert hasten_moves(machine(tmp_path, "0::/\n", unified="cgroup2 rw,favordynmods")) is None
    assert hasten_moves(machine(tmp_path / "v1", "1:memory:/\n", memory="cgroup rw,memory")) is None
    assert hasten_moves(tmp_path / "elsewhere") is None
