from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from itertools import islice
from pathlib import Path

import lz4.frame
import pytest
import trio
from archives import (
    COMPRESS,
    HONEST,
    HOSTILE,
    LIMITS,
    MIB,
    SILENT,
    SLNK,
    damaged,
    folder,
    global_headers,
    hard,
    link,
    many,
    member,
    raw,
    records,
    snapshot,
    tar,
    zip_of_directory_only,
    zipped,
)
from hypothesis import given
from hypothesis import strategies as st

from plugins.mounts.extraction import Limits, Unpacking, decompression, extraction, perform
from plugins.mounts.formats import ARCHIVES, PIECE, unpacked
from plugins.mounts.kept import Settled, settling
from plugins.mounts.transfer import Part
from plugins.mounts.tree import Refused, link_problem
from worker.errors import ResourceUnavailable
from worker.ports import Ports

PORTS = Ports()


def lay_out(top: Path, content: bytes) -> None:
    (top / "inside" / "target").mkdir(parents=True)
    (top / "archive").write_bytes(content)
    (top / "evil").write_text("precious")
    (top / "inside" / "evil").write_text("precious")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


async def extract(top: Path, content: bytes, name: str, limits: Limits = LIMITS) -> Path:
    """Extract into `top/inside/target`, beside which there is something to lose."""
    archive, target = top / "archive", top / "inside" / "target"
    lay_out(top, content)
    await perform(PORTS, extraction(archive, name, target, Unpacking(limits, len(content))))
    return target


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name != "zip"])
async def test_every_format_of_tar_is_extracted(tmp_path: Path, name: str) -> None:
    compression = name.removeprefix("tar").removeprefix(".")
    content = tar(HONEST)
    target = await extract(tmp_path, COMPRESS[compression](content) if compression else content, name)
    assert (target / "dir" / "file.txt").read_text() == "hello\n"
    assert (target / "current").read_text() == "hello\n"
    assert (target / "dir" / "up").read_text() == "#!/bin/sh\n"
    assert (target / "dir" / "again").stat().st_ino == (target / "dir" / "file.txt").stat().st_ino
    assert (target / "deep" / "er" / "file").read_bytes() == b""
    assert (target / "na\udcffme").read_text() == "not UTF-8\n"
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) == 0o755, "neither setuid nor writable for others"
    assert (target / "run.sh").stat().st_mtime == 1_700_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_zips_are_extracted(tmp_path: Path, compression: int) -> None:
    entries = [
        ("dir/", b"", 0),
        ("dir/file.txt", b"hello\n" * 1000, stat.S_IFREG | 0o644),
        ("run.sh", b"#!/bin/sh\n", stat.S_IFREG | 0o4777),
        ("dir/up", b"../run.sh", SLNK),
        ("ünï", b"x", 0),
    ]
    target = await extract(tmp_path, zipped(entries, compression), "zip")
    assert (target / "dir" / "file.txt").read_text() == "hello\n" * 1000
    assert (target / "dir" / "up").read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "dir" / "file.txt").stat().st_mode) == 0o644
    assert (target / "ünï").read_text() == "x"


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_archives_are_refused_and_touch_nothing_else(tmp_path: Path, case: str) -> None:
    name, make, expected = HOSTILE[case]
    with pytest.raises(Refused) as caught:
        await extract(tmp_path, make(), name)
    assert expected in str(caught.value)
    outside = {path: state for path, state in snapshot(tmp_path).items() if not path.startswith("inside/target")}
    del outside["archive"]
    assert {path: content for path, (_, content) in outside.items()} == {
        "evil": b"precious",
        "inside": b"",
        "inside/evil": b"precious",
    }
    assert not [path for path in (tmp_path / "inside" / "target").rglob("*") if not _inside(path, tmp_path)]


def _inside(path: Path, top: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(top / "inside" / "target")


async def test_the_same_name_again_replaces_the_file_and_not_what_it_was_linked_to(tmp_path: Path) -> None:
    members = [member("a", b"first"), hard("b", "a"), member("a", b"second"), link("c", "b"), member("c", b"third")]
    target = await extract(tmp_path, tar(members), "tar")
    assert [(target / name).read_text() for name in "abc"] == ["second", "first", "third"]
    assert not (target / "c").is_symlink()


async def test_names_that_differ_by_case_are_what_the_disk_makes_of_them(tmp_path: Path) -> None:
    target = await extract(tmp_path, tar([link("A", "b"), member("a", b"x"), folder("B")]), "tar")
    assert (target / "a").read_text() == "x"


async def test_entries_are_limited(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more than 10 entries"):
        await extract(tmp_path / "tar", tar(many(11)), "tar", Limits(MIB, 10, 10))
    with pytest.raises(Refused, match="more than 10 entries"):
        await extract(tmp_path / "zip", zipped((f"f{i}", b"", 0) for i in range(11)), "zip", Limits(MIB, 10, 10))


async def test_a_zip_of_too_many_entries_is_refused_before_its_directory_is_read(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="more than 10 entries"):
            await extract(tmp_path, zip_of_directory_only(MIB), "zip", Limits(MIB, 10, 10))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MIB


async def test_a_zip_in_a_zip_is_content_whatever_its_directory_says(tmp_path: Path) -> None:
    inner = zip_of_directory_only(MIB, 65532)
    inner = inner[inner.index(b"PK\1\2") :]
    target = await extract(tmp_path, zipped([("inner", inner, 0)], zipfile.ZIP_STORED), "zip")
    assert (target / "inner").read_bytes() == inner


async def test_nested_compression_is_left_as_it_is(tmp_path: Path) -> None:
    inner = COMPRESS["gz"](bytes(100 * MIB))
    target = await extract(tmp_path, tar([member("inner.gz", inner)]), "tar")
    assert (target / "inner.gz").read_bytes() == inner


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
async def test_many_entries_take_bounded_memory(tmp_path: Path, kind: str, count: int) -> None:
    if kind == "zip":
        content = zipped((f"d{i % 100}/f{i}", b"x", 0) for i in range(count))
    else:
        content = COMPRESS["gz"](tar(many(count)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target = await extract(tmp_path, content, kind)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(len(files) for _, _, files in os.walk(target)) == count
    # zipfile has a directory in memory.
    assert grown < (20 if kind == "tar.gz" else 120) * 1024, f"{grown} KiB more"


class Failing(Unpacking):
    """What the machine says to the first piece, or to the first directory that no entry stands for."""

    def __init__(self, error: Exception) -> None:
        super().__init__(LIMITS, 1)
        self.error = error

    def add(self, size: int) -> None:
        if isinstance(self.error, MemoryError):
            raise self.error

    def add_entry(self) -> None:
        if self.entries == 1:  # the second is the directory
            raise self.error
        super().add_entry()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EACCES, errno.ESTALE, errno.ENOSPC])
async def test_what_the_machine_does_not_do_is_no_fault_of_the_archives(tmp_path: Path, number: int) -> None:
    lay_out(tmp_path, tar([member("a/b", b"x")]))
    unpacking = Failing(OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=os.strerror(number)):
        await perform(PORTS, extraction(tmp_path / "archive", "tar", tmp_path / "inside" / "target", unpacking))


async def test_a_lack_of_memory_is_no_fault_of_the_archives(tmp_path: Path) -> None:
    lay_out(tmp_path, COMPRESS["gz"](b"x"))
    with pytest.raises(ResourceUnavailable, match="not enough memory to unpack a gz"):
        await perform(PORTS, decompression(tmp_path / "archive", "gz", tmp_path / "file", Failing(MemoryError())))


async def test_a_cancelled_extraction_stops_between_two_chunks(tmp_path: Path) -> None:
    archive, target = tmp_path / "archive", tmp_path / "target"
    archive.write_bytes(tar(many(10_000)))
    target.mkdir()
    unpacking = Unpacking(LIMITS, 1)
    before = descriptors()
    with trio.CancelScope() as scope:
        await perform(PORTS, extraction(archive, "tar", target, unpacking), scope.cancel)
    assert scope.cancelled_caught
    assert unpacking.entries == 100
    assert descriptors() == before


def position(path: Path) -> int:
    """How far this process has read in a file, which it has opened once."""
    for number in Path("/proc/self/fd").iterdir():
        if os.path.realpath(number) == str(path):
            return int(Path(f"/proc/self/fdinfo/{number.name}").read_text().split()[1])
    raise AssertionError(path)


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["file", "tar", "encoded"])
@pytest.mark.parametrize("case", SILENT)
def test_what_unpacks_to_nothing_is_given_up_and_can_be_cancelled(tmp_path: Path, case: str, kind: str) -> None:
    name, make = SILENT[case]
    archive, target = tmp_path / "archive", tmp_path / "target"
    unpacking = Unpacking(LIMITS, 1)
    if kind == "tar" or name == "zip":
        # Nothing comes while the header of the second entry is read.
        archive.write_bytes((b"" if name == "zip" else COMPRESS[name](tar([member("a", b"x")])[:1024])) + make())
        target.mkdir()
        steps = extraction(archive, name if name == "zip" else f"tar.{name}", target, unpacking)
    else:
        archive.write_bytes(make())
        part = Part(archive, encoding=name)
        steps = (
            decompression(archive, name, target, unpacking)
            if kind == "file"
            else settling(part, unpacking, Settled(archive))
        )
    before, was, count = descriptors(), 0, 0
    refused = ""
    try:
        for _ in islice(steps, 100):
            count += 1
            now = position(archive)
            assert now - was <= 5 * MIB, "no cancellation is heeded in between"
            was = now
    except Refused as error:
        refused = str(error)
    if case.endswith("frames"):
        assert count == 100, "there are many of them, and they are small"
    else:
        assert "more than 16 MiB of it unpack to nothing" in refused
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["deflate", *sorted(COMPRESS)])
def test_content_of_any_size_is_unpacked_wherever_a_piece_ends(kind: str) -> None:
    def deflate(data: bytes) -> bytes:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return compressor.compress(data) + compressor.flush()

    compress = COMPRESS.get(kind, deflate)
    for more in range(-3, 300, 1 if kind == "deflate" else 30):
        for content in (bytes(PIECE + more), (b"line %d\n" % more * 90_000)[: 2 * PIECE + more]):
            assert b"".join(unpacked(io.BytesIO(compress(content)), kind)) == content


async def test_frames_of_nothing_and_padding_between_others_are_passed_over(tmp_path: Path) -> None:
    for name, compress in COMPRESS.items():
        packed = compress(b"") * 1000 + compress(b"one ") + bytes(100_000) + compress(b"two") + bytes(3)
        source, target = tmp_path / "packed", tmp_path / "file"
        source.write_bytes(packed)
        await perform(PORTS, decompression(source, name, target, Unpacking(LIMITS, len(packed))))
        assert target.read_bytes() == b"one two"
        target.unlink()


async def test_headers_for_all_entries_are_not_kept(tmp_path: Path) -> None:
    content = global_headers(32) + bytes(1024)
    tracemalloc.start()
    try:
        await extract(tmp_path, content, "tar")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


async def test_what_extended_headers_say_is_heeded(tmp_path: Path) -> None:
    said = [("path", "ä/näme".encode()), ("size", b"3"), ("mtime", b"1700000000.5"), ("comment", b"1" * 900_000)]
    content = (
        records(tarfile.XGLTYPE, ("mtime", b"5"), ("linkpath", b"for all"))
        + records(tarfile.XHDTYPE, *said)
        + raw(tarfile.REGTYPE, 0, b"abc")
        + raw(tarfile.SYMTYPE, 0, name="link")
        + bytes(1024)
    )
    target = await extract(tmp_path, content, "tar")
    assert (target / "ä" / "näme").read_text() == "abc"
    assert (target / "ä" / "näme").stat().st_mtime == 1_700_000_000.5
    assert str((target / "link").readlink()) == "for all"


def has_gnu_tar() -> bool:
    return shutil.which("tar") is not None and b"GNU tar" in subprocess.check_output(["tar", "--version"])


@pytest.mark.skipif(not has_gnu_tar(), reason="needs GNU tar")
@pytest.mark.parametrize("written", ["v7", "oldgnu", "gnu", "ustar", "posix"])
async def test_what_gnu_tar_writes_is_extracted(tmp_path: Path, written: str) -> None:
    given = tmp_path / "given"
    folders = given / "d" if written == "v7" else given / ("d" * 80) / ("e" * 80)
    folders.mkdir(parents=True)
    (folders / "file").write_text("hello")
    (folders / "link").symlink_to("file")
    (given / "one").write_text("one")
    (given / "two").hardlink_to(given / "one")
    if written not in {"v7", "ustar"}:
        (folders / ("ü" * 120)).symlink_to("t" * 200)
        for pieces in (0, 1, 3, 200):
            with (given / f"sparse{pieces}").open("wb") as file:
                for piece in range(pieces):
                    file.seek(piece * 32 * 1024)
                    file.write(b"%d" % piece * 100)
                file.truncate(pieces * 32 * 1024 + 100_000)
    archive = tmp_path / "given.tar"
    options = [f"--format={written}", *(["--sparse"] if written not in {"v7", "ustar"} else [])]
    await trio.run_process(["tar", *options, "-cf", archive, "-C", given, "."])
    target = await extract(tmp_path / "x", archive.read_bytes(), "tar")
    assert snapshot(target) == snapshot(given)
    for path in target.glob("sparse*"):
        assert path.stat().st_blocks <= (given / path.name).stat().st_blocks + 8


async def test_sparse_files_of_older_versions_are_refused(tmp_path: Path) -> None:
    content = records(tarfile.XHDTYPE, ("GNU.sparse.map", b"0,1")) + raw(tarfile.REGTYPE, 1, b"x") + bytes(1024)
    with pytest.raises(Refused, match=r"^it has a sparse file in GNU's format before version 1\.0"):
        await extract(tmp_path, content, "tar")


@pytest.mark.parametrize("name", sorted(COMPRESS))
async def test_single_files_are_decompressed(tmp_path: Path, name: str) -> None:
    content = os.urandom(3 * MIB) + bytes(3 * MIB)
    for packed in (COMPRESS[name](content), COMPRESS[name](content[:MIB]) + COMPRESS[name](content[MIB:])):
        source, target = tmp_path / "packed", tmp_path / "file"
        source.write_bytes(packed)
        await perform(PORTS, decompression(source, name, target, Unpacking(LIMITS, len(packed))))
        assert target.read_bytes() == content
        target.unlink()


@pytest.mark.parametrize("name", sorted(COMPRESS))
@pytest.mark.parametrize("fault", ["truncated", "damaged", "bomb", "other", "empty", "garbage"])
async def test_single_files_that_are_not_whole_are_refused(tmp_path: Path, name: str, fault: str) -> None:
    # Always the same: lz4 says of zeros where to copy them from. With one in 32 others the damage was there, and had
    # them come from further back, where there are zeros too.
    content = b"".join(random.Random(number).randbytes(1000) + bytes(1000) for number in range(100))
    packed = COMPRESS[name](content)
    if name == "lz4":
        packed = lz4.frame.compress(content, content_checksum=True)
    if name == "zst":
        import zstandard

        packed = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    match fault:
        case "truncated":
            packed = packed[:-10]
        case "damaged":
            packed = damaged(packed, len(packed) // 2)
        case "bomb":
            packed = COMPRESS[name](bytes(100 * MIB))
        case "other":
            packed = b"hello, this is a text\n" * 10
        case "empty":
            packed = b""
        case "garbage":
            packed += b"garbage" * 20
    source = tmp_path / "packed"
    source.write_bytes(packed)
    limits = Limits(64 * MIB, 1, 100)
    with pytest.raises(Refused) as caught:
        await perform(PORTS, decompression(source, name, tmp_path / "file", Unpacking(limits, len(packed))))
    assert (
        "it unpacks to more than" in str(caught.value) if fault == "bomb" else f"no valid {name}" in str(caught.value)
    )


async def test_a_file_that_is_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(COMPRESS["gz"](bytes(1000)))
    (tmp_path / "file").symlink_to(tmp_path / "evil")
    with pytest.raises(FileExistsError):
        await perform(PORTS, decompression(tmp_path / "packed", "gz", tmp_path / "file", Unpacking(LIMITS, 1000)))
    assert not (tmp_path / "evil").exists()


names = st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=5).map("/".join)


@given(st.lists(st.tuples(names, names), max_size=6))
def test_whatever_links_an_archive_has_none_of_them_leads_out(links: list[tuple[str, str]]) -> None:
    """By a model of a disk that knows only folders and links."""
    made: dict[tuple[str, ...], str] = {}
    for name, target in links:
        parts = [part for part in name.split("/") if part != "."]
        below = any(tuple(parts[:n]) in made for n in range(1, len(parts) + 1))
        if not parts or ".." in parts or below or any(key[: len(parts)] == tuple(parts) for key in made):
            continue
        if link_problem(parts, target) is None:
            made[tuple(parts)] = target
    for start in made:
        assert _resolves_inside(made, start)


def _resolves_inside(made: dict[tuple[str, ...], str], start: tuple[str, ...]) -> bool:
    here: list[str] = []
    todo = list(start)
    for _ in range(200):
        if not todo:
            return True
        step = todo.pop(0)
        if step in {"", "."}:
            continue
        if step == "..":
            if not here:
                return False
            here.pop()
            continue
        here.append(step)
        if (target := made.get(tuple(here))) is not None:
            here.pop()
            todo = target.split("/") + todo
    return True  # it goes round and round, and so nowhere


async def test_directories_that_no_entry_stands_for_count_as_entries(tmp_path: Path) -> None:
    packed = tar([member("/".join([str(number), *"d" * 20, "f"]), b"") for number in range(6)])
    source, target = tmp_path / "packed", tmp_path / "target"
    source.write_bytes(packed)
    target.mkdir()
    with pytest.raises(Refused, match="has more than 100 entries"):
        await perform(PORTS, extraction(source, "tar", target, Unpacking(Limits(MIB, 100, 100), len(packed))))
