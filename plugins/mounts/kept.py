"""The downloads that are kept: what is on disk about them, and which of it can be trusted after a restart.

work_dir/downloads/NAME        the content
work_dir/downloads/NAME.json   what it is; written last and removed first, so who has none is nothing
work_dir/downloads/NAME.part   what there is of a download, with NAME.part.json where it may be gone on with
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.mounts.extraction import Unpacking, decompression
from plugins.mounts.transfer import Part, Validators

CHUNK = 1024 * 1024
PART = ".part"


@dataclass
class Entry:
    """A download that is complete. Those with `pins` are in use; `doomed` goes when nobody uses it any more."""

    path: Path
    address: str
    name: str
    sha256: str
    size: int
    validators: Validators
    last_used: float  # seconds since 1970
    pins: int = 0
    doomed: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """A part that nobody downloads to: its file's name, its bytes, and when it broke off, in seconds since 1970."""

    name: str
    size: int
    last_used: float


def stem_of(address: str) -> str:
    """What the names of the files of an address begin with."""
    return hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()[:32]


def sidecar(path: Path) -> Path:
    """Where is written what a file is."""
    return path.with_name(path.name + ".json")


def decoded(path: Path) -> Path:
    """Where a part's encoding is undone."""
    return path.with_name(path.name + ".decoded")


@dataclass
class Settled:
    """A complete download's content: the file that has it, and its hash."""

    path: Path
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


def settling(part: Part, limit: Unpacking, settled: Settled) -> Iterator[None]:
    """Undo the encoding and compute the hash, step by step."""
    if part.encoding:
        settled.path = part.path.with_name(part.path.name + ".decoded")
        settled.path.unlink(missing_ok=True)
        yield from decompression(part.path, part.encoding, settled.path, limit)
    with settled.path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            settled.digest.update(chunk)
            yield


def broken(folder: Path) -> list[Broken]:
    """The parts in a folder. Blocks."""
    found = []
    for path in folder.glob(f"*{PART}"):
        with suppress(OSError):
            state = path.stat()
            found.append(Broken(path.name, state.st_size, state.st_mtime))
    return found


def publish(content: Path, entry: Entry, part: Part) -> None:
    """Keep `content`, a part or what it was decoded to, as `entry`. Whatever happens, it is all there or nothing.

    Raises OSError; then `content` is where it was.
    """
    entry.size = content.stat().st_size
    known = {
        "address": entry.address,
        "name": entry.name,
        "sha256": entry.sha256,
        "size": entry.size,
        "etag": entry.validators.etag,
        "lastModified": entry.validators.last_modified,
        "place": entry.validators.place,
    }
    draft = _draft(sidecar(entry.path), known)  # first, since a full disk is noticed here
    try:
        _sync(content)
        content.replace(entry.path)
        os.utime(entry.path, (entry.last_used, entry.last_used))
        draft.replace(sidecar(entry.path))
        _sync(entry.path.parent)
    except BaseException:
        for path in (draft, sidecar(entry.path)):
            path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            entry.path.replace(content)
        raise
    with suppress(OSError):  # It is of no use any more, and does no harm.
        remove(part.path)


def save_part(part: Part) -> None:
    """Remember of a part what a later worker needs to go on with it."""
    decoded(part.path).unlink(missing_ok=True)
    validators = part.validators
    known = {"etag": validators.etag, "lastModified": validators.last_modified, "place": validators.place}
    _draft(sidecar(part.path), {**known, "encoding": part.encoding, "total": part.total}).replace(sidecar(part.path))
    _sync(part.path.parent)


def load_part(path: Path) -> Part:
    """The part of a download that was begun earlier; empty where there is none that can be gone on with."""
    try:
        saved = json.loads(sidecar(path).read_text())
        validators = Validators(saved["etag"], saved["lastModified"], saved.get("place", ""))
        return Part(path, path.stat().st_size, validators, str(saved["encoding"]), saved["total"], resumed=True)
    except (OSError, ValueError, KeyError, TypeError):
        return Part(path)


def load(folder: Path) -> list[Entry]:
    """What is in `folder`, made where it is missing; what is not whole is removed. Blocks. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = {path.name: path for path in folder.iterdir()}
    entries: dict[str, Entry] = {}
    used: set[str] = set()
    for name, path in sorted(paths.items()):
        if name.endswith(PART) and f"{name}.json" in paths:
            used |= {name, f"{name}.json"}
        elif not name.endswith(".json") and f"{name}.json" in paths and (entry := _entry(path)):
            other = entries.get(entry.address)
            if other is None or other.last_used <= entry.last_used:
                entries[entry.address] = entry
    used |= {name for entry in entries.values() for name in (entry.path.name, sidecar(entry.path).name)}
    for name in paths.keys() - used:
        with suppress(OSError):
            paths[name].unlink()
    return list(entries.values())


def _entry(path: Path) -> Entry | None:
    try:
        saved: dict[str, Any] = json.loads(sidecar(path).read_text())
        found = path.stat()
        validators = Validators(saved["etag"], saved["lastModified"], saved.get("place", ""))
        entry = Entry(path, saved["address"], saved["name"], saved["sha256"], saved["size"], validators, found.st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if found.st_size == entry.size else None


def remove(path: Path) -> None:
    """Remove a part, what it is first."""
    sidecar(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    decoded(path).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path, document: dict[str, Any]) -> Path:
    """What is to be at `path`, beside it; nothing where that fails."""
    draft = path.with_name(path.name + ".new")
    try:
        draft.write_text(json.dumps(document))
        _sync(draft)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft
