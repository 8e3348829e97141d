"""Room is made by what was used least recently, of all stores, and of what nobody uses."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar, cast

import pytest
import trio

from worker.config import WorkerConfig
from worker.disk import Disk, Item, Room, look
from worker.ports import Ports
from worker.supervisor import Supervisor
from worker.testing.runs import RecordingQueue
from worker.trash import Trash, open_trash
from worker.watchdog import Watchdog

if TYPE_CHECKING:
    from worker.workshop import Workshop

T = TypeVar("T")


class SmallDisk(Ports):
    """Has 100 bytes and as many inodes, less what the stores take."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[Shelf] = []
        self.counts_inodes = True
        self.held_by_trash = 0

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is look:
            await trio.lowlevel.checkpoint()
            free = (
                100 - self.held_by_trash - sum(store.sizes[item.name] for store in self.stores for item in store.items)
            )
            return Room(free, free if self.counts_inodes else None)  # type: ignore[return-value]  # it is that function
        return await super().run_sync(function, *args)


class Shelf:
    def __init__(self, disk: SmallDisk, *items: tuple[Item, int]) -> None:
        self.items = [item for item, _ in items]
        self.sizes = {item.name: size for item, size in items}
        self.taken: set[str] = set()
        disk.stores.append(self)

    async def unused(self) -> list[Item]:
        await trio.lowlevel.checkpoint()
        return list(self.items)

    async def remove(self, item: Item) -> bool:
        await trio.lowlevel.checkpoint()
        if item.name in self.taken:
            return False
        self.items.remove(item)
        return True

    def names(self) -> list[str]:
        return [item.name for item in self.items]


def item(name: str, last_used: float, size: int) -> tuple[Item, int]:
    return Item(last_used, name, name), size


@asynccontextmanager
async def opened(folder: Path, ports: Ports, space: int = 0, inodes: int = 0) -> AsyncGenerator[Disk, None]:
    async with open_trash(ports, folder, trio.Event()) as trash:
        yield Disk(ports, folder, trash, space, inodes)


@pytest.mark.parametrize(("space", "inodes"), [(40, 0), (0, 40)])
async def test_what_was_used_least_recently_goes_first_over_all_stores(
    tmp_path: Path, space: int, inodes: int, caplog: pytest.LogCaptureFixture
) -> None:
    ports = SmallDisk()
    caches = Shelf(ports, item("a", 1, 20), item("b", 4, 20))
    downloads = Shelf(ports, item("c", 2, 20), item("d", 3, 20))
    async with opened(tmp_path, ports, space, inodes) as disk:
        with disk.add(caches), disk.add(downloads):
            assert await disk.make_room() is None
            assert caches.names() + downloads.names() == ["b", "c", "d"]
            assert "removed what was used least recently: a" in caplog.text
            assert await disk.make_room() is None
            assert caches.names() + downloads.names() == ["b", "c", "d"]


async def test_what_somebody_begins_to_use_stays(tmp_path: Path) -> None:
    ports = SmallDisk()
    shelf = Shelf(ports, item("a", 1, 60), item("b", 2, 30))
    shelf.taken.add("a")
    async with opened(tmp_path, ports, 30) as disk, trio.open_nursery():
        with disk.add(shelf):
            assert await disk.make_room() is None
        assert shelf.names() == ["a"]


async def test_what_is_lacking_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ports = SmallDisk()
    shelf = Shelf(ports, item("a", 1, 50))
    shelf.taken.add("a")
    async with opened(tmp_path, ports, 60, 55) as disk:
        with disk.add(shelf):
            assert str(await disk.make_room()) == "50 bytes are free in workDir, and minimumDiskSpace is 60 bytes"
    async with opened(tmp_path, ports, 0, 55) as disk:
        assert str(await disk.make_room()) == "50 files can be made in workDir, and minimumInodes is 55"
        ports.counts_inodes = False
        assert await disk.make_room() is None
    assert caplog.text == ""


async def test_each_reason_to_claim_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ports = SmallDisk()
    watchdog = Watchdog(0, trio.current_time)
    async with opened(tmp_path, ports, 60, 55) as disk:
        services = SimpleNamespace(disk=disk, ports=ports)
        workshop = cast("Workshop", SimpleNamespace(services=services, limiter=SimpleNamespace(watchdog=watchdog)))
        with watchdog.expects("all of it") as ending:
            supervisor = Supervisor(WorkerConfig(), workshop, RecordingQueue(), ending)
            for size in (41, 42, 42, 0, 43):
                Shelf(ports, item("a", 1, size))
                assert await supervisor._disk_suffices() == (size == 0)
                ports.stores.clear()
            disk._minimum_space = 0
            Shelf(ports, item("a", 1, 46))
            assert not await supervisor._disk_suffices()
    assert [record.getMessage().partition(" are free")[0].partition(" can")[0] for record in caplog.records] == [
        "claims nothing: 59 bytes",
        "claims nothing: 57 bytes",
        "claims nothing: 54 files",
    ]


async def test_a_store_that_has_ended_is_not_asked(tmp_path: Path) -> None:
    ports = SmallDisk()
    shelf = Shelf(ports, item("a", 1, 50))
    async with opened(tmp_path, ports, 60) as disk:
        with disk.add(shelf):
            pass
        assert await disk.make_room() is not None
        assert shelf.names() == ["a"]


async def test_the_trash_is_waited_for_before_anything_is_given_up(tmp_path: Path) -> None:
    ports = SmallDisk()
    ports.held_by_trash = 40
    shelf = Shelf(ports, item("a", 1, 30))
    (tmp_path / "task").mkdir()
    async with opened(tmp_path, ports, 60) as disk:
        await disk._trash.wait_empty()

        async def release() -> None:
            await disk._trash.wait_empty()
            ports.held_by_trash = 0

        with disk.add(shelf):
            await disk._trash.discard(tmp_path / "task")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(release)
                await trio.testing.wait_all_tasks_blocked()
                assert await disk.make_room() is None
        assert shelf.names() == ["a"]


class SlowLook(SmallDisk):
    """Whoever looks is told what was there before the trash was emptied, when it is empty."""

    trash: Trash

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        seen = await super().run_sync(function, *args)
        if function is look:
            await self.trash.wait_empty()
            self.held_by_trash = 0
        return seen


async def test_a_look_counts_only_when_nothing_was_removed_meanwhile(tmp_path: Path) -> None:
    ports = SlowLook()
    ports.held_by_trash = 40
    shelf = Shelf(ports, item("a", 1, 30))
    (tmp_path / "task").mkdir()
    async with open_trash(ports, tmp_path, trio.Event()) as ports.trash:
        await ports.trash.wait_empty()
        disk = Disk(ports, tmp_path, ports.trash, 60, 0)
        with disk.add(shelf):
            await ports.trash.discard(tmp_path / "task")
            assert await disk.make_room() is None
        assert shelf.names() == ["a"]


async def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    async with open_trash(ports := Ports(), tmp_path, trio.Event()) as trash:
        with pytest.raises(FileNotFoundError):
            await Disk(ports, tmp_path / "gone", trash, 0, 0).make_room()


async def test_many_that_were_removed_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "worker")
    ports = SmallDisk()
    shelf = Shelf(ports, *(item(f"i{number}", number, 1) for number in range(100)))
    async with opened(tmp_path, ports, 50) as disk:
        with disk.add(shelf):
            assert await disk.make_room() is None
    assert len(caplog.records) == 1
    assert "i9 and 40 more" in caplog.text


def test_the_room_of_a_real_filesystem() -> None:
    room = look(Path("/"))
    assert room.free > 0
    assert room.inodes is None or room.inodes > 0
