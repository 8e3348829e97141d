"""The part `webhooks.websocktunnel` of the config file."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import httpx
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from worker.quantities import Duration
from worker.schema import Document

FACTOR, SPREAD = 1.5, 0.5  # of the waits between attempts


def _server(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in {"ws", "wss", "http", "https"} or not url.host or url.query or url.fragment or url.userinfo:
        raise PydanticCustomError("url", "expected the URL of a websocktunnel server: wss, ws, https or http, no query")
    return text


def _not_short(value: timedelta) -> timedelta:
    if value < timedelta(milliseconds=100):
        raise PydanticCustomError("duration", "expected 100 milliseconds at least")
    return value


Interval = Annotated[Duration, AfterValidator(_not_short)]


class ReconnectConfig(Document):
    """The mean wait before the first attempt, and the longest before any."""

    first: Interval = timedelta(milliseconds=500)
    longest: Interval = timedelta(minutes=1)


class WebsocktunnelConfig(Document):
    """Which tunnel server, and who we are to it.

    A worker starts without a tunnel when there is none within `connect_within`.
    """

    url: Annotated[str, AfterValidator(_server)]
    audience: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,38}$")]
    client_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_~.-]{0,127}$")] | None = None
    connect_within: Duration = timedelta(seconds=30)
    ping_interval: Interval = timedelta(seconds=20)
    reconnect: ReconnectConfig = ReconnectConfig()

    def scope(self, client_id: str) -> str:
        """What the worker's client needs to get a token for `client_id`."""
        return f"auth:websocktunnel-token:{self.audience}/{client_id}"

    @property
    def websocket_url(self) -> httpx.URL:
        """Where to connect to."""
        url = httpx.URL(self.url)
        scheme = {"http": "ws", "https": "wss"}.get(url.scheme, url.scheme)
        return url.copy_with(scheme=scheme, path=url.path.rstrip("/") + "/")

    def likely_base(self, client_id: str) -> str:
        """The base URL that the server will probably grant."""
        url = self.websocket_url
        return str(url.copy_with(scheme="https" if url.scheme == "wss" else "http")) + client_id


def default_client_id(worker_group: str, worker_id: str) -> str:
    """The client id of a worker that is told none: of the form for which deployments grant scopes to workers."""
    return f"{worker_group}.{worker_id}.webhooks"


def next_wait(before: float, config: ReconnectConfig, jitter: float) -> float:
    """Seconds to wait for the next attempt: 1.5 ± 0.5 times as long as `before`; 0 begins anew. `jitter` is 0 to 1."""
    first, longest = config.first.total_seconds(), config.longest.total_seconds()
    mean, unit = (FACTOR * before, before) if before else (first, first)
    return min(longest, mean + SPREAD * unit * (2 * jitter - 1))
