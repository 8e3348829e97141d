"""The names of archive and compression formats, and readers that undo a compression in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Protocol

# What the published schema names (schemas/generic-worker/insecure_posix.json); the ones with a library that is well
# kept, runs no other program and is free are supported here.
COMPRESSIONS = ("bz2", "gz", "lz4", "xz", "zst")
ARCHIVES = ("tar", *(f"tar.{name}" for name in COMPRESSIONS), "zip")

MAX_DICTIONARY = 256 * 1024 * 1024  # bytes of memory that unpacking one file may take: `xz -9` wants 65 MiB

_INPUT = 64 * 1024  # bytes that are read at once
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


class _Reader(io.RawIOBase):
    """Decompresses one frame after the other; a last one that is not whole is an error."""

    def __init__(self, source: IO[bytes], make: Callable[[], _Decompressor], input_size: int = _INPUT) -> None:
        self._source = source
        self._make = make
        self._input_size = input_size
        self._decompressor: _Decompressor | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what `read` calls it with
        while not self._output:
            produced = self._more(len(buffer))
            if produced is None:
                return 0
            self._output = memoryview(produced)
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _more(self, most: int) -> bytes | None:
        """Some output, perhaps none yet; None at the end."""
        decompressor = self._decompressor
        if decompressor is not None and decompressor.eof:
            self._input = (decompressor.unused_data or b"") + self._input
            self._decompressor = decompressor = None
        if not self._input and (decompressor is None or decompressor.needs_input):
            self._input = self._source.read(self._input_size)
            if not self._input:
                if decompressor is None:
                    return None
                raise BadContent("it breaks off before its end")
        if decompressor is None:
            if not self._input.strip(b"\0"):  # padding, as xz permits between its streams
                self._input = b""
                return b""
            self._decompressor = decompressor = self._make()
        data, self._input = self._input[: self._input_size], self._input[self._input_size :]
        return decompressor.decompress(data, most)


def open_compressed(source: IO[bytes], compression: str) -> io.BufferedIOBase | io.BufferedReader:
    """A reader of what `source` holds compressed. Its reads raise what `content_errors` lists."""
    match compression:
        case "gz":
            return gzip.GzipFile(fileobj=source, mode="rb")
        case "bz2":
            return io.BufferedReader(_Reader(source, bz2.BZ2Decompressor))
        case "xz":
            return io.BufferedReader(_Reader(source, lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)))
        case "zst":
            return io.BufferedReader(_Reader(source, _Zstd, _ZSTD_INPUT))
        case "lz4":
            return io.BufferedReader(_Reader(source, _lz4))
    raise AssertionError(compression)


# What reading bytes that are not as they should be ends with. lz4's frames raise RuntimeError.
CONTENT_ERRORS = (BadContent, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, RuntimeError)
