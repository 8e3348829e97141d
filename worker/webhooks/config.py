"""The part `webhooks` of the config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import httpx
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from worker.schema import Document
from worker.serving import ServingLimits, TlsConfig
from worker.webhooks.statelessdns import StatelessDnsConfig
from worker.webhooks.tunnelconfig import WebsocktunnelConfig

UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, not listened on
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _public(template: str) -> str:
    try:
        url = httpx.URL(template.replace("{port}", "1"))
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        raise ValueError("must be an http or https URL without query and fragment, with {port} where the port goes")
    return template


class WebhooksConfig(Document):
    """Where the web server listens, and how others reach it.

    local          where it listens, or through a proxy or a port mapping whose URL `public_url` is: requests are
                   passed on with their path below it; `{port}` in it stands for the port that the server listens on
    statelessDns   by a name that says this machine's public address
    websocktunnel  through a server to which the worker connects
    """

    provider: Literal["local", "statelessDns", "websocktunnel"] = "local"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    public_url: Annotated[str, AfterValidator(_public)] | None = None
    stateless_dns: StatelessDnsConfig | None = None
    websocktunnel: WebsocktunnelConfig | None = None
    tls: TlsConfig | None = None
    limits: ServingLimits = ServingLimits()
    access_log: bool = True

    @model_validator(mode="before")
    @classmethod
    def _with_section(cls, document: Any) -> Any:
        """With the section of its provider, so that each option that is missing in it is told with its path."""
        if not isinstance(document, dict):
            return document
        for name, provider in (("stateless_dns", "statelessDns"), ("websocktunnel", "websocktunnel")):
            if document.get("provider") == provider and not document.keys() & {name, provider}:
                return {**document, provider: {}}
        return document

    @field_validator("public_url", "stateless_dns", "websocktunnel")
    @classmethod
    def _of_its_provider(cls, value: Any, info: ValidationInfo) -> Any:
        owner = {"public_url": "local", "stateless_dns": "statelessDns"}.get(str(info.field_name), "websocktunnel")
        if value is not None and info.data.get("provider", owner) != owner:
            raise PydanticCustomError("provider", "expected nothing here: it is for provider {owner}", {"owner": owner})
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.provider == "local" and self.host in UNSPECIFIED and self.public_url is None:
            raise ValueError(f"host {self.host} is no address that others can use: publicUrl must name one")
        if self.provider == "statelessDns" and self.host in LOOPBACK:
            raise ValueError(f"host {self.host} is no address that others can use: 0.0.0.0 listens on all there are")
        return self

    def below(self, folder: Path) -> WebhooksConfig:
        """The same, with relative paths taken to be in `folder`."""
        return self.model_copy(update={"tls": self.tls and self.tls.below(folder)})

    def base_url(self, port: int) -> str:
        """The URL of the server that listens on `port`, for provider local, without a slash at its end."""
        template = self.public_url or self.url_of(self.host, "{port}")
        return template.replace("{port}", str(port)).rstrip("/")

    def url_of(self, host: str, port: int | str) -> str:
        """The URL of a host that is this machine."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
