"""The names of archive and compression formats, and how a compression is undone: in bounded memory, and bit by bit.

What is unpacked comes in pieces. Each costs a bounded amount of input and of time, and a piece may be empty: much that
is packed unpacks to nothing, such as empty frames, padding and comments, and who waits for a byte that never comes
cannot be cancelled.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

# What the published schema names (schemas/generic-worker/insecure_posix.json); the ones with a library that is well
# kept, runs no other program and is free are supported here.
COMPRESSIONS = ("bz2", "gz", "lz4", "xz", "zst")
ARCHIVES = ("tar", *(f"tar.{name}" for name in COMPRESSIONS), "zip")

MAX_DICTIONARY = 256 * 1024 * 1024  # bytes of memory that unpacking one file may take: `xz -9` wants 65 MiB

MAX_SILENCE = 16 * 1024 * 1024  # bytes of input that come to nothing, one after the other; a block of lz4 has 4 MiB

PIECE = 256 * 1024  # bytes that are unpacked at once
_INPUT = 16 * 1024  # bytes that are read at once
# zstandard gives all that its input comes to, and three bytes can stand for 128 KiB.
_ZSTD_INPUT = 1024


class BadContent(Exception):
    """The bytes are not what their format's name says, or break off."""


class _Decompressor(Protocol):
    # As the standard library's bz2 and lzma have it, and lz4.

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decompressor with the interface of the others."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self._is_full = False  # then more may come of what it has: the last match is not all given, and no input left

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._is_full and not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._is_full = len(piece) == max_length
        return piece


class _Zstd:
    """zstandard's decompressor with the interface of the others, but for `max_length`, which it has no use for."""

    def __init__(self) -> None:
        import zstandard

        self._inner = zstandard.ZstdDecompressor(max_window_size=MAX_DICTIONARY // 2).decompressobj()
        self._error = zstandard.ZstdError

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return True

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        try:
            return self._inner.decompress(data)
        except self._error as error:
            raise BadContent(f"not valid zstd: {error}") from error


def _lz4() -> _Decompressor:
    import lz4.frame

    decompressor: _Decompressor = lz4.frame.LZ4FrameDecompressor()
    return decompressor


def plain(source: IO[bytes]) -> Iterator[bytes]:
    """What `source` holds, as it is."""
    while piece := source.read(PIECE):
        yield piece


def unpacked(source: IO[bytes], compression: str) -> Iterator[bytes]:
    """What `source` holds compressed, in pieces. Raises what CONTENT_ERRORS lists."""
    match compression:
        case "gz":
            return _frames(source, lambda: _Zlib(16 + zlib.MAX_WBITS))
        case "bz2":
            return _frames(source, bz2.BZ2Decompressor)
        case "xz":
            return _frames(source, lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY))
        case "zst":
            return _frames(source, _Zstd, _ZSTD_INPUT)
        case "lz4":
            return _frames(source, _lz4)
        case "deflate":  # as it is in a zip, without any header
            return _frames(source, lambda: _Zlib(-zlib.MAX_WBITS))
    raise AssertionError(compression)


def _frames(source: IO[bytes], make: Callable[[], _Decompressor], input_size: int = _INPUT) -> Iterator[bytes]:
    """Decompresses one frame after the other; a last one that is not whole is an error."""
    silence = 0

    def read() -> bytes:
        nonlocal silence
        data = source.read(input_size)
        silence += len(data)
        if silence > MAX_SILENCE:
            raise BadContent(f"more than {MAX_SILENCE >> 20} MiB of it unpack to nothing")
        return data

    data = read()
    if not data:
        raise BadContent("it is empty")
    while data:
        decompressor = make()
        while not decompressor.eof:
            if not data and decompressor.needs_input and not (data := read()):
                raise BadContent("it breaks off before its end")
            piece = decompressor.decompress(data, PIECE)
            data = b""
            if piece:
                silence = 0
            yield piece
        data = decompressor.unused_data or read()
        # Padding, as gz and xz permit between frames.
        while data and not (data := data.lstrip(b"\0")):
            data = read()
            yield b""


# What undoing a compression ends with where the bytes are not as they should be: bz2 raises OSError and lz4
# RuntimeError.
CONTENT_ERRORS = (BadContent, EOFError, lzma.LZMAError, zlib.error, RuntimeError)
