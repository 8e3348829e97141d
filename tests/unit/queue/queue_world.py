"""A deployment whose answers a test scripts: no sockets, so that virtual time may pass."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx

from worker.http import open_http
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.retry import RetryPolicy

ROOT_URL = "https://tc.example.com"
NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
CREDENTIALS = Credentials("worker/1", "topsecret-token", '{"signature":"topsecret-signature"}')

Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


class ScriptedPorts(Ports):
    """The answers of `handler`, a clock that stands until it is set, and seeded randomness."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.random = random.Random(0)
        self.handler = handler
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(self.handler)


@asynccontextmanager
async def scripted(handler: Handler, policy: RetryPolicy | None = None) -> AsyncGenerator[Deployment, None]:
    ports = ScriptedPorts(handler)
    async with open_http(ports) as http:
        yield Deployment(ROOT_URL, http, ports, policy)


def answers(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A handler that gives these answers in turn, the last one for ever, and the requests that it saw."""
    seen: list[httpx.Request] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        answer = responses[min(len(seen), len(responses) - 1)]
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    return handle, seen


def date_header(offset: timedelta) -> dict[str, str]:
    """The header of a server whose clock is ahead by `offset`."""
    return {"Date": format_datetime(NOW + offset, usegmt=True)}
