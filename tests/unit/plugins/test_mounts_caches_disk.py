"""Caches on a disk that is really small: a tmpfs of 16 MiB."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from caches_world import mounted_disk

from plugins.mounts.caches import Caches, open_caches
from worker.disk import Disk, look
from worker.services import Services
from worker.testing.runs import open_services

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk") as folder:
        yield folder


@asynccontextmanager
async def opened(folder: Path, space: int, inodes: int = 0) -> AsyncGenerator[tuple[Caches, Services], None]:
    with trio.fail_after(60):
        async with open_services(folder, capacity=2) as services:
            disk = Disk(services.ports, services.work_dir, services.trash, space, inodes)
            services = replace(services, disk=disk)
            async with open_caches(services) as caches:
                yield caches, services


async def fill(caches: Caches, name: str, *, files: int = 1, size: int = 0) -> None:
    async with caches.lease(name) as lease:
        for number in range(files):
            (lease.path / str(number)).write_bytes(b"x" * size)
        lease.keep = True


async def names(caches: Caches) -> list[str]:
    return sorted(item.name for item in await caches.unused())


async def test_room_is_made_by_caches_as_many_as_it_takes(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(small_disk, space=8 * MIB) as (caches, services):
        for name in ("a", "b", "c"):
            await fill(caches, name, size=4 * MIB)
        await fill(caches, "a")
        assert look(services.work_dir).free < 8 * MIB
        assert await services.disk.make_room() is None
        assert look(services.work_dir).free >= 8 * MIB
        assert await names(caches) == ["cache a", "cache c"]
        assert "MiB are free in workDir, and minimumDiskSpace is 8 MiB; removed what was used least" in caplog.text


async def test_what_is_in_use_stays_whatever_is_lacking(small_disk: Path) -> None:
    async with opened(small_disk, space=14 * MIB) as (caches, services):
        await fill(caches, "a", size=4 * MIB)
        await fill(caches, "b", size=4 * MIB)
        async with caches.lease("a") as lease:
            assert "and minimumDiskSpace is 14 MiB" in str(await services.disk.make_room())
            assert await names(caches) == []
            assert (lease.path / "0").stat().st_size == 4 * MIB
            lease.keep = True
        assert await services.disk.make_room() is None


async def test_many_small_files_take_room_too(small_disk: Path) -> None:
    async with opened(small_disk, space=0, inodes=500) as (caches, services):
        await fill(caches, "a", files=300)
        await fill(caches, "b", files=300)
        assert await services.disk.make_room() is None
        assert await names(caches) == ["cache b"]
        assert (look(services.work_dir).inodes or 0) >= 500


async def test_the_trash_that_holds_the_room_is_waited_for(small_disk: Path) -> None:
    async with opened(small_disk, space=8 * MIB) as (caches, services):
        await fill(caches, "a", size=2 * MIB)
        task = services.work_dir / "tasks" / "one"
        task.mkdir(parents=True)
        (task / "file").write_bytes(b"x" * 10 * MIB)
        await services.trash.discard(task)
        assert await services.disk.make_room() is None
        assert await names(caches) == ["cache a"]


async def test_a_cache_that_fills_the_disk_is_lost_or_kept_and_the_disk_gets_its_room_back(small_disk: Path) -> None:
    async with opened(small_disk, space=8 * MIB) as (caches, services):
        async with caches.lease("a") as lease:
            with pytest.raises(OSError, match="No space left"):
                (lease.path / "file").write_bytes(b"x" * 20 * MIB)
            lease.keep = True
        assert len(await caches.unused()) <= 1
        assert await services.disk.make_room() is None
        assert await names(caches) == []
