"""Archives, honest and hostile, made when they are needed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lz4.frame
import zstandard

from plugins.mounts.extraction import Limits

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.compress,
    "gz": gzip.compress,
    "lz4": lz4.frame.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}

MIB = 2**20
LIMITS = Limits(size=256 * MIB, entries=200_000, ratio=100)

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644
) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, len(content), mode
    info.mtime = 1_700_000_000
    return info, content


def link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, target=target)


def hard(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, target=target)


def folder(name: str) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=0o755)


def tar(members: Iterable[Member], *, pax: bool = False) -> bytes:
    out = io.BytesIO()
    kind = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=out, mode="w", format=kind, errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(entries: Iterable[tuple[str, bytes, int]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Entries with their content and their mode, 0 for none."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.create_system = 3
            info.compress_type = compression
            archive.writestr(info, content)
    return out.getvalue()


SLNK = stat.S_IFLNK | 0o777


def overlapping_zip() -> bytes:
    """A directory in which many entries are the same bytes."""
    once = zipped([("a", bytes(MIB), 0)])
    start = once.index(b"PK\1\2")
    end = once.index(b"PK\5\6")
    one, tail = once[start:end], bytearray(once[end:])
    tail[8:12] = (100).to_bytes(2, "little") * 2
    tail[12:16] = (100 * len(one)).to_bytes(4, "little")
    return once[:start] + one * 100 + bytes(tail)


def zip_of_directory_only(size: int, extra: int = 0) -> bytes:
    """A directory of so many bytes, of entries that are one and the same, with `extra` bytes of fields of nothing."""
    once = zipped([("a", b"", 0)])
    start, end = once.index(b"PK\1\2"), once.index(b"PK\5\6")
    entry = bytearray(once[start:end] + bytes(extra))
    entry[30:32] = extra.to_bytes(2, "little")
    directory = entry * (size // len(entry))
    tail = bytearray(once[end:])
    tail[12:16] = len(directory).to_bytes(4, "little")
    return once[:start] + directory + bytes(tail)


def damaged(data: bytes, position: int) -> bytes:
    found = bytearray(data)
    found[position] ^= 0xFF
    return bytes(found)


def endless_headers() -> bytes:
    """A tar whose first name is announced to have 8 GiB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30 - 1
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4 * MIB)


def nested_headers() -> bytes:
    """Names that follow upon names, each of them a call inside of a call."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10
    return (info.tobuf(tarfile.GNU_FORMAT) + b"longer-a\0".ljust(512, b"\0")) * 5000


def raw(kind: bytes, size: int, content: bytes = b"", name: str = "a") -> bytes:
    """A header that says `size` of itself, and what follows it, in whole blocks."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def records(kind: bytes, *said: tuple[str, bytes]) -> bytes:
    """An extended header that says these."""
    content = b""
    for key, value in said:
        rest = b" %s=%s\n" % (key.encode(), value)
        length = len(rest)
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        content += str(length).encode() + rest
    return raw(kind, len(content), content)


def global_headers(count: int) -> bytes:
    """Each of 1 MiB nearly, about something else, with an entry behind it."""
    return b"".join(
        records(tarfile.XGLTYPE, (f"comment{number}", b"a" * (MIB - 2000))) + raw(tarfile.REGTYPE, 0)
        for number in range(count)
    )


def sparse(real: int, content: bytes, size: int | None = None) -> bytes:
    """A sparse file of GNU's version 1.0, whose content begins with its map."""
    said = {"GNU.sparse.major": b"1", "GNU.sparse.name": b"s", "GNU.sparse.realsize": b"%d" % real}
    content += bytes(-len(content) % 512)
    length = len(content) if size is None else size
    return records(tarfile.XHDTYPE, *said.items()) + raw(tarfile.REGTYPE, length, content)


def old_sparse(more: int) -> bytes:
    """One of GNU's version before, of 5 bytes at 0, that says whether a block with more places follows."""
    block = bytearray(raw(tarfile.GNUTYPE_SPARSE, 5))
    block[386:398], block[398:410] = b"00000000000\0", b"00000000005\0"
    block[482] = more
    block[483:495] = b"00000000005\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def many(count: int) -> Iterator[Member]:
    for number in range(count):
        yield member(f"d{number % 100}/f{number}", b"x")


HONEST = [
    folder("./"),
    folder("dir"),
    member("dir/file.txt", b"hello\n"),
    member("run.sh", b"#!/bin/sh\n", mode=0o4777),
    link("dir/up", "../run.sh"),
    link("current", "dir/file.txt"),
    hard("dir/again", "dir/file.txt"),
    member("deep/er/file", b""),
    member("na\udcffme", b"not UTF-8\n"),
]

# What is refused: the format's name, the bytes, and what the error says.
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "traversal": ("tar", lambda: tar([member("../evil", b"x")]), "leads out of its directory by .."),
    "traversal inside": ("tar", lambda: tar([member("a/../../evil", b"x")]), "leads out of its directory by .."),
    "traversal of a folder": ("tar", lambda: tar([folder("../evil")]), "leads out of its directory by .."),
    "absolute": ("tar", lambda: tar([member("/tmp/evil", b"x")]), "is an absolute path"),
    "zip traversal": ("zip", lambda: zipped([("../evil", b"x", 0)]), "leads out of its directory by .."),
    "zip absolute": ("zip", lambda: zipped([("/evil", b"x", 0)]), "is an absolute path"),
    "link out": ("tar", lambda: tar([link("a", "../evil")]), "leads out of the archive"),
    "link out from below": ("tar", lambda: tar([link("a/b", "../../evil")]), "leads out of the archive"),
    "link absolute": ("tar", lambda: tar([link("a", "/etc")]), "is absolute"),
    "link to nowhere": ("tar", lambda: tar([link("a", "")]), "leads nowhere"),
    "zip link out": ("zip", lambda: zipped([("a", b"../evil", SLNK)]), "leads out of the archive"),
    "zip link of any length": ("zip", lambda: zipped([("a", b"x" * 5000, SLNK)]), "a link of more than 4096"),
    "link, then through it": ("tar", lambda: tar([link("a", "b"), member("a/evil", b"x")]), "no directory, or a link"),
    "folder, then a link": (
        "tar",
        lambda: tar([folder("a"), link("a", "b")]),
        "in the place of a directory",
    ),
    "chain of links": ("tar", lambda: tar([link("a", "."), link("b", "a/../evil")]), "has .. behind a name"),
    "chain through a hard link": (
        "tar",
        lambda: tar([link("a/b/l", "../../x"), hard("l", "a/b/l")]),
        "which is no regular file",
    ),
    "hard link out": ("tar", lambda: tar([hard("a", "../evil")]), "leads out of its directory by .."),
    "hard link absolute": ("tar", lambda: tar([hard("a", "/etc/passwd")]), "is an absolute path"),
    "hard link through a link": (
        "tar",
        lambda: tar([folder("d"), member("d/f", b"x"), link("l", "d"), hard("a", "l/f")]),
        "is not there",
    ),
    "hard link to nothing": ("tar", lambda: tar([hard("a", "b")]), "is not there"),
    "device": ("tar", lambda: tar([member("a", kind=tarfile.CHRTYPE)]), "is a device"),
    "block device": ("tar", lambda: tar([member("a", kind=tarfile.BLKTYPE)]), "is a device"),
    "FIFO": ("tar", lambda: tar([member("a", kind=tarfile.FIFOTYPE)]), "is a FIFO"),
    "zip FIFO": ("zip", lambda: zipped([("a", b"", stat.S_IFIFO | 0o644)]), "is a device or the like"),
    "unheard-of type": ("tar", lambda: tar([member("a", kind=b"Z")]), "an entry of type b'Z'"),
    "gz bomb": ("tar.gz", lambda: gzip.compress(tar([member("a", bytes(100 * MIB))])), "times its size"),
    "xz bomb": ("tar.xz", lambda: lzma.compress(tar([member("a", bytes(100 * MIB))])), "times its size"),
    "zst bomb": ("tar.zst", lambda: COMPRESS["zst"](tar([member("a", bytes(100 * MIB))])), "times its size"),
    "zip bomb": ("zip", lambda: zipped([("a", bytes(100 * MIB), 0)]), "times its size"),
    "bomb behind the end": ("tar.gz", lambda: gzip.compress(tar([]) + bytes(100 * MIB)), "times its size"),
    "bomb of hard links": (
        "tar",
        lambda: tar([member("a", bytes(MIB)), *(hard(f"l{number}", "a") for number in range(300))]),
        "times its size",
    ),
    "zip that overlaps": ("zip", overlapping_zip, "overlaps another entry"),
    "zip that is a directory": ("zip", lambda: zip_of_directory_only(17 * MIB), "its directory is larger than 16 MiB"),
    "zip of extra fields": (
        "zip",
        lambda: zip_of_directory_only(15 * MIB, 65532),
        "more than 4 KiB of extra fields for an entry",
    ),
    "headers that are a bomb": (
        "tar.gz",
        lambda: gzip.compress(
            b"".join(
                raw(tarfile.GNUTYPE_LONGNAME, 2**20 - 2048, b"a" + bytes(2**20 - 2049)) + raw(tarfile.REGTYPE, 0)
                for _ in range(100)
            )
        ),
        "times its size",
    ),
    "records in each other": (
        "tar",
        lambda: raw(tarfile.XHDTYPE, 2**19, (b"2 " * 2**18)[:-1] + b"=") + raw(tarfile.REGTYPE, 0) + bytes(1024),
        "a header in it is damaged",
    ),
    "record without a length": ("tar", lambda: raw(tarfile.XHDTYPE, 9, b"x path=a\n"), "should be"),
    "size below 0": ("tar", lambda: raw(tarfile.REGTYPE, -512) + bytes(1024), "a size below 0"),
    "header without an entry": ("tar", lambda: raw(tarfile.GNUTYPE_LONGNAME, 3, b"abc") + bytes(1024), "it breaks off"),
    "sparse bomb": ("tar", lambda: sparse(2**40, b"0\n") + bytes(1024), "unpacks to more than"),
    "sparse file that goes back": ("tar", lambda: sparse(9, b"2\n5\n1\n2\n1\n" + b"x" * 1024), "goes back"),
    "sparse file of less": ("tar", lambda: sparse(0, b"1\n0\n5\n" + b"x" * 512), "goes back"),
    "sparse file of more": ("tar", lambda: sparse(9999, b"1\n0\n9999\n") + bytes(9999), "larger than the entry"),
    "sparse file's endless map": ("tar", lambda: sparse(9, b"9" * MIB), "map of a sparse file is damaged"),
    "sparse file's map beyond it": ("tar", lambda: sparse(0, b"300\n" + b"0\n0\n" * 300, 0), "larger than the entry"),
    "sparse file, truncated": ("tar", lambda: old_sparse(1), "it breaks off"),
    "long header": ("tar", endless_headers, "more than 1 MiB of headers"),
    "nested headers": ("tar", nested_headers, "is no valid tar"),
    "long name": ("tar", lambda: tar([member("x" * 300, b"x")]), "File name too long"),
    "deep name": ("tar", lambda: tar([member("x/" * 300 + "x", b"x")]), "directories deep"),
    "endless name": ("tar", lambda: tar([member("x/" * 100 + "y" * 5000, b"x")]), "more than 4000 characters"),
    "name with NUL": ("tar", lambda: tar([with_nul()], pax=True), "has a NUL in it"),
    "name of the folder itself": ("tar", lambda: tar([member("./", b"x")]), "in the place of the directory itself"),
    "truncated tar": ("tar", lambda: tar([member("a", bytes(5000))])[:2000], "is no valid tar"),
    "truncated tar, between two": ("tar", lambda: tar([member("a", bytes(512))])[:1024], "it breaks off"),
    "damaged header": ("tar", lambda: damaged(tar([member("a", bytes(512)), member("b")]), 1030), "is damaged"),
    "zip with a wrong checksum": ("zip", lambda: damaged(zipped([("a", b"x" * 99, 0)], zipfile.ZIP_STORED), 40), "CRC"),
    "bz2 bomb in a zip": ("zip", lambda: zipped([("a", bytes(9 * MIB), 0)], zipfile.ZIP_BZIP2), "another method"),
    "lzma in a zip": ("zip", lambda: zipped([("a", b"x", 0)], zipfile.ZIP_LZMA), "another method than deflate"),
    "zip without a name": ("zip", lambda: zipped([("", b"x", 0)]), "in the place of the directory itself"),
    "zip of another size": ("zip", lambda: resized(zipped([("a", b"x" * 99, 0)]), 98), "CRC"),
    "truncated zip": ("zip", lambda: zipped([("a", b"x", 0)])[:-5], "is no valid zip"),
    "encrypted zip": ("zip", lambda: damaged_flag(zipped([("a", b"x", 0)])), "is encrypted"),
    "empty": ("tar", lambda: b"", "is no valid tar"),
    "tar as zip": ("zip", lambda: tar(HONEST), "is no valid zip"),
    "zip as tar": ("tar", lambda: zipped([("a", b"x", 0)]), "is no valid tar"),
    "gz as xz": ("tar.xz", lambda: gzip.compress(tar(HONEST)), "is no valid tar.xz"),
    "text as gz": ("tar.gz", lambda: b"hello, world\n", "is no valid tar.gz"),
}


def silent_zip() -> bytes:
    """An entry of many blocks, each of them empty."""
    found = bytearray(zipped([("a", b"\0\0\0\xff\xff" * (17 * MIB // 5), 0)], zipfile.ZIP_STORED))
    for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        found[found.rindex(mark) + offset] = zipfile.ZIP_DEFLATED
    return bytes(found)


def silent(head: bytes, again: bytes) -> Callable[[], bytes]:
    return lambda: head + again * (17 * MIB // len(again))


EMPTY = {name: compress(b"") for name, compress in COMPRESS.items()}
SKIPPED = b"\x50\x2a\x4d\x18" + (100_000).to_bytes(4, "little") + b"x" * 100_000

# More than 16 MiB that unpack to nothing: the format's name, and the bytes.
SILENT: dict[str, tuple[str, Callable[[], bytes]]] = {
    **{f"{name}, frames": (name, silent(b"", EMPTY[name])) for name in COMPRESS},
    "gz, a name without end": ("gz", silent(b"\x1f\x8b\x08\x08\0\0\0\0\0\0", b"name")),
    "gz, padding": ("gz", silent(EMPTY["gz"], b"\0")),
    "gz, blocks": ("gz", silent(b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"\0\0\0\xff\xff")),
    "bz2, padding": ("bz2", silent(EMPTY["bz2"], b"\0")),
    "xz, padding": ("xz", silent(EMPTY["xz"], b"\0")),
    "zst, what is skipped": ("zst", silent(b"", SKIPPED)),
    "zst, blocks": ("zst", silent(b"\x28\xb5\x2f\xfd\0\x58", b"\0\0\0")),
    "lz4, what is skipped": ("lz4", silent(b"", SKIPPED)),
    "zip, blocks": ("zip", silent_zip),
}


def resized(data: bytes, size: int) -> bytes:
    """Say of the only entry that it unpacks to `size`."""
    found = bytearray(data)
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = found.index(mark) + offset
        found[at : at + 4] = size.to_bytes(4, "little")
    return bytes(found)


def with_nul() -> Member:
    info, content = member("a", b"x")
    info.pax_headers = {"path": "a\0b"}
    return info, content


def damaged_flag(data: bytes) -> bytes:
    """Say of the first entry that it is encrypted, in both of its headers."""
    found = bytearray(data)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        found[found.index(mark) + offset] |= 1
    return bytes(found)


def snapshot(top: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `top`: modes, and contents or targets."""
    found = {}
    for path in sorted(top.rglob("*")):
        state = path.lstat()
        content = b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(top))] = (state.st_mode, content)
    return found
