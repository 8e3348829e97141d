"""Containment of every kind, and trees to hold, for tests."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from worker import proctree
from worker.ports import Ports
from worker.process import Containment, ProcessTree, open_containment
from worker.testing.hostile import freezer

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
KINDS = ["cgroup and PID namespace", "cgroup and subreaper", "PID namespace", "subreaper"]
OWNER = "test"


@asynccontextmanager
async def opened(kind: str, ports: Ports | None = None) -> AsyncGenerator[Containment, None]:
    """Containment of that kind; the test is skipped where the machine does not permit it."""
    async with open_containment(
        ports or Ports(), OWNER, use_cgroups="cgroup" in kind, use_namespaces="namespace" in kind
    ) as containment:
        if containment.kind != kind:
            pytest.skip(f"this machine gives but a {containment.kind}")
        yield containment


async def start(tree: ProcessTree, script: str, *arguments: str, env: dict[str, str] = ENV) -> bytes:
    """Start a shell in the tree; its first output."""
    reader, writer = os.pipe()
    try:
        await tree.spawn(["sh", "-c", script, *arguments], cwd=Path("/"), env=env, output=writer)
    finally:
        os.close(writer)
    async with trio.lowlevel.FdStream(reader) as output:
        with trio.fail_after(10):
            return bytes(await output.receive_some())


def living(mark: str) -> list[int]:
    """The living that have `mark` in their command lines."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if mark.encode() in words and pid != os.getpid() and proctree.is_alive(pid):
                found.append(pid)
    return found


@contextmanager
def cold_group() -> Iterator[Path]:
    """A group of the v1 freezer, for a task to be frozen in; the test is skipped where there is none to be had."""
    if (place := freezer()) is None:
        pytest.skip("no freezer of v1 that this process may write")
    group = Path(place) / f"test-{Ports().slug()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()
