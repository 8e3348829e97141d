"""The part `webhooks` of the config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import httpx
from pydantic import AfterValidator, Field, model_validator

from worker.schema import Document
from worker.serving import ServingLimits, TlsConfig

Provider = Literal["local", "statelessDns", "websocktunnel"]
UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, not listened on


def _available(provider: Provider) -> Provider:
    if provider != "local":
        raise ValueError(f"{provider} is not available yet; the one provider is local, with a publicUrl where needed")
    return provider


def _public(template: str) -> str:
    try:
        url = httpx.URL(template.replace("{port}", "1"))
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        raise ValueError("must be an http or https URL without query and fragment, with {port} where the port goes")
    return template


class WebhooksConfig(Document):
    """Where the web server listens, and under which URL others reach it.

    `publicUrl` is for a server behind a proxy or a port mapping, which passes requests on with their path below that
    URL; `{port}` in it stands for the port that the server listens on.
    """

    provider: Annotated[Provider, AfterValidator(_available)] = "local"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    public_url: Annotated[str, AfterValidator(_public)] | None = None
    tls: TlsConfig | None = None
    limits: ServingLimits = ServingLimits()
    access_log: bool = True

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.host in UNSPECIFIED and self.public_url is None:
            raise ValueError(f"host {self.host} is no address that others can use: publicUrl must name one")
        return self

    def below(self, folder: Path) -> WebhooksConfig:
        """The same, with relative paths taken to be in `folder`."""
        return self.model_copy(update={"tls": self.tls and self.tls.below(folder)})

    def base_url(self, port: int) -> str:
        """The URL of the server that listens on `port`, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "http" if self.tls is None else "https"
        template = self.public_url or f"{scheme}://{host}:{{port}}"
        return template.replace("{port}", str(port)).rstrip("/")
