"""Unpacks archives and compressed files, chunk by chunk in threads, within limits.

The work is a plain generator that does a bounded piece of it for each step, so that a cancellation is heeded between
two pieces and what is held in memory does not grow with the archive.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import trio

from plugins.mounts.formats import CONTENT_ERRORS, BadContent, plain, unpacked
from plugins.mounts.tarball import Entry, Tar
from plugins.mounts.tree import Refused, Tree, shown
from worker.errors import ResourceUnavailable
from worker.ports import Ports
from worker.quantities import format_size

# What one step of the work does, more or less.
STEP_BYTES = 4 * 1024 * 1024
STEP_ENTRIES = 100
STEP_PIECES = 256  # of what is unpacked; a compressed one takes no more input than 16 KiB, and may be empty
# zipfile reads a directory in one step: it keeps some 500 bytes for an entry, which takes 46 and its name there, and
# the time for an entry's extra fields grows with the square of their bytes.
MAX_ZIP_DIRECTORY = 16 * 1024 * 1024
MAX_ZIP_EXTRA = 4096
MAX_LINK = 4096  # characters of a link's target
_ZIP_ENTRY = 46  # bytes of what a zip's directory has of an entry, without what is as long as it says
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
    _pieces: int = field(default=0, repr=False)
    _told: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)

    def add(self, size: int) -> None:
        """A piece of so many bytes more was unpacked. Raises Refused beyond the limits."""
        self.size += size
        self._pieces += 1
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
        size, entries, pieces = self._told
        if (
            self.size - size >= STEP_BYTES
            or self.entries - entries >= STEP_ENTRIES
            or self._pieces - pieces >= STEP_PIECES
        ):
            self._told = (self.size, self.entries, self._pieces)
            return True
        return False


def extraction(archive: Path, name: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    """Unpack `archive`, of the format `name`, into the folder `target`, which is there and empty: for `perform`.

    Raises Refused where the archive is to blame, ResourceUnavailable and OSError. What was unpacked by
    then is the caller's to remove.
    """
    return _zip(archive, target, unpacking) if name == "zip" else _tar(archive, name, target, unpacking)


def decompression(source: Path, compression: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    """Unpack a single file to `target`, which is not there, as `extraction` does."""
    with _told_as(compression), source.open("rb") as packed, target.open("xb", buffering=0) as file:
        yield from _copy(_counted(unpacked(packed, compression), unpacking), file, unpacking)


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
    """The libraries' complaints about bytes, as Refused. What memory they take is bounded, whatever these are."""
    try:
        yield
    except MemoryError as error:
        raise ResourceUnavailable(f"the worker has not enough memory to unpack a {name}") from error
    except (zipfile.BadZipFile, *CONTENT_ERRORS, ValueError) as error:
        raise Refused(f"it is no valid {name}: {str(error) or type(error).__name__}") from error
    except OSError as error:
        # bz2 has no class of its own for what it does not understand.
        if error.errno is None:
            raise Refused(f"it is no valid {name}: {error}") from error
        raise


def _counted(pieces: Iterator[bytes], unpacking: Unpacking) -> Iterator[bytes]:
    for piece in pieces:
        unpacking.add(len(piece))
        yield piece


def _copy(pieces: Iterable[bytes | memoryview], target: IO[bytes], unpacking: Unpacking) -> Iterator[None]:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[target.write(view) :]
        if unpacking.step_is_over():
            yield


def _tar(archive: Path, name: str, target: Path, unpacking: Unpacking) -> Iterator[None]:
    compression = name.partition(".")[2]
    tree = Tree(target, unpacking.add_entry)
    try:
        with _told_as(name), archive.open("rb") as packed:
            pieces = _counted(unpacked(packed, compression) if compression else plain(packed), unpacking)
            # Not all writers mark the end, but a compression does.
            tar = Tar(pieces, unpacking.step_is_over, marked=not compression)
            while (entry := (yield from tar.next())) is not None:
                unpacking.add_entry()
                yield from _tar_entry(tar, entry, tree, unpacking)
                if unpacking.step_is_over():
                    yield
            # On to the end, where checksums are.
            for _ in pieces:
                if unpacking.step_is_over():
                    yield
    finally:
        tree.close()


def _tar_entry(tar: Tar, entry: Entry, tree: Tree, unpacking: Unpacking) -> Iterator[None]:
    member = entry.info
    if member.isdir():
        tree.directory(member.name)
    elif member.issym():
        tree.symlink(member.name, member.linkname)
    elif member.islnk():
        unpacking.add(tree.hard_link(member.name, member.linkname))
    elif member.isreg():
        with tree.file(member.name, member.mode, member.mtime) as file:
            end = 0
            for offset, size in entry.pieces:
                if offset != end:
                    _leave_hole(file, end, offset, unpacking)
                yield from _copy(tar.content(size), file, unpacking)
                end = offset + size
            if end != member.size:
                _leave_hole(file, end, member.size, unpacking)
    else:
        raise Refused(f"{shown(member.name)} is {_kind(member)}, which is not unpacked")


def _leave_hole(file: IO[bytes], start: int, end: int, unpacking: Unpacking) -> None:
    # Its bytes count, though they take no room here: they will wherever the file is copied to.
    if end < start:
        raise BadContent("the map of a sparse file goes back")
    unpacking.add(end - start)
    file.truncate(end)
    file.seek(end)


def _kind(member: tarfile.TarInfo) -> str:
    if member.isfifo():
        return "a FIFO"
    return "a device" if member.isdev() else f"an entry of type {member.type!r}"


class _BoundedZip(io.BufferedReader):
    """A zip from which no directory is read that would take zipfile long, or more entries than `most`."""

    def __init__(self, archive: Path, most: int) -> None:
        super().__init__(io.FileIO(archive))
        self._most = most
        self.is_open = False  # then what is read is content, which may be anything

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_DIRECTORY:
            raise BadContent(f"its directory is larger than {format_size(MAX_ZIP_DIRECTORY)}")
        data = super().read(size)
        if not self.is_open and size != -1:  # -1: all of its end, to look for the place of a directory
            self._check(data)
        return data

    def _check(self, directory: bytes) -> None:
        position = count = 0
        # What is no directory ends soon, and it is zipfile that says what is wrong with one.
        while directory.startswith(b"PK\1\2", position) and len(directory) - position >= _ZIP_ENTRY:
            name, extra, comment = struct.unpack_from("<3H", directory, position + 28)
            count += 1
            if count > self._most:
                raise Refused(f"it has more than {self._most} entries, this worker's limit")
            if extra > MAX_ZIP_EXTRA:
                raise BadContent(
                    f"its directory has more than {format_size(MAX_ZIP_EXTRA)} of extra fields for an entry"
                )
            position += _ZIP_ENTRY + name + extra + comment


def _zip(archive: Path, target: Path, unpacking: Unpacking) -> Iterator[None]:
    tree = Tree(target, unpacking.add_entry)
    try:
        with (
            _told_as("zip"),
            _BoundedZip(archive, unpacking.limits.entries) as packed,
            zipfile.ZipFile(packed) as opened,
        ):
            packed.is_open = True
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
    if entry.filename.endswith("/") or kind == stat.S_IFDIR:  # `is_dir` fails where there is no name
        tree.directory(entry.filename)
        return
    if kind not in {0, stat.S_IFREG, stat.S_IFLNK}:
        raise Refused(f"{shown(entry.filename)} is a device or the like, which is not unpacked")
    pieces = _counted(_zip_content(opened, entry), unpacking)
    if kind == stat.S_IFLNK:
        if entry.file_size > MAX_LINK:
            raise Refused(f"{shown(entry.filename)} is a link of more than {MAX_LINK} characters")
        link = io.BytesIO()
        yield from _copy(pieces, link, unpacking)
        tree.symlink(entry.filename, os.fsdecode(link.getvalue()))
        return
    with tree.file(entry.filename, stat.S_IMODE(mode) if mode else 0o644, _mtime(entry)) as file:
        yield from _copy(pieces, file, unpacking)


def _zip_content(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    # zipfile inflates until something comes of it, however much it reads for that. So it is told that nothing is
    # compressed here.
    stored = copy(entry)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, entry.compress_size
    del stored.CRC
    size = checksum = 0
    with opened.open(stored) as packed:
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED and entry.compress_size
        for piece in unpacked(packed, "deflate") if deflated else plain(packed):
            size += len(piece)
            if size > entry.file_size:
                break
            checksum = zlib.crc32(piece, checksum)
            yield piece
    if (size, checksum) != (entry.file_size, entry.CRC):
        raise BadContent(f"{shown(entry.filename)} has not the size or the CRC that it should have")


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
