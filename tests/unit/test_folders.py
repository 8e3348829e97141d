from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stuck import stuck_folder

from worker.folders import mounts_below, move, remove_folder, removing, size_of

NOBODY = 65534


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test runs."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    if os.geteuid() != 0:
        yield folder
    else:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
    shutil.rmtree(folder)


def build(folder: Path) -> None:
    """What nobody may look into."""
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "a" / "link").symlink_to("/etc")
    os.mkfifo(folder / "a" / "fifo")
    for path in ("a/b/file", "a/b", "a", ""):
        (folder / path).chmod(0)


def test_what_may_be_neither_read_nor_written_is_removed(unprivileged: Path) -> None:
    build(folder := unprivileged / "task")
    remove_folder(folder)
    assert list(unprivileged.iterdir()) == []
    assert Path("/etc").exists()


def test_what_may_not_be_written_is_moved_and_stays_so(unprivileged: Path) -> None:
    build(folder := unprivileged / "task")
    (unprivileged / "other").mkdir()
    move(folder, unprivileged / "other" / "moved")
    assert (unprivileged / "other" / "moved").stat().st_mode & 0o777 == 0
    remove_folder(unprivileged / "other")


@pytest.mark.parametrize("name", ["d", "d" * 200, "語" * 85])
def test_folders_in_one_another_are_removed_however_many(tmp_path: Path, name: str) -> None:
    (top := tmp_path / "task").mkdir()
    (top / ".deep-0").write_text("a name that a task has taken")
    start = os.open(".", os.O_RDONLY)
    try:
        os.chdir(top)
        for _ in range(2000):
            Path(name).mkdir()
            os.chdir(name)
        Path("file").write_text("at the bottom")
    finally:
        os.fchdir(start)
        os.close(start)
    remove_folder(top)
    assert list(tmp_path.iterdir()) == []


def test_it_goes_by_short_steps(tmp_path: Path) -> None:
    (folder := tmp_path / "task").mkdir()
    for number in range(2500):
        (folder / str(number)).touch()
    steps = removing(folder)
    for _ in range(1000):
        next(steps)
    assert len(list(folder.iterdir())) == 1500
    assert sum(1 for _ in steps) == 1500
    assert not folder.exists()


def test_what_cannot_be_removed_is_told_and_the_rest_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with stuck_folder(tmp_path) as folder:
        remove_folder(folder)
        assert [path.name for path in folder.iterdir()] == ["5"]
    assert "stuck could not be removed: Operation not permitted" in caplog.text


def test_what_is_mounted_in_it_is_detached_and_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (host := tmp_path / "host").mkdir()
    (host / "precious").write_text("the host's")
    (point := tmp_path / "task" / "a b\\ü").mkdir(parents=True)
    if subprocess.run(["mount", "--bind", host, point], check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        assert mounts_below(tmp_path / "task") == [str(point)]
        assert mounts_below(tmp_path / "tas") == []
        remove_folder(tmp_path / "task")
        assert [path.name for path in tmp_path.iterdir()] == ["host"]
        assert (host / "precious").read_text() == "the host's"
        assert "detached" in caplog.text
    finally:
        subprocess.run(["umount", point], check=False, capture_output=True)


def test_a_file_a_link_and_nothing_are_removed_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "link").symlink_to("folder")
    for name in ("file", "link", "nothing"):
        remove_folder(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]


def test_the_size_is_what_is_on_the_disk(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x" * 100_000)
    size, whole = size_of(tmp_path)
    assert 100_000 <= size < 200_000
    assert whole
    assert size_of(tmp_path, most=2)[1] is False
    assert size_of(tmp_path / "missing") == (0, True)
