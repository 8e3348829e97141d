"""What tasks may do to volumes, and what becomes of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.base import Lending, Volume
from engines.native.engine import Native, NativeConfig, NativePayload
from worker.errors import TaskFault
from worker.testing.runs import open_run, open_services


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "old").write_text("old")
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def play(where: Path, script: str, volumes: Sequence[Volume]) -> bool:
    """Whether the script succeeded."""
    payload = NativePayload(command=[["sh", "-c", script]])
    async with open_services(where) as services, open_run(where, payload) as run:
        engine = Native(NativeConfig(), services)
        async with engine.worker_scope(), engine.builder(run) as builder:
            builder.volumes += volumes
            async with builder.sandbox() as sandbox:
                await sandbox.wait()
            async with builder.result() as result:
                ended = result.ended
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
