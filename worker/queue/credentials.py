"""Credentials of Taskcluster, which never show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol


class WireCredentials(Protocol):
    """The credentials inside of an answer: a task's, or those for the object service."""

    @property
    def client_id(self) -> str: ...
    @property
    def access_token(self) -> str: ...
    @property
    def certificate(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs a request. `certificate` is the JSON text that temporary credentials carry.

    `authorized_scopes` narrows what the requests may do; None leaves all that the client may.
    """

    client_id: str
    access_token: str = field(repr=False)
    certificate: str | None = field(default=None, repr=False)
    authorized_scopes: tuple[str, ...] | None = None

    @classmethod
    def from_wire(cls, credentials: WireCredentials) -> Credentials:
        """Those that came with a claim, a reclaim or an `object` artifact."""
        return cls(credentials.client_id, credentials.access_token, credentials.certificate or None)

    def limited_to(self, scopes: tuple[str, ...]) -> Credentials:
        """The same client, allowed `scopes` at most."""
        return replace(self, authorized_scopes=scopes)


# Read at every attempt of every call, so that fresh credentials reach the calls under way; None signs nothing.
CredentialsProvider = Callable[[], Credentials | None]
