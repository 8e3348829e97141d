"""Every step of an upload with every fault, once and for good, between the worker's code and the embedded queue.

A task is completed only if everything that it made can be fetched and is equal; else it is resolved as it should be,
and its log says why.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import h11
import httpx
import pytest
import trio
from artifacts_world import file, generic

from plugins.artifacts import Artifacts
from plugins.artifacts.plugin import ArtifactsConfig
from worker.disk import Disk
from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.http import Kind, Kinds, open_http
from worker.model import RunKey, State
from worker.outcome import resolve
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.errors import QueueError
from worker.queue.models import CreateTaskRequest, TaskDefinition
from worker.queue.retry import RetryPolicy
from worker.queue.services import Queue
from worker.queue.upload import DeploymentStorage
from worker.run import Run
from worker.services import Services
from worker.tasklog import open_tasklog
from worker.testing.faultyproxy import Break, Fault, FaultyProxy, open_faulty_proxy
from worker.testing.results import FolderResult
from worker.testing.runs import IDENTITY, log_text
from worker.trash import open_trash

BIG = os.urandom(300_000)
SMALL = b"some text\n"
STALL = 0.4  # seconds; real ones, since there are real sockets
QUICK = RetryPolicy(attempts=3, first=0.001, longest=0.001, retry_after=0.01)
POOL = "proj-test/native"

Wanted = Callable[[h11.Request], bool]


def call(method: bytes, service: bytes) -> Wanted:
    """A call about the big file."""
    path = b"/api/" + service + b"/v1/"
    return lambda request: request.method == method and request.target.startswith(path) and b"big" in request.target


def is_put(request: h11.Request) -> bool:
    return request.target.startswith(b"/blobs/") and (b"content-length", b"300000") in list(request.headers)


def is_report(request: h11.Request) -> bool:
    return request.target.endswith(b"/completed")


STEPS: dict[str, Wanted] = {
    "create": call(b"POST", b"queue"),
    "createUpload": call(b"PUT", b"object"),
    "put at 0 %": is_put,
    "put at 50 %": is_put,
    "put at 100 %": is_put,
    "finishUpload": call(b"POST", b"object"),
    "finishArtifact": call(b"PUT", b"queue"),
    "report": is_report,
}
ONCE = "object once"  # as Taskcluster's queue, which refuses to create an object again
OF_S3 = ("create", "put at 0 %", "put at 50 %", "put at 100 %", "report")
SHARES = {"put at 0 %": 0.0, "put at 50 %": 0.5}
UNHEARD = ("reset", "stall", "truncated")  # done, at 100 %, and the answer is lost
PASSING = (*UNHEARD, "500", "503")
FAULTS = (*PASSING, "400", "403", "409", "413")


def fault_of(name: str, step: str) -> Fault:
    at = SHARES.get(step, 1.0)
    match name:
        case "reset":
            return Fault(Break.RESET, at)
        case "stall":
            return Fault(Break.STALL, at)
        case "truncated":
            return Fault(Break.LOST, at)
        case "503":
            return Fault(Break.STATUS, at, 503, (("Retry-After", "0"),))
        case _:
            return Fault(Break.STATUS, at, int(name))


def is_mended(storage: str, step: str, fault: str) -> bool:
    """Whether a fault that happens once does no harm."""
    if storage == ONCE and step == "create" and fault in UNHEARD:
        return False
    if storage == ONCE and fault == "403" and not step.startswith("put"):
        return False
    if fault in PASSING:
        return True
    # A fresh URL, fresh credentials, or the data once more.
    mending = {"createUpload": {"403"}, "finishUpload": {"400", "403"}}
    return fault in ({"400", "403"} if step.startswith("put") else mending.get(step, set()))


@dataclass
class Case:
    """What became of a run: at the queue, by the worker's verdict, and in the log."""

    state: str
    reason: str | None
    decided: State
    message: str
    log: str
    fetched: dict[str, bytes]


@dataclass
class Place:
    """A claimed run, on a queue behind a proxy."""

    embedded: EmbeddedQueue
    proxy: FaultyProxy
    services: Services
    deployment: Deployment
    key: RunKey
    task: TaskDefinition
    credentials: list[Credentials]
    admin: Queue
    parallelism: int = 10

    @property
    def queue(self) -> Queue:
        return Queue(self.deployment, lambda: self.credentials[-1])

    async def run(self, folder: Path) -> Case:
        """Upload, decide and report, as a worker does."""
        async with open_tasklog(self.services.ports, folder / "task.log") as log:
            payload = generic(
                file("big", name="public/big", contentEncoding="identity"), file("small", name="public/small")
            )
            run = Run(self.key, self.task, payload, log, self.queue, lambda cause: None)
            plugin = Artifacts(ArtifactsConfig(parallelism=self.parallelism), self.services)
            async with plugin.worker_scope(), plugin.task_scope(run) as hooks:
                verdict = await hooks.stopped(FolderResult(folder / "task"))
            resolution = resolve(verdict, None)
            try:
                match resolution.state:
                    case State.COMPLETED:
                        await self.queue.report_completed(self.key)
                    case State.FAILED:
                        await self.queue.report_failed(self.key)
                    case _:
                        assert resolution.reason is not None
                        await self.queue.report_exception(self.key, resolution.reason)
            except QueueError:
                pass  # the queue has its say about the run
            text = await log_text(run)
        status = (await self.admin.status(self.key.task_id)).runs[0]
        async with httpx.AsyncClient(transport=self.services.ports.transport(30)) as client:
            fetched = {name: await self.fetch(client, name) for name in ("public/big", "public/small")}
        return Case(
            status.state,
            status.reason_resolved,
            resolution.state,
            resolution.message,
            text,
            {name: content for name, content in fetched.items() if content is not None},
        )

    async def fetch(self, client: httpx.AsyncClient, name: str) -> bytes | None:
        try:
            place = await self.admin.get_artifact(self.key, name)
        except QueueError:
            return None
        answer = await client.get(place.url)
        return answer.content if answer.status_code == 200 else None


@asynccontextmanager
async def open_place(folder: Path, storage: str) -> AsyncGenerator[Place, None]:
    ports = Ports()
    (folder / "task").mkdir()
    (folder / "work").mkdir()
    (folder / "task/big").write_bytes(BIG)
    (folder / "task/small").write_bytes(SMALL)
    kind = Kind(connections=8, stall=STALL)
    async with (
        open_embedded_queue(ports, objects_once=storage == ONCE) as embedded,
        open_faulty_proxy(int(embedded.root_url.rpartition(":")[2])) as proxy,
        open_http(ports, Kinds(kind, kind, kind, kind)) as http,
        open_http(ports) as patient,
        open_trash(ports, folder / "work", trio.Event()) as trash,
    ):
        embedded.root_url = proxy.url
        root = Credentials(embedded.credentials.client_id, embedded.credentials.access_token)
        admin = Queue(Deployment(proxy.url, patient, ports), lambda: root)
        task_id, now = ports.slug(), ports.now()
        await admin.create_task(task_id, CreateTaskRequest.model_validate(_task(now)))
        (claim,) = (await admin.claim_work(POOL, "local", "w1", 1)).tasks
        services = Services(
            IDENTITY,
            ports,
            http,
            cast("Any", None),
            folder / "work",
            trash,
            Disk(ports, folder / "work", trash, 0, 0),
            timedelta(seconds=5),
            DeploymentStorage(http, ports, "s3" if storage == "s3" else "object", QUICK),
        )
        deployment = Deployment(proxy.url, http, ports, QUICK)
        credentials = [Credentials.from_wire(claim.credentials)]
        yield Place(embedded, proxy, services, deployment, RunKey(task_id, 0), claim.task, credentials, admin)


def _task(now: Any) -> dict[str, Any]:
    metadata = {"name": "n", "description": "d", "owner": "nobody@example.com", "source": "https://example.com/"}
    deadline = now + timedelta(hours=1)
    return {"taskQueueId": POOL, "created": now, "deadline": deadline, "metadata": metadata, "payload": {}}


def cases(*often: str) -> list[Any]:
    """All of them; those with other faults than `often` are run by `make test-full`."""

    def marks(storage: str, step: str, fault: str) -> list[pytest.MarkDecorator]:
        another = storage != ONCE or step in {"create", "createUpload", "finishUpload"}
        return [] if fault in often and another else [pytest.mark.full]

    return [
        pytest.param(storage, step, fault, id=f"{storage} {step} {fault}", marks=marks(storage, step, fault))
        for storage in ("s3", "object", ONCE)
        for step in STEPS
        if storage != "s3" or step in OF_S3
        for fault in FAULTS
    ]


@pytest.mark.parametrize(("storage", "step", "fault"), cases("reset", "403"))
async def test_a_fault_that_passes(tmp_path: Path, storage: str, step: str, fault: str) -> None:
    async with open_place(tmp_path, storage) as place:
        place.proxy.break_next(STEPS[step], fault_of(fault, step))
        case = await place.run(tmp_path)
        assert place.proxy.broken == 1
        check(case, step, fault, mended=is_mended(storage, step, fault))


@pytest.mark.parametrize(("storage", "step", "fault"), cases("409", "truncated"))
async def test_a_fault_that_stays(tmp_path: Path, storage: str, step: str, fault: str) -> None:
    async with open_place(tmp_path, storage) as place:
        place.proxy.break_next(STEPS[step], fault_of(fault, step), times=10**6)
        case = await place.run(tmp_path)
        check(case, step, fault, mended=False)


def check(case: Case, step: str, fault: str, *, mended: bool) -> None:
    # Whatever happened: completed means that everything is there and equal.
    if case.state == "completed":
        assert case.fetched == {"public/big": BIG, "public/small": SMALL}
    # The other artifact is not hurt.
    assert case.fetched["public/small"] == SMALL
    if step == "report":
        # The worker has decided; whether the queue has heard of it is the queue's.
        assert case.decided is State.COMPLETED
        assert not mended or case.state == "completed"
        return
    if mended:
        assert case.state == "completed"
        assert "[taskcluster:error]" not in case.log
        return
    # Only a queue that says from the beginning that it has another artifact of that name blames the task for that.
    if fault == "409" and step == "create":
        assert case.state == "failed"
    else:
        assert (case.state, case.reason) == ("exception", "resource-unavailable")
    assert f"[taskcluster:error] {case.message}\n" in case.log
    assert case.message.startswith("artifact public/big was not uploaded: ")
    assert "signature=" not in case.log  # a presigned URL's


class Expiry:
    """Refuses, from `begin` on, what is signed with credentials that were used before, unless it goes to `spared`."""

    def __init__(self, spared: bytes | None) -> None:
        self._spared = spared
        self._seen: set[bytes] = set()
        self._begun = False

    def begin(self) -> None:
        self._begun = True

    def refuses(self, request: h11.Request) -> bool:
        # What the signature carries as `ext` has the certificate, which the root client has not.
        match = re.search(rb'ext="([^"]+)"', dict(request.headers).get(b"authorization", b""))
        if match is None or (self._spared is not None and request.target.startswith(self._spared)):
            return False
        if not self._begun:
            self._seen.add(match[1])
        return self._begun and match[1] in self._seen


@pytest.mark.parametrize(
    ("storage", "step"),
    [
        ("s3", "put at 50 %"),
        ("object", "put at 50 %"),
        ("object", "finishUpload"),
        ("object", "finishArtifact"),
        (ONCE, "put at 50 %"),
        (ONCE, "finishArtifact"),
    ],
)
async def test_credentials_that_expire_during_the_upload_are_replaced(tmp_path: Path, storage: str, step: str) -> None:
    async with open_place(tmp_path, storage) as place:
        place.parallelism = 1  # no other call is under way with the old ones
        fresh = Credentials.from_wire((await place.admin.reclaim(place.key)).credentials)
        # Where an object is created once, its own credentials are for a day.
        expiry = Expiry(b"/api/object/" if storage == ONCE else None)

        def expire(request: h11.Request) -> bool:
            if not STEPS[step](request):
                return False
            place.credentials[:] = [fresh]
            expiry.begin()
            return True

        place.proxy.break_next(expiry.refuses, Fault(Break.STATUS, 1, 401), times=10**6)
        place.proxy.break_next(expire, Fault(Break.STATUS, 0.5, 403 if step.startswith("put") else 500))
        case = await place.run(tmp_path)
        assert case.state == "completed"
        assert case.fetched == {"public/big": BIG, "public/small": SMALL}
        # Of the object's own there are fresh ones for the asking alone.
        refused = storage == "object" and step != "finishArtifact"
        assert place.proxy.broken == (2 if refused else 1)
