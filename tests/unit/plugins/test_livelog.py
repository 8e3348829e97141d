"""A real log, a real web server with a real client, and a queue that records."""

from __future__ import annotations

import gzip
import logging
import os
import random
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from plugins.base import TaskHooks
from plugins.livelog import LiveLog, LiveLogConfig
from plugins.livelog.payload import DockerWorkerLiveLog, GenericWorkerLiveLog, LiveLogPayload
from worker.errors import ResourceUnavailable
from worker.logfile import CHUNK
from worker.lognames import backing_name
from worker.model import Resolution, RunKey, State
from worker.outcome import leaves
from worker.payload import Owner, PayloadSchema
from worker.ports import Ports
from worker.queue.errors import Conflict, NotFound, QueueError, Unavailable
from worker.queue.models import LinkArtifactRequest, ReferenceArtifactRequest, S3ArtifactRequest
from worker.queue.retry import RetryPolicy
from worker.queue.services import ArtifactAnswer, ArtifactRequest
from worker.run import Run
from worker.services import Services
from worker.serving import listen, port_of, serve
from worker.spool import IN_MEMORY
from worker.tasklog import TaskLog
from worker.testing.runs import RecordingQueue, log_text, open_run, open_services, task_definition
from worker.testing.world import World as Deployed
from worker.testing.world import open_world
from worker.webhooks import WebhooksConfig, open_webhooks

LIVE, BACKING = "public/logs/live.log", "public/logs/live_backing.log"
CREATED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
TASK = task_definition(CREATED)
R = TypeVar("R")
DONE = Resolution(State.COMPLETED)
QUICK = RetryPolicy(attempts=3, first=0.001)


@dataclass
class Storage:
    """Takes PUTs; `statuses` has the answers to the first ones."""

    statuses: list[int] = field(default_factory=list)
    attempts: int = 0
    stored: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.attempts += 1
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.stored[scope["path"].removeprefix("/")] = body
            self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class Artifacts(RecordingQueue):
    """Tells its artifacts apart."""

    def made(self, kind: type[R]) -> dict[str, R]:
        return {name: request for name, request in self.created if isinstance(request, kind)}


async def ask(url: str) -> trio.SocketStream:
    """A viewer who has sent a request, and reads the answer or does not."""
    parsed = httpx.URL(url)
    stream = await trio.open_tcp_stream(parsed.host, parsed.port or 80)
    await stream.send_all(b"GET " + parsed.raw_path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    return stream


async def run_background(hooks: TaskHooks) -> None:
    """Let the plugin do what it does at once beside a task, and end that as a task's end does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.background)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@dataclass
class World:
    """One run with the plugin entered."""

    services: Services
    run: Run[LiveLogPayload]
    hooks: TaskHooks
    queue: Artifacts
    storage: Storage
    client: httpx.AsyncClient

    @property
    def log(self) -> TaskLog:
        return self.run.log

    async def announce(self) -> str:
        """Let the plugin announce the live log, as if the task ran for long; its URL."""
        await run_background(self.hooks)
        return self.queue.made(ReferenceArtifactRequest)[LIVE].url

    async def finish(self) -> None:
        await self.log.close()
        await self.hooks.finished(DONE)


@asynccontextmanager
async def world(
    folder: Path,
    *,
    payload: LiveLogPayload | None = None,
    delay: float = 0,
    statuses: list[int] | None = None,
) -> AsyncGenerator[World, None]:
    ports, storage = Ports(), Storage(statuses or [])
    listeners = await listen("127.0.0.1", 0)
    queue = Artifacts(f"http://127.0.0.1:{port_of(listeners)}")
    with trio.fail_after(30):
        async with (
            trio.open_nursery() as nursery,
            open_webhooks(ports, WebhooksConfig()) as webhooks,
            open_services(folder, webhooks=webhooks, upload_policy=QUICK) as services,
            open_run(folder, payload or GenericWorkerLiveLog(), task=TASK, queue=queue) as run,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            await nursery.start(serve, storage, listeners)
            plugin = LiveLog(LiveLogConfig(delay=timedelta(seconds=delay)), services)
            async with plugin.worker_scope(), plugin.task_scope(run) as hooks:
                yield World(services, run, hooks, queue, storage, client)
            nursery.cancel_scope.cancel()


# The live log


async def test_a_viewer_gets_the_log_from_its_beginning_and_then_as_it_is_written(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"one\n")
        url = await here.announce()
        async with here.client.stream("GET", url) as answer:
            chunks = answer.aiter_raw()
            assert await anext(chunks) == b"one\n"
            await here.log.write(b"two\n")
            assert await anext(chunks) == b"two\n"
            await here.log.write(b"three\n")
            await here.log.close()
            assert [chunk async for chunk in chunks] == [b"three\n"]


async def test_the_headers_are_those_that_log_viewers_look_for(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        url = await here.announce()
        await here.log.close()
        answer = await here.client.get(url, headers={"Origin": "https://elsewhere.example"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["X-Streaming"] == "true"
        assert "X-Streaming" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Transfer-Encoding"] == "chunked"


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("OPTIONS", 204), ("POST", 405), ("PUT", 405), ("DELETE", 405)]
)
async def test_methods(tmp_path: Path, method: str, status: int) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"something")
        answer = await here.client.request(method, await here.announce())
        assert (answer.status_code, bool(answer.content)) == (status, status == 405)
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_lines_are_sent_together(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        url = await here.announce()
        async with here.client.stream("GET", url) as answer, trio.open_nursery() as nursery:

            async def write() -> None:
                for number in range(2000):
                    await here.log.write(b"%d\n" % number)
                await here.log.close()

            nursery.start_soon(write)
            chunks = [chunk async for chunk in answer.aiter_raw()]
        assert b"".join(chunks) == b"".join(b"%d\n" % number for number in range(2000))
        assert len(chunks) < 50


async def test_many_viewers_of_a_large_log(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    async with world(tmp_path) as here:
        url = await here.announce()
        got: list[bytes] = []

        async def view() -> None:
            async with httpx.AsyncClient(trust_env=False) as client:
                got.append((await client.get(url)).content)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(view)
            for start in range(0, len(data), 10_000):
                await here.log.write(data[start : start + 10_000])
            await here.log.close()
        assert got == [data] * 10


async def test_a_viewer_that_never_reads_holds_up_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        stream = await ask(await here.announce())
        for _ in range(300):
            await here.log.write(b"x" * 65536)
        await here.finish()
        began = trio.current_time()
    # The viewer had its second.
    assert trio.current_time() - began < 3
    await stream.aclose()


async def test_a_viewer_who_left_is_forgotten_though_the_log_is_silent(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.log.write(b"one\n")
        async with await ask(await here.announce()) as stream:
            await stream.receive_some()
        began = trio.current_time()
    assert trio.current_time() - began < 0.9


async def test_a_viewer_may_read_the_rest_after_the_end(tmp_path: Path) -> None:
    data = b"x" * 5_000_000
    async with trio.open_nursery() as nursery:
        got: list[bytes] = []
        reading = trio.Event()
        async with world(tmp_path) as here:
            await here.log.write(data)
            url = await here.announce()

            async def view() -> None:
                async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", url) as answer:
                    reading.set()
                    got.append(await answer.aread())

            nursery.start_soon(view)
            await reading.wait()
            await here.finish()
    assert got == [data]


# Its announcement


async def test_the_reference_says_where_and_until_when(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        url = await here.announce()
        (reference,) = here.queue.made(ReferenceArtifactRequest).values()
        assert url.startswith("http://127.0.0.1:")
        assert reference.content_type == "text/plain; charset=utf-8"
        assert TASK.deadline < reference.expires < TASK.deadline + timedelta(hours=1)


async def test_the_reference_never_outlives_the_task(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        task = task_definition(CREATED, expires=TASK.deadline + timedelta(seconds=1))
        run = Run(here.run.key, task, here.run.payload, here.run.log, here.queue, here.run.stop)
        plugin = LiveLog(LiveLogConfig(delay=timedelta()), here.services)
        async with plugin.worker_scope(), plugin.task_scope(run) as hooks:
            await run_background(hooks)
        (reference,) = here.queue.made(ReferenceArtifactRequest).values()
        assert reference.expires == task.expires


async def test_a_log_that_can_be_seen_elsewhere_is_announced_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.hooks.background)
        await trio.testing.wait_all_tasks_blocked()
        here.services.webhooks.at("https://elsewhere.example/tunnel")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        first, second = [
            request.url for _, request in here.queue.created if isinstance(request, ReferenceArtifactRequest)
        ]
        assert second == "https://elsewhere.example/tunnel" + httpx.URL(first).path


async def test_a_task_that_ends_at_once_costs_no_reference(tmp_path: Path) -> None:
    async with world(tmp_path, delay=60) as here:
        await run_background(here.hooks)
        await here.finish()
        assert not here.queue.made(ReferenceArtifactRequest)
        assert set(here.queue.made(LinkArtifactRequest)) == {LIVE}


@pytest.mark.parametrize(
    "refusal",
    [
        Conflict("queue.createArtifact", 409, "RequestConflict", "no"),
        Unavailable("queue.createArtifact", 10, "no connection"),
        QueueError("queue.createArtifact", "what a name"),
    ],
)
async def test_a_refused_reference_is_a_warning_and_no_more(tmp_path: Path, refusal: Exception) -> None:
    async with world(tmp_path) as here:
        here.queue.refusals[LIVE] = refusal
        url = await here.announce()
        text = await log_text(here.run)
        assert text.startswith("[taskcluster:warn ")
        assert "the live log could not be announced: queue.createArtifact: " in text
        here.queue.refusals.clear()
        await here.log.close()
        assert (await here.client.get(url)).status_code == 200
        await here.hooks.finished(DONE)
        assert here.storage.stored


async def test_the_secret_is_not_in_the_log_though_the_queue_quotes_it(tmp_path: Path) -> None:
    class Quotes(Artifacts):
        async def create_artifact(  # type: ignore[override]  # as its base
            self, key: RunKey, name: str, request: ArtifactRequest
        ) -> ArtifactAnswer:
            self.created.append((name, request))
            assert isinstance(request, ReferenceArtifactRequest)
            raise Conflict("queue.createArtifact", 409, "RequestConflict", f"not {request.url}, please")

    async with world(tmp_path) as here:
        quotes = Quotes("")
        run = Run(here.run.key, TASK, here.run.payload, here.run.log, quotes, here.run.stop)
        plugin = LiveLog(LiveLogConfig(delay=timedelta()), here.services)
        async with plugin.worker_scope(), plugin.task_scope(run) as hooks:
            await run_background(hooks)
        (reference,) = quotes.made(ReferenceArtifactRequest).values()
        assert "not ***, please" in await log_text(run)
        assert reference.url not in await log_text(run)


# The backing log


async def test_the_log_is_stored_as_gzip_and_linked(tmp_path: Path) -> None:
    data = os.urandom(2_500_000) + b"text\n" * 100_000
    async with world(tmp_path) as here:
        await here.log.write(data)
        await here.finish()
        assert gzip.decompress(here.storage.stored[BACKING]) == data
        assert here.storage.headers["content-encoding"] == "gzip"
        assert here.storage.headers["content-type"] == "text/plain; charset=utf-8"
        assert here.queue.made(S3ArtifactRequest)[BACKING].expires == TASK.expires
        link = here.queue.made(LinkArtifactRequest)[LIVE]
        assert (link.artifact, link.expires) == (BACKING, TASK.expires)
        left = await trio.to_thread.run_sync(lambda: sorted(path.name for path in tmp_path.iterdir()))
        assert left == ["task.log", "work"]


async def test_an_empty_log_is_stored_too(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.finish()
        assert gzip.decompress(here.storage.stored[BACKING]) == b""


@pytest.mark.parametrize("status", [500, 503, 429, 403])
async def test_an_upload_is_tried_again_with_a_fresh_url(tmp_path: Path, status: int) -> None:
    async with world(tmp_path, statuses=[status, status]) as here:
        await here.log.write(b"text\n")
        await here.finish()
        assert here.storage.attempts == 3
        assert len([name for name, _ in here.queue.created if name == BACKING]) == 3
        assert gzip.decompress(here.storage.stored[BACKING]) == b"text\n"


async def raised_by(here: World) -> list[BaseException]:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # the callers look inside
        await here.finish()
    return list(leaves(caught.value))


@pytest.mark.parametrize("statuses", [[500] * 3, [404]])
async def test_a_storage_that_fails_is_resource_unavailable(tmp_path: Path, statuses: list[int]) -> None:
    async with world(tmp_path, statuses=statuses) as here:
        (error,) = await raised_by(here)
        assert isinstance(error, ResourceUnavailable)
        assert "the log could not be uploaded" in str(error)
        assert "attempt=" not in str(error)


@pytest.mark.parametrize("name", [LIVE, BACKING])
async def test_a_queue_that_refuses_is_resource_unavailable(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as here:
        here.queue.refusals[name] = Unavailable("queue.createArtifact", 10, "silence")
        (error,) = await raised_by(here)
        assert isinstance(error, ResourceUnavailable)


async def test_a_log_whose_file_was_removed_is_uploaded_all_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        text = b"text\n" * CHUNK
        await here.log.write(text)
        await here.log.close()
        here.log.path.unlink()
        await here.finish()
        assert gzip.decompress(here.storage.stored[BACKING]) == text


async def test_a_log_that_there_is_no_room_to_compress_is_stored_as_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        # Random text does not fit into memory when compressed; the folder where it then belongs is gone.
        text = random.Random(0).randbytes(2 * IN_MEMORY)
        await here.log.write(text)
        await here.log.close()
        shutil.rmtree(here.log.path.parent)
        await here.finish()
        assert here.storage.stored[BACKING] == text
        assert "content-encoding" not in here.storage.headers


# What the payload says


@pytest.mark.parametrize(
    ("payload", "live", "backing"),
    [
        ({"features": {"liveLog": False}}, None, BACKING),
        ({"features": {"backingLog": False}}, LIVE, None),
        ({"features": {"backingLog": False, "liveLog": False}}, None, None),
        ({"logs": {"live": "public/a", "backing": "public/b"}}, "public/a", "public/b"),
    ],
)
async def test_only_what_is_wanted_is_made(
    tmp_path: Path, payload: dict[str, object], live: str | None, backing: str | None
) -> None:
    async with world(tmp_path, payload=GenericWorkerLiveLog.model_validate(payload)) as here:
        await run_background(here.hooks)
        await here.finish()
        assert list(here.queue.made(ReferenceArtifactRequest)) == ([live] if live else [])
        assert list(here.queue.made(LinkArtifactRequest)) == ([live] if live and backing else [])
        assert list(here.storage.stored) == ([backing] if backing else [])


@pytest.mark.parametrize(
    ("payload", "live", "backing"),
    [
        ({}, LIVE, BACKING),
        ({"log": "apple/banana.log.txt"}, "apple/banana.log.txt", "apple/banana.log_backing.txt"),
        ({"log": "apple.d/banana"}, "apple.d/banana", "apple.d/banana_backing"),
        ({"features": {"localLiveLog": False}}, None, BACKING),
        ({"features": {"bulkLog": False}}, LIVE, BACKING),
        ({"features": {"bulkLog": False, "localLiveLog": False}}, None, None),
    ],
)
def test_docker_workers_names(payload: dict[str, object], live: str | None, backing: str | None) -> None:
    names = DockerWorkerLiveLog.model_validate(payload).names
    assert (names.live, names.backing) == (live, backing)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_the_backing_log_never_has_the_live_logs_name(name: str) -> None:
    assert backing_name(name) != name


@pytest.mark.parametrize(
    "payload",
    [
        {"logs": {"live": "public/x", "backing": "public/x"}},
        {"logs": {"live": "public/é"}},
        {"logs": {"live": ""}},
        {"features": {"liveLog": "yes"}},
    ],
)
def test_malformed_payloads(payload: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenericWorkerLiveLog.model_validate(payload)


def test_a_malformed_payload_leaves_the_defaults() -> None:
    schema = PayloadSchema(["generic-worker"], [Owner("livelog", LiveLog.payloads)])
    parsed = schema.parse({"logs": {"live": 7}})
    assert [problem.path for problem in parsed.problems] == ["logs.live"]
    assert parsed.slices["livelog"] == GenericWorkerLiveLog()


async def test_nothing_of_this_logs_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "worker")
    async with world(tmp_path) as here:
        url = await here.announce()
        await here.log.close()
        await here.client.get(url)
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("worker")]
        assert httpx.URL(url).path.strip("/") not in " ".join(ours)


# With a whole worker and a queue


async def test_a_running_task_can_be_watched_and_its_log_read_afterwards(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = f"echo one; while ! test -e {go_on}; do sleep 0.05; done; echo two"
    (tmp_path / "world").mkdir()
    with trio.fail_after(20):
        async with open_world(tmp_path / "world") as here:
            task_id = await here.create({"command": [["sh", "-c", script]], "maxRunTime": 60})
            async with here.worker(here.config(numberOfTasks=1, plugins={"livelog": {"delay": 0}})) as worker:
                url = await announced(here, task_id)
                seen = b""
                async with here.http.bulk.stream("GET", url) as answer:
                    async for chunk in answer.chunks():
                        seen += chunk
                        if b"\none\n" in seen:
                            await trio.Path(go_on).touch()
                await here.resolved(task_id)
                await worker.done.wait()
            assert b"\ntwo\n" in seen
            assert seen == await here.artifact(task_id, LIVE) == await here.artifact(task_id, BACKING)


async def announced(here: Deployed, task_id: str) -> str:
    """Wait for the live log of a task; its URL."""
    while True:
        changed = here.embedded.changed()
        try:
            return (await here.queue.get_artifact(RunKey(task_id, 0), LIVE)).url
        except NotFound:
            await changed.wait()
