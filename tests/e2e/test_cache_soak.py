"""Many tasks with caches through whole workers: the disk has afterwards what it had after the first of them."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from worker.testing.realworker import real_worker
from worker.testing.world import World, open_world

CAPACITY = 8
NAMES = ("npm", "checkouts", "a name / with ü")
FIRST = 200
CREATORS = 4
FILES = {"a": 10_000, "folder/b": 2_000, "folder/c": 0}  # bytes, in a cache that was made anew
CACHE = re.compile(r"caches/[0-9]+(/|$)")
LIMIT = 1800  # seconds


@dataclass(frozen=True)
class Disk:
    """What is below a folder: files and folders with their bytes (0 for folders), and how many caches of each name."""

    sizes: dict[str, int]
    caches: Counter[str]

    @property
    def others(self) -> set[str]:
        """What is in no cache."""
        return {path for path in self.sizes if not CACHE.match(path)}

    @property
    def of_a_cache(self) -> tuple[float, float]:
        """How many files and folders, and bytes, a cache has on the average."""
        inside = [size for path, size in self.sizes.items() if CACHE.match(path)]
        return len(inside) / self.caches.total(), sum(inside) / self.caches.total()


def disk_of(work: Path) -> Disk:
    paths = [Path(folder) / name for folder, folders, files in os.walk(work) for name in [*folders, *files]]
    metas = [json.loads(path.read_text()) for path in (work / "caches").glob("*/meta.json")]
    return Disk(
        sizes={str(path.relative_to(work)): 0 if path.is_dir() else path.stat().st_size for path in paths},
        caches=Counter(meta["name"] for meta in metas),
    )


def packed() -> str:
    packing = io.BytesIO()
    with tarfile.open(fileobj=packing, mode="w:gz") as archive:
        for name, size in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, io.BytesIO(bytes(size)))
    return base64.b64encode(packing.getvalue()).decode()


def payloads(runs: int) -> Iterator[dict[str, Any]]:
    """One to all of the caches, and a file; every fiftieth or so has its caches thrown away."""
    randomness = random.Random(runs)
    content = {"content": {"base64": packed()}, "format": "tar.gz"}
    for number in range(runs):
        names = randomness.sample(NAMES, randomness.randint(1, len(NAMES)))
        caches = [{"cacheName": name, "directory": f"cache{place}", **content} for place, name in enumerate(names)]
        purge = {"onExitStatus": {"purgeCaches": [0]}} if randomness.random() < 0.02 else {}
        # The engine mounts nothing; a cache that is not in its place at the end would not be kept.
        files = {f"{cache['directory']}/a": "" for cache in caches}
        file = {"file": "number", "content": {"raw": str(number)}}
        yield {"maxRunTime": 600, "mounts": [*caches, file], "mock": {"files": files}, **purge}


async def run_all(world: World, folder: Path, runs: int) -> Disk:
    """Have a worker of its own complete so many tasks, and look at what is there when it has ended."""
    ids: list[str] = []
    todo = payloads(runs)

    async def create() -> None:
        scopes = ["generic-worker:cache:*"]
        ids.extend([await world.create(payload, scopes=scopes) for payload in todo])

    parts = {"engine": "mock"}
    async with real_worker(world, folder, parts=parts, capacity=CAPACITY, numberOfTasks=runs) as worker:
        async with trio.open_nursery() as creators:
            for _ in range(CREATORS):
                creators.start_soon(create)
        assert await worker.end() == 0
    statuses = [found.status for found in await world.queue.statuses(ids)]
    assert Counter((status.state, len(status.runs)) for status in statuses) == {("completed", 1): runs}
    return disk_of(folder / "work")


@pytest.mark.parametrize("runs", [200, pytest.param(10_000, marks=pytest.mark.full)])
async def test_runs_with_caches_leave_nothing_but_the_caches(tmp_path: Path, runs: int) -> None:
    with trio.fail_after(LIMIT):
        async with open_world(tmp_path) as world:
            before = await run_all(world, tmp_path, FIRST)
            begun = trio.current_time()
            after = await run_all(world, tmp_path, runs)
            took = trio.current_time() - begun
    # For bench/results; pytest shows it with -rP.
    print(f"{runs} runs in {took:.0f} s, {runs / took:.0f} a second")
    for when, disk in (("before", before), ("after", after)):
        size = sum(disk.sizes.values())
        print(f"{when}: {len(disk.sizes)} files and folders, {size} bytes, caches {dict(disk.caches)}")
        assert disk.caches.keys() <= set(NAMES)
        assert max(disk.caches.values()) <= CAPACITY
    assert not [path for path in after.others if path.startswith(("leased/", "mounts/", "tasks/", "trash/"))]
    # By `boot` a worker notes that it has found caches in order.
    assert after.others <= before.others | {"caches/boot"}
    # Each cache is as large as it was. So more files can only be more caches, and of these there are enough at most.
    assert after.of_a_cache == pytest.approx(before.of_a_cache, rel=0.001)
