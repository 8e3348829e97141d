"""Artifacts by the object service, against the embedded queue over real HTTP, and what breaks on the way."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import trio

from worker.http import WrongLength, open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.errors import ApiError, Conflict, Forbidden, QueueError, Unavailable
from worker.queue.models import ArtifactResponse
from worker.queue.objects import MAX_INLINE
from worker.queue.retry import RetryPolicy
from worker.queue.services import Queue
from worker.queue.transfer import Content, NewArtifact
from worker.queue.upload import DeploymentStorage
from worker.spool import Chunks
from worker.testing.world import TASK_QUEUE, World, open_world

NAME = "public/a b.bin"
QUICK = RetryPolicy(attempts=3, first=0.001, longest=0.001)

# Gives an answer in the place of the queue's, or None.
Fault = Callable[[httpx.Request], httpx.Response | None]


class FaultyPorts(Ports):
    """`before` may answer instead of the server, `after` may take an answer away. `calls` has all requests."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Fault = lambda request: None
        self.after: Fault = lambda request: None
        self.calls: list[str] = []

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return _Faulty(self, super().transport(idle_limit))


class _Faulty(httpx.AsyncBaseTransport):
    def __init__(self, ports: FaultyPorts, inner: httpx.AsyncBaseTransport) -> None:
        self._ports = ports
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._ports.calls.append(kind_of(request))
        if answer := self._ports.before(request):
            return answer
        answer = await self._inner.handle_async_request(request)
        if changed := self._ports.after(request):
            await answer.aclose()
            return changed
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


def kind_of(request: httpx.Request) -> str:
    path = request.url.path
    if path.startswith("/blobs/"):
        return "put"
    return {
        ("queue", "POST"): "create",
        ("queue", "PUT"): "finishArtifact",
        ("object", "PUT"): "createUpload",
        ("object", "POST"): "finishUpload",
    }[path.split("/")[2], request.method]


@dataclass
class Uploads:
    """A claimed run, with a client whose network fails as `ports` says."""

    world: World
    ports: FaultyPorts
    queue: Queue
    deployment: Deployment
    key: RunKey
    storage: DeploymentStorage

    async def upload(self, data: bytes, *, announced: int | None = None, encoded: bytes | None = None) -> Any:
        content, plain = content_of(encoded or data), content_of(data, announced)
        if encoded is not None:
            content = Content(content.length, content.open, "gzip")
        expires = self.ports.now().replace(microsecond=0) + timedelta(minutes=30)
        return await self.storage.upload(
            NewArtifact(self.queue, self.key, NAME, "text/x-test", expires, content, plain)
        )

    def choose(self, choice: Literal["auto", "s3", "object"]) -> None:
        self.storage = DeploymentStorage(self.deployment.http, self.ports, choice, QUICK)

    async def fetch(self) -> httpx.Response:
        place = await self.world.queue.get_artifact(self.key, NAME)
        async with httpx.AsyncClient() as client:
            return await client.get(place.url)

    async def listed(self) -> list[ArtifactResponse]:
        return await self.world.queue.list_artifacts(self.key)


def content_of(data: bytes, announced: int | None = None) -> Content:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterable[bytes], None]:
        left = [data[start : start + 64 * 1024] for start in range(0, len(data), 64 * 1024)]

        async def read() -> bytes:
            await trio.lowlevel.checkpoint()
            return left.pop(0) if left else b""

        yield Chunks(read)

    return Content(len(data) if announced is None else announced, opened)


@asynccontextmanager
async def open_uploads(folder: Path, *, objects_once: bool = False) -> AsyncGenerator[Uploads, None]:
    ports = FaultyPorts()
    async with open_world(folder, objects_once=objects_once) as world:
        task_id = await world.create({})
        (claim,) = (await world.queue.claim_work(TASK_QUEUE, "local", "w1", 1)).tasks
        async with open_http(ports) as http:
            deployment = Deployment(world.embedded.root_url, http, ports, QUICK)
            credentials = Credentials.from_wire(claim.credentials)
            queue, storage = Queue(deployment, lambda: credentials), DeploymentStorage(http, ports, "object", QUICK)
            yield Uploads(world, ports, queue, deployment, RunKey(task_id, 0), storage)


def once(kind: str, answer: Callable[[], httpx.Response], times: int = 1) -> Fault:
    left = [None] * times

    def fault(request: httpx.Request) -> httpx.Response | None:
        if kind_of(request) != kind or not left:
            return None
        left.pop()
        return answer()

    return fault


def lost() -> httpx.Response:
    raise httpx.ReadError("reset by peer")


def status(code: int, error: str = "Oops") -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(code, json={"code": error, "message": "no", "requestInfo": {}})


@pytest.mark.parametrize("size", [0, 1, MAX_INLINE, MAX_INLINE + 1, 300_000])
async def test_content_arrives_with_its_type_and_hashes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with open_uploads(tmp_path) as uploads:
        stored = await uploads.upload(data)
        assert (stored.length, stored.sha256) == (size, hashlib.sha256(data).hexdigest())
        assert stored.sha512 == hashlib.sha512(data).hexdigest()
        answer = await uploads.fetch()
        assert (answer.content, answer.headers["content-type"]) == (data, "text/x-test")
        assert "content-encoding" not in answer.headers
        puts = [] if size <= MAX_INLINE else ["put"]
        assert uploads.ports.calls == ["create", "createUpload", *puts, "finishUpload", "finishArtifact"]
        (artifact,) = await uploads.listed()
        assert artifact.storage_type == "object"


async def test_encoded_content_is_stored_as_it_was(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        await uploads.upload(b"plain", encoded=b"squeezed")
        assert (await uploads.fetch()).content == b"plain"


STEPS = ["create", "createUpload", "put", "finishUpload", "finishArtifact"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("fault", [lost, status(500), status(503)])
async def test_a_step_that_fails_is_repeated_and_no_other_before_it(
    tmp_path: Path, step: str, where: str, fault: Callable[[], httpx.Response]
) -> None:
    data = b"x" * 100_000
    async with open_uploads(tmp_path) as uploads:
        setattr(uploads.ports, where, once(step, fault))
        await uploads.upload(data)
        assert (await uploads.fetch()).content == data
        calls = uploads.ports.calls
        assert calls.count(step) == 2
        # A presigned URL is good for one attempt only.
        assert calls.count("createUpload") == (2 if step in {"put", "createUpload"} else 1)
        assert calls.count("create") == (2 if step == "create" else 1)


@pytest.mark.parametrize("step", ["createUpload", "finishUpload"])
@pytest.mark.parametrize("code", [401, 403])
async def test_credentials_that_are_not_good_any_more_are_fetched_anew(tmp_path: Path, step: str, code: int) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once(step, status(code, "AuthenticationFailed"))
        await uploads.upload(b"x" * 100_000)
        assert (await uploads.fetch()).status_code == 200
        assert uploads.ports.calls.count("create") == 2


async def test_a_url_that_expired_is_fetched_anew(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once("put", status(403))
        await uploads.upload(b"x" * 100_000)
        assert uploads.ports.calls.count("createUpload") == 2


async def test_data_that_arrived_otherwise_are_sent_again(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once("put", lambda: httpx.Response(200))  # said to be stored, and is not
        await uploads.upload(b"x" * 100_000)
        assert len((await uploads.fetch()).content) == 100_000
        assert uploads.ports.calls.count("put") == 2


@pytest.mark.parametrize("step", STEPS)
async def test_what_fails_for_good_is_told_and_nothing_is_there(tmp_path: Path, step: str) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once(step, status(500), times=100)
        with pytest.raises(Unavailable):
            await uploads.upload(b"x" * 100_000)
        assert await uploads.listed() == []


@pytest.mark.parametrize(("step", "code", "error"), [("create", 409, Conflict), ("createUpload", 403, Forbidden)])
async def test_a_refusal_is_final(tmp_path: Path, step: str, code: int, error: type[Exception]) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once(step, status(code), times=100)
        with pytest.raises(error):
            await uploads.upload(b"x" * 100_000)
        assert await uploads.listed() == []


@pytest.mark.parametrize("step", ["createUpload", "finishUpload", "finishArtifact"])
async def test_a_conflict_about_what_is_ours_is_no_conflict_of_the_task(tmp_path: Path, step: str) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.ports.before = once(step, status(409), times=100)
        with pytest.raises(QueueError, match="409 Oops") as caught:
            await uploads.upload(b"x" * 100_000)
        assert not isinstance(caught.value, Conflict)


async def test_a_creation_that_cannot_be_repeated_is_no_conflict_of_the_task(tmp_path: Path) -> None:
    async with open_uploads(tmp_path, objects_once=True) as uploads:
        uploads.ports.after = once("create", lost)
        with pytest.raises(QueueError, match="409 RequestConflict in attempt 2") as caught:
            await uploads.upload(b"x")
        assert not isinstance(caught.value, Conflict)


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("more", [-1, 1])
async def test_content_of_another_length_than_announced_is_not_stored(tmp_path: Path, size: int, more: int) -> None:
    async with open_uploads(tmp_path) as uploads:
        with pytest.raises(WrongLength):
            await uploads.upload(b"x" * size, announced=size + more)
        assert await uploads.listed() == []


def schema_refuses(*kinds: str) -> Fault:
    def fault(request: httpx.Request) -> httpx.Response | None:
        wanted = [kind for kind in kinds if f'"storageType":"{kind}"'.encode() in request.content]
        if kind_of(request) != "create" or not wanted:
            return None
        return httpx.Response(400, json={"code": "InputValidationError", "message": f"no {wanted[0]}"})

    return fault


async def test_a_deployment_without_s3_is_found_out_once(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.choose("auto")
        uploads.ports.before = schema_refuses("s3")
        assert uploads.storage.encodes
        await uploads.upload(b"plain", encoded=b"squeezed")
        assert (await uploads.fetch()).content == b"plain"
        assert not uploads.storage.encodes
        assert uploads.ports.calls == ["create", "create", "createUpload", "finishUpload", "finishArtifact"]
        uploads.ports.calls.clear()
        with pytest.raises(QueueError, match=r"object\.createUpload: 409"):  # the object is final
            await uploads.upload(b"another")
        assert uploads.ports.calls == ["create", "createUpload"]


async def test_a_deployment_with_s3_is_given_that(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.choose("auto")
        await uploads.upload(b"plain")
        assert uploads.ports.calls == ["create", "put"]
        (artifact,) = await uploads.listed()
        assert artifact.storage_type == "s3"
        assert uploads.storage.encodes
        # Now it is known, and a refusal is the request's own fault.
        uploads.ports.before = schema_refuses("s3")
        with pytest.raises(ApiError, match="no s3"):
            await uploads.upload(b"plain")


async def test_a_request_that_both_refuse_says_what_is_wrong_and_teaches_nothing(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.choose("auto")
        uploads.ports.before = schema_refuses("s3", "object")
        with pytest.raises(ApiError, match="no s3"):
            await uploads.upload(b"plain")
        uploads.ports.before = lambda request: None
        await uploads.upload(b"plain")
        (artifact,) = await uploads.listed()
        assert artifact.storage_type == "s3"


async def test_what_is_configured_is_not_second_guessed(tmp_path: Path) -> None:
    async with open_uploads(tmp_path) as uploads:
        uploads.choose("s3")
        uploads.ports.before = schema_refuses("s3")
        with pytest.raises(ApiError, match="no s3"):
            await uploads.upload(b"plain")
        assert uploads.ports.calls == ["create"]
