"""What is discarded is away at once, and gone from the disk later: whatever happens to the worker meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from stuck import stuck_folder

from worker import trash as module
from worker.ports import Ports
from worker.trash import SLICE, open_trash, throw_away

T = TypeVar("T")


class Paused(Ports):
    """Removes nothing before `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is module._advance:
            await self.go.wait()
        return await super().run_sync(function, *args)


def fill(folder: Path, files: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / str(number)).touch()
    return folder


async def test_what_is_discarded_is_away_at_once_and_removed_later(tmp_path: Path) -> None:
    ports = Paused()
    async with open_trash(ports, tmp_path, trio.Event(), leftovers=False) as trash:
        folder = fill(tmp_path / "tasks" / "one", 3 * SLICE)
        await trash.discard(folder)
        assert not folder.exists()
        assert trash.busy
        ports.go.set()
        with trio.fail_after(10):
            await trash.wait_progress()
            assert trash.busy
            await trash.wait_empty()
        assert not trash.busy
        assert list((tmp_path / "trash").iterdir()) == []


async def test_nothing_is_discarded_where_nothing_is(tmp_path: Path) -> None:
    async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
        await trash.discard(tmp_path / "nothing")
        with trio.fail_after(10):
            await trash.wait_empty()
            await trash.wait_progress()


async def test_a_cancelled_cleanup_discards_all_the_same(tmp_path: Path) -> None:
    folder = fill(tmp_path / "one", 1)
    with trio.CancelScope() as scope:
        async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
            scope.cancel()
            await trash.discard(folder)
    assert not folder.exists()
    assert list((tmp_path / "trash").iterdir()) == []


@pytest.mark.parametrize("hurries", [False, True])
async def test_what_is_left_at_the_end_is_the_next_starts(tmp_path: Path, hurries: bool) -> None:
    ports, hurry = Paused(), trio.Event()
    limit = 60 if hurries else 0.01
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, open_trash(ports, tmp_path, hurry, limit) as trash:
            await trash.discard(fill(tmp_path / "one", 10))
            if hurries:
                nursery.start_soon(_set_when_blocked, hurry)
    assert len(list((tmp_path / "trash").iterdir())) == 1
    async with open_trash(Ports(), tmp_path, trio.Event()):
        pass
    assert list((tmp_path / "trash").iterdir()) == []


async def _set_when_blocked(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked(0.05)
    event.set()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder on another filesystem."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other filesystem")
    return fill(other / f"test-{os.getpid()}", 3)


async def test_what_cannot_be_moved_is_removed_where_it_is(
    tmp_path: Path, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = elsewhere
    async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
        await trash.discard(folder)
        assert not folder.exists()
    assert "removed where it is" in caplog.text


async def test_what_cannot_be_removed_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "trash"
    fill(folder / "1", 3)
    with stuck_folder(tmp_path) as stuck:
        throw_away(stuck, folder, range(1))
        async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
            with trio.fail_after(10):
                await trash.wait_empty()
            assert list(folder.rglob("*")) == [folder / "0", folder / "0" / "5"]
            await trash.discard(fill(tmp_path / "two", 3))
            with trio.fail_after(10):
                await trash.wait_empty()
        assert list(folder.rglob("*")) == [folder / "0", folder / "0" / "5"]
    assert caplog.text.count("could not be removed") == 1


async def test_a_disk_that_fails_does_not_end_the_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Ports):
        async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
            if function is module._advance:
                raise OSError(errno.EIO, "Input/output error")
            return await super().run_sync(function, *args)

    async with open_trash(Failing(), tmp_path, trio.Event()) as trash:
        with trio.fail_after(10):
            await trash.wait_empty()
    assert "cannot be removed: Input/output error" in caplog.text


def test_a_name_that_is_taken_is_not_taken_again(tmp_path: Path) -> None:
    (tmp_path / "trash" / "0").mkdir(parents=True)
    (tmp_path / "trash" / "1").symlink_to("nowhere")
    assert throw_away(fill(tmp_path / "a", 1), tmp_path / "trash", iter(range(9)))
    assert (tmp_path / "trash" / "2" / "0").exists()


@pytest.mark.full
async def test_a_million_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        fill(tmp_path / "task" / str(number), 1000)
    async with open_trash(Ports(), tmp_path, trio.Event()) as trash:
        begun = trio.current_time()
        await trash.discard(tmp_path / "task")
        away = trio.current_time() - begun
        longest, last = 0.0, trio.current_time()
        with trio.fail_after(300):
            while trash.busy:
                with trio.move_on_after(0.01):
                    await trash.wait_empty()
                longest, last = max(longest, trio.current_time() - last), trio.current_time()
        logging.getLogger("worker").info("%.3f s, then %.1f s; %.3f s", away, trio.current_time() - begun, longest)
    assert away < 1
    assert longest < 1


async def test_the_folder_is_there_from_the_start(tmp_path: Path) -> None:
    async with open_trash(Ports(), tmp_path, trio.Event()):
        assert (tmp_path / "trash").is_dir()
    (tmp_path / "trash").rmdir()
    (tmp_path / "trash").touch()
    with pytest.raises(FileExistsError):
        async with open_trash(Ports(), tmp_path, trio.Event()):
            raise AssertionError
