"""What an artifact's name says of its content: type and encoding, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from mimetypes import MimeTypes
from types import MappingProxyType
from typing import Literal

Encoding = Literal["gzip", "identity"]  # what a task may ask for
StoredEncoding = Literal["gzip", "identity", "zstd"]  # what a worker may be told to do where a task does not ask

_NO_RULES: Mapping[str, StoredEncoding] = MappingProxyType({})

UNKNOWN = "application/octet-stream"

# What the standard library does not know, knows as non-standard, or answers differently from one version to the next.
_ADDITIONS = {
    ".7z": "application/x-7z-compressed",
    ".aab": "application/octet-stream",
    ".apk": "application/vnd.android.package-archive",
    ".bz2": "application/x-bzip2",
    ".deb": "application/vnd.debian.binary-package",
    ".dmg": "application/x-apple-diskimage",
    ".gz": "application/gzip",
    ".jar": "application/java-archive",
    ".js": "text/javascript",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".tgz": "application/gzip",
    ".toml": "application/toml",
    ".webp": "image/webp",
    ".whl": "application/zip",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xpi": "application/x-xpinstall",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}

# Without arguments it would read the machine's own mime.types.
_TYPES = MappingProxyType({**MimeTypes(()).types_map[True], **_ADDITIONS})

# Source: `contentEncoding` in schemas/generic-worker/insecure_posix.json.
_COMPRESSED = """
    7z aab apk bz2 deb dmg flv gif gz jar jpeg jpg npz pkg png swf tbz tgz wasm webp whl woff woff2 xpi xz zip zst
"""
COMPRESSED = frozenset(_COMPRESSED.split())


def content_type_of(path: str) -> str:
    """The content type that the extension of `path` stands for."""
    return _TYPES.get(_extension(path), UNKNOWN)


def encoding_of(path: str, content_type: str = "", rules: Mapping[str, StoredEncoding] = _NO_RULES) -> StoredEncoding:
    """What the first of `rules` says that fits: an extension, `.log`, a type, `text/plain` or `text/*`, or `*`.

    Where none does it is `identity` for what is compressed already, else `gzip`.
    """
    extension, plain_type = _extension(path), content_type.partition(";")[0].strip().lower()
    for pattern, encoding in rules.items():
        if pattern in {"*", extension, plain_type} or (
            pattern.endswith("/*") and plain_type.startswith(pattern.removesuffix("*"))
        ):
            return encoding
    return "identity" if extension.removeprefix(".") in COMPRESSED else "gzip"


def _extension(path: str) -> str:
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    return f".{extension.lower()}" if dot else ""
