"""A queue that answers at once with what was written beforehand: `python -m bench.canned`.

It is there to not be the bottleneck: it verifies, stores and logs nothing, and understands no more of HTTP than what
a worker sends that reuses its connections. It counts: `GET /bench` tells what was claimed, reported and when,
`/bench/reported/N` and `/bench/waiting/N` how many tasks are reported, and claims wait, once there are N.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import click

from worker.ports import Ports
from worker.queue.wire import format_time
from worker.taskfile import complete_task

POLL = 20.0  # seconds that a claim waits for work, as the queue has it (facts page, 1)
CLAIM_LIFETIME = timedelta(hours=2)  # from the start on: longer than anything runs
WAIT = 5.0  # seconds that a question for a count waits for it

_HOST = "host.invalid"
_TASK_ID = "AAAAAAAAQACAAAAAAAAAAA"
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Account:
    """What happened, and when, in seconds since 1970. `claims` and `reports` are in the order in which they came;
    `claimed` is how many tasks each worker got."""

    claimed: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    claims: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)

    def to_json(self) -> bytes:
        """For `GET /bench`."""
        return json.dumps(vars(self)).encode()


class Canned:
    """The answers. `tasks` is how many there are to claim; more can be added with `POST /bench`."""

    def __init__(self, payload: dict[str, Any], tasks: int) -> None:
        self.account = Account()
        self.left = tasks
        self.more = asyncio.Event()
        self.changed = asyncio.Event()
        self.waiting = 0
        self._ids = Ports()
        documents = _documents(payload)
        self._claim, self._status = (json.dumps(document) for document in documents)
        self._artifacts = {
            "s3": json.dumps(
                {
                    "storageType": "s3",
                    "putUrl": f"http://{_HOST}/put?signature=0",
                    "expires": documents[1]["status"]["expires"],
                    "contentType": "text/plain; charset=utf-8",
                }
            ),
            **{name: json.dumps({"storageType": name}) for name in ("link", "reference", "error")},
        }

    async def answer(self, method: bytes, path: str, host: str, body: bytes) -> bytes:
        """The whole answer to a request. `host` is what it calls this server, which may be behind a proxy."""
        if method == b"PUT":
            self.account.calls["put"] += 1
            return _EMPTY
        if path.startswith("/bench/reported/"):
            return _json(b"%d" % await self._count(self.account.reported.total, path))
        if path.startswith("/bench/waiting/"):
            return _json(b"%d" % await self._count(lambda: self.waiting, path))
        if path == "/bench":
            return self._tell(body)
        name = path.rpartition("/")[2] if "/artifacts/" not in path else "artifact"
        if "/claim-work/" in path:
            name = "claim-work"
        self.account.calls[name] += 1
        if name == "artifact":
            return _json(self._artifacts[json.loads(body)["storageType"]].replace(_HOST, host).encode())
        if name == "claim-work":
            return _json(await self._claims(json.loads(body)))
        task_id = path.split("/task/")[1][:22] if "/task/" in path else ""
        if name in {"completed", "failed", "exception"}:
            self.account.reported[name] += 1
            self.account.reports.append(time.time())
            self.changed.set()
            return _json(self._status.replace(_TASK_ID, task_id).encode())
        if name == "reclaim":
            claim = json.loads(self._claim.replace(_TASK_ID, task_id))
            del claim["task"]
            return _json(json.dumps(claim).encode())
        if name == "status":  # of many
            ids = json.loads(body)["taskIds"]
            status = json.loads(self._status)["status"]
            return _json(json.dumps({"statuses": [{"taskId": each, "status": status} for each in ids]}).encode())
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

    def _tell(self, body: bytes) -> bytes:
        if body:
            self.left += json.loads(body)["tasks"]
            self.more.set()
        return _json(self.account.to_json())

    async def _count(self, count: Callable[[], int], path: str) -> int:
        """A count that is waited for to be as high as the path's last part."""
        at_least = int(path.rpartition("/")[2])
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT):
                while count() < at_least:
                    self.changed.clear()
                    await self.changed.wait()
        return count()

    async def _claims(self, asked: dict[str, Any]) -> bytes:
        if not self.left:
            await self._wait_for_more()
        number = min(asked["tasks"], self.left)
        self.left -= number
        self.account.claimed[asked["workerId"]] += number
        self.account.claims += [time.time()] * number
        claims = [self._claim.replace(_TASK_ID, self._ids.slug()) for _ in range(number)]
        return ('{"tasks":[' + ",".join(claims) + "]}").encode()

    async def _wait_for_more(self) -> None:
        self.more.clear()
        self.waiting += 1
        self.changed.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.more.wait(), POLL)
        finally:
            self.waiting -= 1


def _json(body: bytes) -> bytes:
    return _JSON % (len(body), body)


def _documents(payload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim, and the answer to a report, both of the task `_TASK_ID`."""
    ports = Ports()
    now = ports.now()
    pool = "bench/canned"
    task = complete_task({"payload": payload}, "bench", pool, now).to_wire()
    own = {"provisionerId": "bench", "workerType": "canned", "schedulerId": "-", "taskGroupId": _TASK_ID}
    run = {
        "runId": 0,
        "state": "running",
        "reasonCreated": "scheduled",
        "workerGroup": "bench",
        "workerId": "bench",
        "takenUntil": format_time(now + CLAIM_LIFETIME),
        "scheduled": format_time(now),
        "started": format_time(now),
    }
    status = {
        **own,
        "taskId": _TASK_ID,
        "taskQueueId": pool,
        "projectId": "none",
        "deadline": task["deadline"],
        "expires": task["expires"],
        "retriesLeft": 5,
        "state": "running",
        "runs": [run],
    }
    claim = {
        "status": status,
        "runId": 0,
        "workerGroup": "bench",
        "workerId": "bench",
        "takenUntil": run["takenUntil"],
        "task": {
            **own,
            "dependencies": [],
            "extra": {},
            "priority": "lowest",
            "projectId": "none",
            "requires": "all-completed",
            "retries": 5,
            "routes": [],
            "scopes": [],
            "tags": {},
            **task,
        },
        "credentials": {
            "clientId": f"task-client/{_TASK_ID}/0/on/bench/bench",
            "accessToken": "canned",
            "certificate": '{"version":1,"scopes":["assume:worker-id:bench/bench"],"start":1,"expiry":2,'
            '"seed":"canned","signature":"canned","issuer":"canned"}',
        },
    }
    return claim, {"status": {**status, "state": "completed"}}


class _Connection(asyncio.Protocol):
    """One request after the other; a worker sends no next one before it has its answer."""

    transport: asyncio.Transport

    def __init__(self, canned: Canned) -> None:
        self._canned = canned
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if len(rest) < int(_header(head, b"content-length") or 0):
            return
        self._buffer = b""
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        host = _header(head, b"host").decode()
        self._task = asyncio.create_task(self._answer(method, target.decode(), host, rest))

    async def _answer(self, method: bytes, path: str, host: str, body: bytes) -> None:
        self.transport.write(await self._canned.answer(method, path, host, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()


def _header(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip() if at >= 0 else b""


async def serve(port: int, payload: dict[str, Any], tasks: int) -> None:
    """Serve on the loopback interface until cancelled; the first line on stdout is the root URL."""
    loop = asyncio.get_running_loop()
    canned = Canned(payload, tasks)
    server = await loop.create_server(lambda: _Connection(canned), "127.0.0.1", port)
    root_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(f"TASKCLUSTER_ROOT_URL={root_url}\nTASKCLUSTER_CLIENT_ID=bench\nTASKCLUSTER_ACCESS_TOKEN=bench", flush=True)
    async with server:
        await server.serve_forever()


@click.command()
@click.option("--port", default=0)
@click.option("--payload", default="{}", help="The tasks', as JSON.")
@click.option("--tasks", default=0, help="How many there are to claim at first.")
def main(port: int, payload: str, tasks: int) -> None:
    """Serve canned answers."""
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(port, json.loads(payload), tasks))


if __name__ == "__main__":
    main()
