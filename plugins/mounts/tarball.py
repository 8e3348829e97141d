"""Reads a tar from its beginning to its end, in bounded memory, and in steps that are bounded too.

Of the library it uses what understands one block. The library's reader of whole archives takes headers of any length,
calls itself for each that stands before another, keeps whatever global ones say, and looks through them with patterns
whose time grows with the square of the length; all that in one call, which nothing can cancel.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from plugins.mounts.formats import BadContent
from plugins.mounts.tree import Refused
from worker.quantities import format_size

MAX_HEADERS = 1024 * 1024  # bytes that a tar may say of one entry: names and attributes

_BLOCK = tarfile.BLOCKSIZE
_RECORDS = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE}
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
# What is heeded of all that a record may say.
_PATH, _SPARSE = "GNU.sparse.name", "GNU.sparse.major"
_KNOWN = {"path", "linkpath", "size", "mtime", _PATH, _SPARSE, "GNU.sparse.realsize"}
# How GNU tar wrote sparse files for three years, before it thought better of it.
_UNSUPPORTED = ("GNU.sparse.map", "GNU.sparse.offset")


@dataclass
class Entry:
    """One thing in an archive. `pieces` are the places of a file's content, as offset and size; the rest are holes."""

    info: tarfile.TarInfo
    pieces: list[tuple[int, int]]


class Tar:
    """A tar that comes in pieces, some of them empty. What is no tar ends with BadContent or ValueError."""

    def __init__(self, pieces: Iterator[bytes], step_is_over: Callable[[], bool], *, marked: bool) -> None:
        """Reading yields where `step_is_over`. A tar that is `marked` says where it ends, as nothing around it does."""
        self._pieces = pieces
        self._step_is_over = step_is_over
        self._marked = marked
        self._rest = memoryview(b"")
        self._position = 0
        self._end = 0  # of the last entry's content
        self._allowance = 0
        self._global: dict[str, str] = {}

    def next(self) -> Generator[None, None, Entry | None]:
        """The next entry, which is that after the content of the last; None at the end."""
        for _ in self._chunks(self._end - self._position):
            if self._step_is_over():
                yield
        said: dict[str, str] = {}
        self._allowance = MAX_HEADERS
        while True:
            block = yield from self._header(_BLOCK)
            if not block.strip(b"\0"):
                if said or not self._position or (self._marked and not block):
                    raise BadContent("it breaks off")
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise BadContent(f"it breaks off, or a header in it is damaged: {error}") from error
            if info.size < 0:
                raise BadContent("an entry has a size below 0")
            if info.type in _LONG:
                name = yield from self._header(info.size)
                said[_LONG[info.type]] = _text(name.partition(b"\0")[0])
            elif info.type in _RECORDS:
                records = _records((yield from self._header(info.size)))
                (self._global if info.type == tarfile.XGLTYPE else said).update(records)
            else:
                return (yield from self._entry(info, block, self._global | said))

    def content(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes of an entry's content."""
        end = self._position + size
        if not self._position <= end <= self._end:
            raise BadContent("an entry's parts are larger than the entry")
        yield from self._chunks(size)
        if self._position < end:
            raise BadContent("it breaks off")

    def _chunks(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, or as many as there are; some chunks are empty."""
        while size > 0:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._rest = memoryview(piece)
            chunk, self._rest = self._rest[:size], self._rest[size:]
            self._position += len(chunk)
            size -= len(chunk)
            yield chunk

    def _header(self, size: int) -> Generator[None, None, bytes]:
        """The next `size` bytes, of blocks that are read whole."""
        padded = _padded(size)
        self._allowance -= padded
        if self._allowance < 0:
            raise BadContent(f"an entry has more than {format_size(MAX_HEADERS)} of headers")
        found = bytearray()
        for chunk in self._chunks(padded):
            found += chunk
            if self._step_is_over():
                yield
        return bytes(found[:size])

    def _entry(self, info: tarfile.TarInfo, block: bytes, said: dict[str, str]) -> Generator[None, None, Entry]:
        info.name = said.get(_PATH, said.get("path", info.name))
        info.linkname = said.get("linkpath", info.linkname)
        info.mtime = float(said.get("mtime", info.mtime))
        stored = _decimal(said["size"].encode()) if "size" in said else info.size
        if not info.isreg():
            stored = 0  # Other kinds have no content, whatever they say.
        self._end = self._position + _padded(stored)
        info.size = stored
        pieces = [(0, stored)]
        if info.type == tarfile.GNUTYPE_SPARSE:
            # The map goes on in blocks before the content, of which no size tells.
            info.size = _number(block[483:495])
            pieces = _places(block[386:482])
            more = block[482]
            while more:
                block = yield from self._block()
                pieces += _places(block[:504])
                more = block[504]
            self._end = self._position + _padded(stored)
        elif _SPARSE in said and info.isreg():
            info.size = _decimal(said.get("GNU.sparse.realsize", "").encode())
            pieces = yield from self._map()
        return Entry(info, pieces)

    def _map(self) -> Generator[None, None, list[tuple[int, int]]]:
        """Where the pieces of a sparse file belong, as its content begins with: lines of numbers, in whole blocks."""
        numbers: list[int] = []
        rest = b""
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            *lines, rest = (rest + (yield from self._block())).split(b"\n")
            numbers += (_decimal(line) for line in lines)
            if len(rest) > _BLOCK:
                raise BadContent("the map of a sparse file is damaged")
        numbers = numbers[1 : 1 + 2 * numbers[0]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _block(self) -> Generator[None, None, bytes]:
        block = yield from self._header(_BLOCK)
        if len(block) < _BLOCK:
            raise BadContent("it breaks off")
        return block


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise BadContent(f"{_text(text[:40])!r} stands where a number should be")
    return int(text)


def _number(field: bytes) -> int:
    # Those that are too large for octal digits are marked, and binary.
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _places(entries: bytes) -> list[tuple[int, int]]:
    found = [
        (_number(entries[at : at + 12]), _number(entries[at + 12 : at + 24])) for at in range(0, len(entries) - 23, 24)
    ]
    return [(offset, size) for offset, size in found if size]


def _records(data: bytes) -> dict[str, str]:
    """The records of an extended header that are heeded: each has its length before it, and ends with a newline."""
    said = {}
    position = 0
    while position < len(data) and data[position]:
        length, space, _ = data[position : position + 20].partition(b" ")
        end = position + _decimal(length)
        key, equals, value = data[position + len(length) + 1 : end - 1].partition(b"=")
        if not (space and equals and data[end - 1 : end] == b"\n"):
            raise BadContent("a header in it is damaged")
        name = _text(key)
        if name in _UNSUPPORTED:
            raise Refused("it has a sparse file in GNU's format before version 1.0, which is not unpacked")
        if name in _KNOWN:
            said[name] = _text(value)
        position = end
    return said
