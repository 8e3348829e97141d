"""Hawk signatures (https://github.com/mozilla/hawk, API.md, version 1) with Taskcluster's `ext`.

Made here with hmac, since mohawk takes 107 ms to sign 1 MB: it always hashes a payload that it is given. No payload
hash is sent: Taskcluster does not ask for it, and TLS protects the body. mohawk is the oracle of the tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from functools import lru_cache
from typing import Any

import httpx

from worker.queue.credentials import Credentials

# What may stand between the quotes of a header's attribute (RFC 7235, without what Hawk would have to escape).
_ATTRIBUTE = re.compile(r"[ !#-\[\]-~]*\Z")


@lru_cache(maxsize=256)
def hawk_ext(credentials: Credentials) -> str:
    """The certificate and the authorized scopes as Taskcluster wants them in `ext`; empty where there are none."""
    ext: dict[str, Any] = {}
    if credentials.certificate is not None:
        ext["certificate"] = json.loads(credentials.certificate)
    if credentials.authorized_scopes is not None:
        ext["authorizedScopes"] = list(credentials.authorized_scopes)
    return base64.urlsafe_b64encode(json.dumps(ext, separators=(",", ":")).encode()).decode() if ext else ""


def hawk_header(credentials: Credentials, method: str, url: httpx.URL, *, timestamp: int, nonce: str) -> str:
    """The value of `Authorization` for a request. `timestamp` is the server's time in seconds since 1970.

    Raises ValueError where the client id cannot stand in a header, or the certificate is not JSON.
    """
    ext = hawk_ext(credentials)
    mac = _mac("header", credentials, method, url, timestamp, nonce, ext)
    attributes = {"id": credentials.client_id, "ts": str(timestamp), "nonce": nonce, "ext": ext, "mac": mac}
    if not all(_ATTRIBUTE.match(value) for value in attributes.values()):
        raise ValueError("the client id or the nonce cannot stand in an Authorization header")
    return "Hawk " + ", ".join(f'{name}="{value}"' for name, value in attributes.items() if value)


def hawk_bewit(credentials: Credentials, url: httpx.URL, *, expires: int) -> str:
    """The `bewit` query parameter that lets anybody GET `url` until `expires`, in seconds since 1970."""
    ext = hawk_ext(credentials)
    mac = _mac("bewit", credentials, "GET", url, expires, "", ext)
    bewit = "\\".join((credentials.client_id, str(expires), mac, ext))
    return base64.urlsafe_b64encode(bewit.encode()).rstrip(b"=").decode()


def _mac(kind: str, credentials: Credentials, method: str, url: httpx.URL, time: int, nonce: str, ext: str) -> str:
    port = url.port or (443 if url.scheme == "https" else 80)
    where = (method.upper(), url.raw_path.decode(), url.host.lower(), str(port))
    payload_hash = ""
    lines = (f"hawk.1.{kind}", str(time), nonce, *where, payload_hash, ext, "")
    digest = hmac.digest(credentials.access_token.encode(), "\n".join(lines).encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()
