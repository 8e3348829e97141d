"""Who is calling and what they may do: clients, temporary credentials (certificate v1), authorizedScopes."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.embedded import hawk
from worker.embedded.errors import AuthenticationFailed
from worker.embedded.scopes import satisfies
from worker.ports import Ports

CLOCK_SKEW = timedelta(minutes=15)
CERTIFICATE_GRACE = timedelta(minutes=5)
LONGEST_CERTIFICATE = timedelta(days=31)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
# By convention anybody may read what is published under public/.
ANONYMOUS_SCOPES = ("queue:get-artifact:public/*",)


@dataclass(frozen=True)
class Client:
    """A client that the queue knows, and its token."""

    client_id: str
    access_token: str = field(repr=False)
    scopes: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Identity:
    """A caller: `scopes` hold those of everybody too. `client_id` is empty for a caller without credentials."""

    client_id: str = ""
    scopes: tuple[str, ...] = ANONYMOUS_SCOPES
    expires: datetime = NEVER
    payload_hash: str = ""


class Certificate(BaseModel):
    """What a temporary credential carries with it, signed with its issuer's token; times are milliseconds."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True)

    version: int = Field(ge=1, le=1)
    scopes: list[str]
    start: int = Field(ge=0, le=253_370_764_800_000)
    expiry: int = Field(ge=0, le=253_370_764_800_000)
    seed: str = Field(min_length=44, max_length=44)
    signature: str
    issuer: str | None = None

    def signed_text(self, client_id: str) -> str:
        """What `signature` signs; `client_id` counts where the credential is a named one."""
        names = [] if self.issuer is None else [f"clientId:{client_id}", f"issuer:{self.issuer}"]
        times = [f"seed:{self.seed}", f"start:{self.start}", f"expiry:{self.expiry}"]
        return "\n".join([f"version:{self.version}", *names, *times, "scopes:", *self.scopes])


class Extension(BaseModel):
    """The `ext` of a signature. Some clients send the certificate as text, some as an object."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    certificate: Certificate | None = None
    authorized_scopes: list[str] | None = Field(default=None, alias="authorizedScopes")


def authenticate(
    clients: Mapping[str, Client], target: hawk.Target, authorization: str | None, now: datetime
) -> Identity:
    """The caller that signed `target` in a header or a bewit; nobody in particular where there is neither.

    Raises AuthenticationFailed. The payload hash is left to be compared by whoever has the payload.
    """
    resource, bewit = hawk.split_bewit(target.resource)
    if authorization is not None:
        signature = hawk.parse_header(authorization)
        if abs(now.timestamp() - signature.timestamp) > CLOCK_SKEW.total_seconds():
            raise AuthenticationFailed("Stale timestamp")
    elif bewit is not None:
        signature = hawk.parse_bewit(bewit)
        target = replace(target, resource=resource)
        if target.method.upper() not in {"GET", "HEAD"}:
            raise AuthenticationFailed("Invalid method: a bewit is good for GET")
        if signature.timestamp < now.timestamp():
            raise AuthenticationFailed("Access expired")
    else:
        return Identity()
    return _identify(clients, signature, target, now)


def _identify(clients: Mapping[str, Client], signature: hawk.Signature, target: hawk.Target, now: datetime) -> Identity:
    extension = _extension(signature.ext)
    certificate = extension.certificate
    if certificate is None:
        client = _known(clients, signature.client_id)
        expires = NEVER
    else:
        issuer = _known(clients, certificate.issuer or signature.client_id)
        client = _temporary(issuer, signature.client_id, certificate, now)
        expires = _moment(certificate.expiry)
    if not signature.matches(client.access_token, replace(target, method=target.method.upper())):
        raise AuthenticationFailed("Bad mac")
    scopes = client.scopes
    if extension.authorized_scopes is not None:
        if not all(satisfies(scopes, scope) for scope in extension.authorized_scopes):
            raise AuthenticationFailed("ext.authorizedScopes oversteps your scopes")
        scopes = tuple(extension.authorized_scopes)
    return Identity(
        client_id=client.client_id,
        scopes=tuple(dict.fromkeys((*scopes, *ANONYMOUS_SCOPES))),
        expires=expires,
        payload_hash=signature.payload_hash,
    )


def _known(clients: Mapping[str, Client], client_id: str) -> Client:
    client = clients.get(client_id)
    if client is None:
        raise AuthenticationFailed(f"No such client: {client_id!r}")
    return client


def _extension(ext: str) -> Extension:
    if not ext:
        return Extension()
    try:
        document: Any = json.loads(hawk.decode_base64(ext))
        if isinstance(document, dict) and isinstance(document.get("certificate"), str):
            document["certificate"] = json.loads(document["certificate"])
        return Extension.model_validate(document)
    except (ValueError, ValidationError, RecursionError):
        raise AuthenticationFailed("Failed to parse ext") from None


def _temporary(issuer: Client, client_id: str, certificate: Certificate, now: datetime) -> Client:
    start, expiry = _moment(certificate.start), _moment(certificate.expiry)
    if start > now + CERTIFICATE_GRACE:
        raise AuthenticationFailed("ext.certificate.start > now")
    if expiry < now - CERTIFICATE_GRACE:
        raise AuthenticationFailed("ext.certificate.expiry < now")
    if expiry - start > LONGEST_CERTIFICATE:
        raise AuthenticationFailed("ext.certificate cannot last longer than 31 days")
    if certificate.issuer is not None:
        if certificate.issuer == client_id:
            raise AuthenticationFailed("ext.certificate.issuer must differ from the supplied clientId")
        if not satisfies(issuer.scopes, f"auth:create-client:{client_id}"):
            raise AuthenticationFailed("ext.certificate.issuer does not have auth:create-client for the clientId")
    expected = _sign(issuer.access_token, certificate.signed_text(client_id))
    if not hmac.compare_digest(expected.encode(), certificate.signature.encode()):
        raise AuthenticationFailed("ext.certificate.signature is not valid")
    if not all(satisfies(issuer.scopes, scope) for scope in certificate.scopes):
        raise AuthenticationFailed("ext.certificate issuer does not have the scopes of the certificate")
    return Client(client_id, _temporary_token(issuer, certificate.seed), tuple(certificate.scopes))


def issue(
    ports: Ports, issuer: Client, client_id: str, scopes: Iterable[str], start: datetime, expiry: datetime
) -> dict[str, str]:
    """Temporary credentials named `client_id`, as they are written on the wire: `certificate` is text."""
    certificate = Certificate(
        version=1,
        scopes=list(scopes),
        # Earlier by the tolerance of clocks, as the services do it.
        start=_milliseconds(start - CERTIFICATE_GRACE),
        expiry=_milliseconds(expiry),
        seed=ports.slug() + ports.slug(),
        signature="",
        issuer=issuer.client_id,
    )
    certificate.signature = _sign(issuer.access_token, certificate.signed_text(client_id))
    return {
        "clientId": client_id,
        "accessToken": _temporary_token(issuer, certificate.seed),
        "certificate": json.dumps(certificate.model_dump(exclude_none=True), separators=(",", ":")),
    }


def _sign(key: str, text: str) -> str:
    return hawk.plain_base64(hmac.digest(key.encode(), text.encode(), "sha256"))


def _temporary_token(issuer: Client, seed: str) -> str:
    octets = hmac.new(issuer.access_token.encode(), seed.encode(), sha256).digest()
    return hawk.plain_base64(octets).replace("+", "-").replace("/", "_").rstrip("=")


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
