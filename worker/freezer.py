"""The freezer of cgroup v1: who is frozen there does not die of KILL before he is thawed; who is by v2 does.

Source: the kernel's documentation, admin-guide/cgroup-v1/freezer-subsystem.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from worker import cgroups, proctree
from worker.proctree import Identity


def own_freezer() -> Path | None:
    """The worker's own group in the freezer's hierarchy; None where it may not move processes to it."""
    return cgroups.own_groups().get("freezer")


def thaw(freezer: Path | None, processes: Iterable[Identity]) -> None:
    """Move `processes` to the group `freezer`, the worker's own, which is not frozen since the worker runs.

    So that nobody else is thawed who is in their groups.
    """
    if freezer is None:
        return
    own = _frozen_as(Path("/proc/self"))
    for process in processes:
        # Threads may be in groups of their own.
        if any(_frozen_as(thread) not in ("", own) for thread in proctree.threads(process.pid)):
            with suppress(OSError):
                if proctree.is_alive(*process):
                    (freezer / "cgroup.procs").write_text(str(process.pid))


def _frozen_as(process: Path) -> str:
    with suppress(OSError):
        lines = (process / "cgroup").read_text().splitlines()
        return next((line for line in lines if "freezer" in line.split(":")[1].split(",")), "")
    return ""
