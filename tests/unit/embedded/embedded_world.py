"""What the tests of the embedded queue share: a queue in this process, and its clients, official and plain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import taskcluster
import taskcluster.exceptions
import trio
from mohawk import Sender

from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.embedded.times import to_wire
from worker.ports import Ports

T = TypeVar("T")
ROOT_URL = "http://queue.test"
WORKER = {"workerGroup": "group", "workerId": "worker-1"}
POOL = "test-provisioner/test-worker"


class InlinePorts(Ports):
    """Virtual time: the wall clock follows Trio's clock, and what would go to a thread runs at once."""

    START = datetime(2026, 1, 31, tzinfo=UTC)

    def now(self) -> datetime:
        return self.START + timedelta(seconds=trio.current_time() - self._start)

    def __init__(self) -> None:
        super().__init__()
        self._start = trio.current_time()

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)


@dataclass(frozen=True)
class Api:
    """Calls methods of the services in this process, signed. An answer of any status is returned."""

    queue: EmbeddedQueue
    ports: Ports
    credentials: Mapping[str, str] | None = None
    extension: Mapping[str, Any] | None = None

    def as_client(self, credentials: Mapping[str, str] | None) -> Api:
        """The same with other credentials, or with none."""
        return replace(self, credentials=credentials)

    async def call(self, service: str, method: str, *args: object) -> httpx.Response:
        """Call `method`; its body, if it takes one, is the last of `args`."""
        client = getattr(taskcluster, service)({"rootUrl": ROOT_URL})
        entry = client.funcinfo[method]
        url = client.buildUrl(method, *args)
        content = taskcluster.utils.dumpJson(args[-1]).encode() if "input" in entry else b""
        return await self.send(entry["method"].upper(), url, content)

    async def send(self, method: str, url: str, content: bytes = b"", **headers: str) -> httpx.Response:
        """Send a request that is signed, if there are credentials."""
        kind = "application/json" if content else ""
        sent = {"Content-Type": kind, **headers} if content else dict(headers)
        if self.credentials is not None:
            sent["Authorization"] = self.sign(method, url, content, kind)
        transport = httpx.ASGITransport(app=self.queue.app)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, url, content=content, headers=sent)

    def sign(self, method: str, url: str, content: bytes, kind: str) -> str:
        """The header, at the time of the ports, by the oracle that the official client uses."""
        assert self.credentials is not None
        options = {"rootUrl": ROOT_URL, "credentials": dict(self.credentials), **(self.extension or {})}
        ext = taskcluster.Queue(options).makeHawkExt()
        sender = Sender(
            {"id": self.credentials["clientId"], "key": self.credentials["accessToken"], "algorithm": "sha256"},
            url,
            method,
            content=content,
            content_type=kind,
            ext=ext.decode() if ext else None,
            _timestamp=int(self.ports.now().timestamp()),
        )
        return str(sender.request_header)

    async def create(self, task_id: str | None = None, **changes: Any) -> str:
        """Create a task that succeeds to be created; returns its id."""
        task_id = task_id or self.ports.slug()
        answer = await self.call("Queue", "createTask", task_id, definition(self.ports.now(), **changes))
        assert answer.status_code == 200, answer.text
        return task_id

    async def claim(self, tasks: int = 1, pool: str = POOL, **changes: Any) -> list[dict[str, Any]]:
        """Claim work."""
        answer = await self.call("Queue", "claimWork", pool, {**WORKER, "tasks": tasks, **changes})
        assert answer.status_code == 200, answer.text
        claims: list[dict[str, Any]] = answer.json()["tasks"]
        return claims

    async def status(self, task_id: str) -> dict[str, Any]:
        """A task's status."""
        status: dict[str, Any] = (await self.call("Queue", "status", task_id)).json()["status"]
        return status


def definition(now: datetime, **changes: Any) -> dict[str, Any]:
    """A task's definition as small as it can be, with `changes`; None leaves a property out."""
    whole = {
        "taskQueueId": POOL,
        "created": to_wire(now),
        "deadline": to_wire(now + timedelta(hours=1)),
        "expires": to_wire(now + timedelta(days=1)),
        "payload": {},
        "metadata": {"name": "n", "description": "d", "owner": "o@example.com", "source": "https://example.com/"},
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def root_credentials(queue: EmbeddedQueue) -> dict[str, str]:
    """The root client's, as clients take them."""
    return {"clientId": queue.credentials.client_id, "accessToken": queue.credentials.access_token}


@asynccontextmanager
async def virtual_queue(
    *, data: Path | None = None, claim_timeout: timedelta = timedelta(minutes=20)
) -> AsyncIterator[Api]:
    """A queue in virtual time, and its root client."""
    ports = InlinePorts()
    queue = EmbeddedQueue(ports, data=data, claim_timeout=claim_timeout)
    queue.root_url = ROOT_URL
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        yield Api(queue, ports, root_credentials(queue))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def real_queue(**options: Any) -> AsyncIterator[EmbeddedQueue]:
    """A queue on a socket, in real time."""
    async with open_embedded_queue(Ports(), **options) as queue:
        yield queue


def official(queue: EmbeddedQueue, service: str = "Queue", **options: Any) -> Any:
    """The official client of a service, which blocks, with the root client's credentials."""
    return getattr(taskcluster, service)(
        {"rootUrl": queue.root_url, "credentials": root_credentials(queue), "maxRetries": 0, **options}
    )


async def in_thread(function: Callable[..., T], *args: object, **options: object) -> T:
    """Run what blocks beside the loop that serves it."""
    return await trio.to_thread.run_sync(partial(function, *args, **options), abandon_on_cancel=False)
