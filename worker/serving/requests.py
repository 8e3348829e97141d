"""Which requests are refused before an application sees them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import h11

from worker.serving.limits import ServingLimits

Headers = Sequence[tuple[bytes, bytes]]
Refusal = tuple[int, list[tuple[bytes, bytes]]]  # status and headers

WEBSOCKET_VERSION = b"13"
KEY_BYTES = 16
FRAMING = 4  # bytes of a header beyond its name and value


def refusal(request: h11.Request, limits: ServingLimits) -> Refusal | None:
    """With what to refuse a request, or None for one that is right."""
    headers = list(request.headers)
    size = len(request.target) + sum(len(name) + len(value) + FRAMING for name, value in headers)
    if size > limits.headers:
        return 431, []
    if not request.http_version.startswith(b"1."):
        return 505, []
    if request.method == b"CONNECT" or not origin_form(request.target).startswith(b"/"):
        return 400, []
    if tokens(headers, b"transfer-encoding") and tokens(headers, b"content-length"):
        return 400, []  # two readers could see two requests (RFC 9112, 6.3)
    if any(int(length) > limits.request_body for length in tokens(headers, b"content-length")):
        return 413, []
    if wants_websocket(request):
        return _websocket_refusal(request.http_version, headers)
    return None


def wants_websocket(request: h11.Request) -> bool:
    """Whether a request asks for a websocket (RFC 6455, 4.2.1)."""
    headers = list(request.headers)
    upgrades = b"upgrade" in tokens(headers, b"connection")
    return request.method == b"GET" and upgrades and b"websocket" in tokens(headers, b"upgrade")


def _websocket_refusal(http_version: bytes, headers: Headers) -> Refusal | None:
    # RFC 6455, 4.2.1, 4.2.2 and 4.4
    if tokens(headers, b"sec-websocket-version") != [WEBSOCKET_VERSION]:
        return 426, [(b"sec-websocket-version", WEBSOCKET_VERSION)]
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    has_body = tokens(headers, b"transfer-encoding") or tokens(headers, b"content-length") not in ([], [b"0"])
    readable = all(value.isascii() for name, value in headers if name in {b"connection", b"sec-websocket-protocol"})
    if http_version != b"1.1" or len(keys) != 1 or not _is_key(keys[0]) or has_body or not readable:
        return 400, []
    return None


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == KEY_BYTES
    except binascii.Error:
        return False


def tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The comma-separated values of all headers of that name, in lower case."""
    values = b",".join(value for key, value in headers if key == name)
    return [token for part in values.split(b",") if (token := part.strip().lower())]


def origin_form(target: bytes) -> bytes:
    """The path and query of a target that may be a whole URL (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        return target
    return b"/" + rest.partition(b"/")[2]
