"""Unpacks archives and compressed files, chunk by chunk in threads, within limits.

The work is a plain generator that does a bounded piece of it for each step, so that a cancellation is heeded between
two pieces and what is held in memory does not grow with the archive.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import IO

import trio

from plugins.mounts.formats import CONTENT_ERRORS, BadContent, open_compressed
from plugins.mounts.tree import Refused, Tree, shown
from worker.ports import Ports
from worker.quantities import format_size

CHUNK = 256 * 1024  # bytes that are copied at once
STEP_BYTES = 4 * 1024 * 1024  # what one step of the work unpacks, more or less
STEP_ENTRIES = 100
MAX_HEADERS = 1024 * 1024  # bytes that a tar may say of one entry: names and attributes
MAX_GLOBAL_HEADERS = 1000
MAX_ZIP_DIRECTORY = 32 * 1024 * 1024  # bytes; zipfile keeps some 500 bytes for an entry, which takes 46 and its name
MAX_LINK = 4096  # characters of a link's target
RATIO_FROM = 64 * 1024 * 1024  # bytes that may be unpacked whatever they were packed to


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may come of one archive; sizes in bytes. `ratio` is unpacked to packed."""

    size: int
    entries: int
    ratio: int


@dataclass
class Unpacking:
    """How far it has come."""

    limits: Limits
    packed: int
    size: int = 0
    entries: int = 0
    _told: tuple[int, int] = field(default=(0, 0), repr=False)

    def add(self, size: int) -> None:
        """So many bytes more were unpacked. Raises Refused beyond the limits."""
        self.size += size
        if self.size > self.limits.size:
            raise Refused(f"it unpacks to more than {format_size(self.limits.size)}, this worker's limit")
        if self.size > RATIO_FROM and self.size > self.limits.ratio * self.packed:
            raise Refused(f"it unpacks to more than {self.limits.ratio} times its size, this worker's limit")

    def add_entry(self) -> None:
        """One entry more. Raises Refused beyond the limit."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise Refused(f"it has more than {self.limits.entries} entries, this worker's limit")

    def step_is_over(self) -> bool:
        """Whether it is time for a cancellation to be noticed."""
        size, entries = self._told
        if self.size - size >= STEP_BYTES or self.entries - entries >= STEP_ENTRIES:
            self._told = (self.size, self.entries)
            return True
        return False


def extraction(archive: Path, name: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    """Unpack `archive`, of the format `name`, into the folder `target`, which is there and empty: for `perform`.

    Raises Refused where the archive is to blame, and OSError. What was unpacked by then is the caller's to remove.
    """
    return _zip(archive, target, unpacking) if name == "zip" else _tar(archive, name, target, unpacking)


def decompression(source: Path, compression: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    """Unpack a single file to `target`, which is not there, as `extraction` does."""
    with _told_as(compression), source.open("rb") as packed, target.open("xb", buffering=0) as file:
        if not unpacking.packed:
            raise BadContent("it is empty")
        with open_compressed(packed, compression) as reader:
            yield from _copy(reader, file, unpacking)


async def perform(ports: Ports, steps: Iterator[None], between: Callable[[], None] = lambda: None) -> None:
    """Do work that blocks, step by step in threads. A cancellation is heeded between two, where `between` is called."""
    end = object()
    try:
        while await ports.run_sync(next, steps, end) is not end:
            between()
    finally:
        # No limit: it closes files, and a call in a thread cannot be given up anyhow.
        with trio.CancelScope(shield=True):
            await ports.run_sync(steps.close)  # type: ignore[attr-defined]  # a generator


@contextmanager
def _told_as(name: str) -> Iterator[None]:
    """The libraries' complaints about bytes, as Refused."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, RecursionError, MemoryError, *CONTENT_ERRORS, ValueError) as error:
        raise Refused(f"it is no valid {name}: {str(error) or type(error).__name__}") from error
    except OSError as error:
        # bz2 and gzip have no class of their own for what they do not understand.
        if error.errno is None:
            raise Refused(f"it is no valid {name}: {error}") from error
        raise


def _copy(source: IO[bytes] | io.BufferedIOBase, target: IO[bytes], unpacking: Unpacking) -> Iterator[None]:
    while chunk := source.read(CHUNK):
        unpacking.add(len(chunk))
        view = memoryview(chunk)
        while view:
            view = view[target.write(view) :]
        if unpacking.step_is_over():
            yield


class _Forward(io.RawIOBase):
    """What tarfile reads from: forward only, and no more for an entry's headers than `MAX_HEADERS`.

    tarfile reads headers of any length into memory, and calls itself for each one that stands before another.
    """

    def __init__(self, source: IO[bytes] | io.BufferedIOBase, unpacking: Unpacking) -> None:
        self._source = source
        self._unpacking = unpacking
        self._position = 0
        self.allowance = float(MAX_HEADERS)
        self.last = b""  # what was read last

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > self.allowance:
            raise BadContent(f"an entry has more than {format_size(MAX_HEADERS)} of headers")
        self.allowance -= size
        data = self._source.read(size)
        self._position += len(data)
        self.last = data
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._position:
            raise BadContent("it points back into itself")
        for _ in self.skip(offset):
            pass
        return self._position

    def skip(self, offset: int) -> Iterator[None]:
        """Read on to `offset`, or to the end where that comes before."""
        while self._position < offset:
            skipped = self._source.read(min(CHUNK, offset - self._position))
            if not skipped:
                break
            self._position += len(skipped)
            self._unpacking.add(len(skipped))
            if self._unpacking.step_is_over():
                yield


def _tar(archive: Path, name: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    compression = name.partition(".")[2]
    tree = Tree(target, unpacking.add_entry)
    try:
        with _told_as(name), archive.open("rb") as packed:
            source = open_compressed(packed, compression) if compression else packed
            reader = _Forward(source, unpacking)
            with tarfile.TarFile(
                fileobj=reader, mode="r", encoding="utf-8", errors="surrogateescape", errorlevel=2
            ) as tar:
                yield from _tar_entries(tar, reader, tree, unpacking)
            # tarfile takes a damaged header for the end. Not all writers mark it, but a compression does.
            if reader.last.strip(b"\0") or (not reader.last and not compression):
                raise BadContent("it breaks off, or a header in it is damaged")
            # On to the end, where checksums are.
            yield from reader.skip(sys.maxsize)
    finally:
        tree.close()


def _tar_entries(tar: tarfile.TarFile, reader: _Forward, tree: Tree, unpacking: Unpacking) -> Iterator[None]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # They would be kept until the end.
        if len(tar.pax_headers) > MAX_GLOBAL_HEADERS:
            raise Refused(f"it has more than {MAX_GLOBAL_HEADERS} global headers")
        unpacking.add_entry()
        if member.isdir():
            tree.directory(member.name)
        elif member.issym():
            tree.symlink(member.name, member.linkname)
        elif member.islnk():
            unpacking.add(tree.hard_link(member.name, member.linkname))
        elif member.isreg():
            reader.allowance = inf
            content = tar.extractfile(member)
            assert content is not None  # since it is a regular file
            with tree.file(member.name, member.mode, member.mtime) as file, content:
                yield from _copy(content, file, unpacking)
        else:
            raise Refused(f"{shown(member.name)} is {_kind(member)}, which is not unpacked")
        reader.allowance = MAX_HEADERS
        if unpacking.step_is_over():
            yield
        yield from reader.skip(tar.offset - 1)


def _kind(member: tarfile.TarInfo) -> str:
    if member.isfifo():
        return "a FIFO"
    return "a device" if member.isdev() else f"an entry of type {member.type!r}"


class _BoundedReads(io.BufferedReader):
    """A file that gives no more at once than zipfile needs for a directory of a sensible size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_DIRECTORY:
            raise BadContent(f"its directory is larger than {format_size(MAX_ZIP_DIRECTORY)}")
        return super().read(size)


def _zip(archive: Path, target: Path, unpacking: Unpacking) -> Iterator[None]:
    tree = Tree(target, unpacking.add_entry)
    try:
        with _told_as("zip"), _BoundedReads(io.FileIO(archive)) as packed, zipfile.ZipFile(packed) as opened:
            entries = opened.infolist()
            _refuse_overlaps(entries)
            for entry in entries:
                unpacking.add_entry()
                yield from _zip_entry(opened, entry, tree, unpacking)
                if unpacking.step_is_over():
                    yield
    finally:
        tree.close()


def _zip_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, tree: Tree, unpacking: Unpacking) -> Iterator[None]:
    # Unix' mode is in the upper half, where there is one.
    mode = entry.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if entry.flag_bits & 1:
        raise Refused(f"{shown(entry.filename)} is encrypted")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        # Of the others zipfile unpacks all of what it has read at once, whatever that takes of memory.
        raise Refused(f"{shown(entry.filename)} is compressed by another method than deflate")
    if entry.is_dir() or kind == stat.S_IFDIR:
        tree.directory(entry.filename)
        return
    if kind not in {0, stat.S_IFREG, stat.S_IFLNK}:
        raise Refused(f"{shown(entry.filename)} is a device or the like, which is not unpacked")
    with opened.open(entry) as content:
        if kind == stat.S_IFLNK:
            link = content.read(MAX_LINK + 1)
            if len(link) > MAX_LINK:
                raise Refused(f"{shown(entry.filename)} is a link of more than {MAX_LINK} characters")
            tree.symlink(entry.filename, os.fsdecode(link))
            return
        with tree.file(entry.filename, stat.S_IMODE(mode) if mode else 0o644, _mtime(entry)) as file:
            yield from _copy(content, file, unpacking)


def _mtime(entry: zipfile.ZipInfo) -> float | None:
    # A zip knows no time zone.
    try:
        return datetime(*entry.date_time, tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _refuse_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Entries that share bytes are how a small file unpacks to a huge one, within any ratio for each of them."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Refused(f"{shown(entry.filename)} overlaps another entry")
        # The local header has 30 bytes, and then a name.
        end = entry.header_offset + 30 + entry.compress_size
