"""Hawk signatures, as clients of Taskcluster write them: header and bewit (https://github.com/mozilla/hawk).

Pure: parses, normalises and compares; who the client is, and what it may do, is decided in `auth.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from worker.embedded.errors import AuthenticationFailed

MAX_HEADER = 64 * 1024
HEADER = re.compile(r"\s*Hawk\s+(.*)", re.IGNORECASE | re.DOTALL)
ATTRIBUTE = re.compile(r'\s*([a-z]+)="([^"\\]*)"\s*(?:,|$)')
KNOWN = frozenset({"id", "ts", "nonce", "hash", "ext", "mac", "app", "dlg"})
BEWIT = re.compile(r"([?&])bewit=([^&]*)&?")


@dataclass(frozen=True)
class Target:
    """What was signed of a request: its method, path with query, and where it went."""

    method: str
    resource: str
    host: str
    port: int


@dataclass(frozen=True)
class Signature:
    """The parts of a header or of a bewit. `kind` is `header` or `bewit`; `timestamp` is seconds since 1970."""

    kind: str
    client_id: str
    timestamp: int
    mac: str
    ext: str = ""
    nonce: str = ""
    payload_hash: str = ""
    app: str = ""
    dlg: str = ""

    def matches(self, key: str, target: Target) -> bool:
        """Whether the request was signed with `key`."""
        lines = [
            f"hawk.1.{self.kind}",
            str(self.timestamp),
            self.nonce,
            target.method.upper(),
            target.resource,
            target.host.lower(),
            str(target.port),
            self.payload_hash,
            self.ext,
        ]
        if self.app:
            lines += [self.app, self.dlg]
        text = "\n".join([*lines, ""])
        mac = hmac.digest(key.encode(), text.encode(), "sha256")
        return hmac.compare_digest(plain_base64(mac).encode(), self.mac.encode())


def parse_header(header: str) -> Signature:
    """The signature in an `Authorization` header. Raises AuthenticationFailed."""
    match = HEADER.fullmatch(header)
    if match is None or len(header) > MAX_HEADER:
        raise AuthenticationFailed("Bad header format: a Hawk signature is expected")
    found: dict[str, str] = {}
    rest = match[1]
    while rest:
        attribute = ATTRIBUTE.match(rest)
        if attribute is None or attribute[1] in found or attribute[1] not in KNOWN:
            raise AuthenticationFailed("Bad header format: an attribute of the Hawk signature cannot be read")
        found[attribute[1]] = attribute[2]
        rest = rest[attribute.end() :]
    if not {"id", "ts", "nonce", "mac"} <= found.keys() or not found["ts"].isdecimal():
        raise AuthenticationFailed("Missing attributes: id, ts, nonce and mac are needed")
    return Signature(
        kind="header",
        client_id=found["id"],
        timestamp=int(found["ts"]),
        mac=found["mac"],
        ext=found.get("ext", ""),
        nonce=found["nonce"],
        payload_hash=found.get("hash", ""),
        app=found.get("app", ""),
        dlg=found.get("dlg", ""),
    )


def split_bewit(resource: str) -> tuple[str, str | None]:
    """`resource` (path with query) without its bewit, and the bewit, or None where it has none."""
    match = BEWIT.search(resource)
    if match is None:
        return resource, None
    return (resource[: match.start()] + match[1] + resource[match.end() :]).rstrip("?&"), match[2]


def parse_bewit(bewit: str) -> Signature:
    """The signature in a bewit; its timestamp is the time at which it expires. Raises AuthenticationFailed."""
    try:
        text = decode_base64(bewit).decode()
        client_id, expires, mac, ext = text.split("\\")
        return Signature(kind="bewit", client_id=client_id, timestamp=int(expires), mac=mac, ext=ext)
    except ValueError:
        raise AuthenticationFailed("Invalid bewit encoding") from None


def payload_hash(body: bytes, content_type: str) -> str:
    """The hash that a header names for `body`."""
    kind = content_type.split(";")[0].strip().lower()
    digest = hashlib.sha256(f"hawk.1.payload\n{kind}\n".encode())
    digest.update(body)
    digest.update(b"\n")
    return plain_base64(digest.digest())


def host_and_port(host_header: str, scheme: str) -> tuple[str, int]:
    """The host and the port that the client signed, from its `Host` header. Raises AuthenticationFailed."""
    try:
        parts = urlsplit(f"//{host_header}")
        host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc
        return host.strip("[]"), parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        raise AuthenticationFailed("Invalid Host header") from None


def decode_base64(text: str) -> bytes:
    """`text` in either alphabet of base64, padded or not. Raises ValueError."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def plain_base64(octets: bytes) -> str:
    """`octets` in the alphabet with `+` and `/`, padded: signatures are compared in this one."""
    return base64.b64encode(octets).decode()
