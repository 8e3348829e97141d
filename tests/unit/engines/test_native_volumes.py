"""What tasks may do to volumes, and what becomes of these."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from engines.base import Lending, Volume
from engines.native.engine import Native, NativeConfig, NativePayload
from engines.native.volumes import Volumes
from worker.errors import ResourceUnavailable, TaskFault
from worker.ports import Ports
from worker.schema import Slice
from worker.testing.runs import open_run, open_services

T = TypeVar("T")

NOBODY = 65534


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "old").write_text("old")
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@contextmanager
def nobodys_folder() -> Iterator[Path]:
    """A folder of a user that is not root, as whom this process acts in the block."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


async def play(where: Path, script: str, volumes: Sequence[Volume], ports: Ports | None = None) -> bool:
    """Whether the script succeeded. What was lent is back if a folder was said to be at its place, and only then."""
    payload = NativePayload(command=[["sh", "-c", script]])
    async with open_services(where, ports=ports) as services, open_run(where, payload) as run:
        engine = Native(NativeConfig(), services)
        async with engine.worker_scope(), engine.builder(run) as builder:
            builder.volumes += volumes
            async with builder.sandbox() as sandbox:
                await sandbox.wait()
            async with builder.result() as result:
                ended = result.ended
                lent = [each for each in volumes if each.lending is Lending.LENT]
                back = [each.source for each in lent if await result.is_folder(each.path)]
        assert [each.source for each in lent if each.source.is_dir()] == back
        assert not list((services.work_dir / "tasks").iterdir())
    return ended is not None and ended.success


@pytest.mark.parametrize(
    "script",
    [
        "rm -r a/cache",
        "rm -r a/cache; ln -s {outside} a/cache",
        "rm -r a/cache; echo > a/cache",
        "mv a b; ln -s {outside} a",  # where there is another folder of that name
        "mv a b; ln -s b a",
    ],
)
async def test_a_lent_folder_that_the_task_has_replaced_is_lost(tmp_path: Path, script: str) -> None:
    outside = tmp_path / "outside"
    (outside / "cache").mkdir(parents=True)
    lent = folder(tmp_path / "lent")
    assert await play(tmp_path, script.format(outside=outside), [Volume(lent, "a/cache", Lending.LENT)])
    assert "lent" not in names(tmp_path)
    assert (outside / "cache").is_dir()


@pytest.mark.parametrize("script", ["chmod 0 a/cache", "chmod a-w a/cache a", "chmod 300 a/cache"])
async def test_a_lent_folder_without_permissions_is_back_too(tmp_path: Path, script: str) -> None:
    lent = folder(tmp_path / "lent")
    assert await play(tmp_path, script, [Volume(lent, "a/cache", Lending.LENT)])
    assert (lent / "old").read_text() == "old"


async def test_a_lent_folder_is_found_whatever_is_in_it(tmp_path: Path) -> None:
    lent = folder(tmp_path / "lent")
    deep = "import os; os.chdir('cache'); [(os.mkdir('x' * 200), os.chdir('x' * 200)) for _ in range(25)]"
    script = f'{sys.executable} -c "{deep}"'  # a path longer than any may be
    assert await play(tmp_path, script, [Volume(lent, "cache", Lending.LENT)])
    assert (lent / "old").read_text() == "old"


@pytest.mark.parametrize("mode", [0, 0o500, 0o300])
async def test_a_folder_that_a_task_has_closed_can_be_mounted_in(mode: int) -> None:
    with nobodys_folder() as top:
        (tasks := top / "tasks").mkdir()
        lent, inner = folder(top / "lent"), folder(top / "inner")
        (lent / "sub").mkdir(mode)
        volumes = [Volume(lent, "cache", Lending.LENT), Volume(inner, "cache/sub/in", Lending.LENT)]
        async with open_run(top, Slice()) as run:
            mounted = Volumes(Ports(), tasks, run.log)
            await mounted.place(volumes)
            (tasks / "cache" / "sub").chmod(mode)  # as a task does again
            await mounted.put_back()
        assert names(inner) == ["old"]
        assert names(lent / "sub") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make what nobody else may open")
async def test_a_lent_folder_in_which_nothing_can_be_mounted_is_lost() -> None:
    with nobodys_folder() as top:
        (tasks := top / "tasks").mkdir()
        lent, other, inner = (folder(top / name) for name in ("lent", "other", "inner"))
        (lent / "sub").mkdir()
        os.seteuid(0)
        os.chown(lent / "sub", 0, 0)
        (lent / "sub").chmod(0o700)
        os.seteuid(NOBODY)
        volumes = [
            Volume(other, "other", Lending.LENT),
            Volume(lent, "cache", Lending.LENT),
            Volume(inner, "cache/sub/in", Lending.LENT),
        ]
        async with open_run(top, Slice()) as run:
            mounted = Volumes(Ports(), tasks, run.log)
            with pytest.raises(TaskFault, match=r"cache/sub/in cannot be mounted: Permission denied"):
                await mounted.place(volumes)
            await mounted.put_back()
        assert names(inner) == names(other) == ["old"]
        assert not lent.exists()


async def test_one_volume_may_be_in_another(tmp_path: Path) -> None:
    outer, inner, shared = folder(tmp_path / "outer"), folder(tmp_path / "inner"), tmp_path / "shared"
    shared.write_text("shared")
    volumes = [
        Volume(outer, "out", Lending.LENT),
        Volume(inner, "out/in", Lending.LENT),
        Volume(shared, "out/file", Lending.SHARED),
    ]
    script = "cat out/old out/in/old out/file && echo new > out/in/new && echo >> out/file"
    for run in ("first", "second"):  # what was mounted in the cache is not there when it is used again
        (tmp_path / run).mkdir()
        assert await play(tmp_path / run, script, volumes)
        assert names(outer) == ["old"]
        assert names(inner) == ["new", "old"]
        assert shared.read_text() == "shared"


@pytest.mark.parametrize("lending", Lending)
async def test_a_place_that_is_taken_is_the_tasks_fault_and_what_was_lent_stays(
    tmp_path: Path, lending: Lending
) -> None:
    first, second = folder(tmp_path / "first"), tmp_path / "second"
    if lending is Lending.SHARED:
        second.write_text("shared")
    else:
        folder(second)
    volumes = [Volume(first, "place", Lending.LENT), Volume(second, "place", lending)]
    with pytest.raises(TaskFault, match="place cannot be mounted, something is there"):
        await play(tmp_path, "true", volumes)
    assert first.is_dir()
    assert second.exists()


@pytest.mark.parametrize("lending", [Lending.GIVEN, Lending.SHARED])
@pytest.mark.parametrize("name", ["old", "link", "folder"])
async def test_no_file_takes_the_place_of_another(tmp_path: Path, lending: Lending, name: str) -> None:
    first, second = folder(tmp_path / "first"), tmp_path / "second"
    (first / "link").symlink_to("nowhere")
    (first / "folder").mkdir()
    second.write_text("new")
    with pytest.raises(TaskFault, match=f"place/{name} cannot be mounted, something is there"):
        await play(tmp_path, "true", [Volume(first, "place", Lending.LENT), Volume(second, f"place/{name}", lending)])
    assert (first / "old").read_text() == "old"
    assert second.read_text() == "new"


async def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    given, lent = folder(tmp_path / "given"), folder(tmp_path / "lent")
    (given / "empty").mkdir()
    volumes = [Volume(given, "a", Lending.GIVEN), Volume(lent, "a/empty", Lending.LENT)]
    assert await play(tmp_path, "cat a/empty/old && touch a/empty/new", volumes)
    assert names(lent) == ["new", "old"]


async def test_a_task_cannot_foresee_where_what_was_in_a_lent_folder_goes(tmp_path: Path) -> None:
    lent, given = folder(tmp_path / "lent"), folder(tmp_path / "given")
    volumes = [Volume(lent, "a", Lending.LENT), Volume(given, "a/in", Lending.GIVEN)]
    assert await play(tmp_path, "for i in 0 1 2; do mkdir -p .mounted-$i/x; done", volumes)
    assert names(lent) == ["old"]


class FullPorts(Ports):
    """A disk on which nothing more can be put."""

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if getattr(function, "__name__", "") in {"_move", "_copy_piece"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await super().run_sync(function, *args)


@pytest.mark.parametrize("lending", [Lending.GIVEN, Lending.SHARED])
async def test_a_full_disk_is_no_fault_of_the_tasks(tmp_path: Path, lending: Lending) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ResourceUnavailable, match="place could not be mounted: the worker's disk is full"):
        await play(tmp_path, "true", [Volume(file, "place", lending)], FullPorts())


async def test_no_link_in_a_volume_leads_another_one_out(tmp_path: Path) -> None:
    outside, given, lent = folder(tmp_path / "outside"), folder(tmp_path / "given"), folder(tmp_path / "lent")
    (given / "link").symlink_to(outside)
    with pytest.raises(TaskFault, match="given/link/lent cannot be mounted"):
        await play(
            tmp_path, "true", [Volume(given, "given", Lending.GIVEN), Volume(lent, "given/link/lent", Lending.LENT)]
        )
    assert names(outside) == ["old"]


async def test_a_large_file_is_copied_whole(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with shared.open("wb") as file:
        file.write(b"first")
        file.seek(150 * 2**20)
        file.write(b"last")
    assert await play(tmp_path, f"cmp file {shared}", [Volume(shared, "file", Lending.SHARED)])
