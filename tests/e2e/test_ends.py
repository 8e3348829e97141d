"""How runs end when the queue, the storage, an engine or a plugin is slow or fails at the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import trio
import trio.testing

from engines.base import Builder, Result, Sandbox
from engines.native import Native
from engines.native.engine import NativePayload
from plugins.base import Plugin, TaskHooks
from worker.config import Config
from worker.ports import Ports
from worker.queue.models import TaskStatus
from worker.run import Run
from worker.schema import Document, Slice
from worker.supervisor import Supervisor, run_worker
from worker.testing.world import World, open_world
from worker.watchdog import Watchdog

Answer = Callable[[httpx.Request], Awaitable[httpx.Response | None]]


def shell(script: str, **payload: Any) -> dict[str, Any]:
    return {"command": [["sh", "-c", script]], "maxRunTime": 600, **payload}


def resolved(status: TaskStatus) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason_resolved) for run in status.runs]


def is_report(request: httpx.Request) -> bool:
    return request.url.path.endswith(("/completed", "/failed", "/exception"))


class FaultyPorts(Ports):
    """The worker's world, in which `answer` may take the place of the server. `seen` has all requests."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[httpx.Request] = []

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return FaultyTransport(self, super().transport(idle_limit))


class FaultyTransport(httpx.AsyncBaseTransport):
    def __init__(self, ports: FaultyPorts, inner: httpx.AsyncBaseTransport) -> None:
        self._ports = ports
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._ports.seen.append(request)
        return await self._ports.answer(request) or await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def as_usual(request: httpx.Request) -> httpx.Response | None:
    return None


@dataclasses.dataclass
class Working:
    supervisor: Supervisor
    done: trio.Event


@asynccontextmanager
async def working(
    world: World, config: Config, answer: Answer = as_usual, **options: Any
) -> AsyncGenerator[Working, None]:
    """A worker beside the block, which waits in the end until it has stopped by itself."""
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Supervisor]) -> None:
            await run_worker(
                config,
                FaultyPorts(answer),
                root_url=world.embedded.root_url,
                credentials=world.credentials,
                on_stop=world.embedded.answer_polls,
                task_status=task_status,
                **options,
            )
            done.set()

        done = trio.Event()
        with trio.fail_after(60):
            yield Working(await nursery.start(run), done)
            await done.wait()


def busy(**headers: str) -> httpx.Response:
    return httpx.Response(503, headers=headers, json={"code": "Busy", "message": "come back"})


async def test_a_report_that_has_to_wait_profits_from_a_claim_that_is_renewed_meanwhile(tmp_path: Path) -> None:
    reports: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if is_report(request):
            reports.append(request)
            if len(reports) == 1:
                return busy(**{"Retry-After": "4"})  # longer than the claim lasts that it begins with
        return None

    async with open_world(tmp_path, claim_timeout=timedelta(seconds=3)) as world:
        task_id = await world.create(shell("true"))
        async with working(world, world.config(numberOfTasks=1), answer):
            pass
        assert resolved(await world.queue.status(task_id)) == [("completed", "completed")]


async def test_a_claim_is_kept_although_renewing_it_fails_at_first(tmp_path: Path) -> None:
    failures = iter([busy(), httpx.Response(200, content=b"nonsense"), httpx.Response(429)])

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/reclaim"):
            if response := next(failures, None):
                return response
            renewed.set()
        return None

    renewed = trio.Event()
    async with open_world(tmp_path, claim_timeout=timedelta(seconds=12)) as world:
        task_id = await world.create(shell(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"))
        async with working(world, world.config(numberOfTasks=1), answer):
            await renewed.wait()
            (tmp_path / "go").touch()
        assert resolved(await world.queue.status(task_id)) == [("completed", "completed")]


async def test_nothing_is_reported_any_more_once_the_queue_has_said_that_the_run_is_lost(tmp_path: Path) -> None:
    reported = trio.Event()
    late = False
    after: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if not is_report(request):
            return None
        if late:
            after.append(request)
        reported.set()
        return busy(**{"Retry-After": "30"})

    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("true"))
        async with working(world, world.config(numberOfTasks=1, cancelPollInterval=0.1), answer) as worker:
            await reported.wait()
            await world.queue.cancel_task(task_id)
            late = True
            with trio.fail_after(10):
                await worker.done.wait()
        assert after == []


async def test_a_run_is_reported_before_its_directory_is_removed(tmp_path: Path) -> None:
    class Slow(Native):
        payloads: ClassVar = Native.payloads

        @asynccontextmanager
        async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
            async with super().builder(run) as builder:
                yield builder
                with trio.CancelScope(shield=True):
                    seen.append(resolved(await world.queue.status(run.key.task_id)))

    seen: list[list[tuple[str, str | None]]] = []
    async with open_world(tmp_path) as world:
        await world.create(shell("true"))
        async with working(world, world.config(numberOfTasks=1), extra_engines={"native": Slow}):
            pass
    assert seen == [[("completed", "completed")]]


async def test_a_malformed_task_is_reported_within_the_grace_although_its_log_cannot_be_stored(tmp_path: Path) -> None:
    storing = trio.Event()

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            storing.set()
            await trio.sleep_forever()
        return None

    async with open_world(tmp_path) as world:
        task_id = await world.create({"command": 1})
        config = world.config(shutdown={"onTerm": "abort", "grace": 0.2})
        async with working(world, config, answer) as worker:
            await storing.wait()
            worker.supervisor.stop()
            with trio.fail_after(10):
                await worker.done.wait()
        assert resolved(await world.queue.status(task_id)) == [("exception", "malformed-payload")]


async def test_a_signal_while_artifacts_are_uploaded_leaves_time_to_save_the_log(tmp_path: Path) -> None:
    uploading = trio.Event()

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT" and not uploading.is_set():
            uploading.set()
            await trio.sleep_forever()
        return None

    artifact = {"type": "file", "path": "a", "name": "public/a"}
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("echo made > a", artifacts=[artifact]))
        config = world.config(shutdown={"onTerm": "abort", "grace": 3})
        async with working(world, config, answer) as worker:
            await uploading.wait()
            worker.supervisor.stop()
        assert resolved(await world.queue.status(task_id))[0] == ("exception", "worker-shutdown")
        last = (await world.log(task_id)).splitlines()[-1]
        assert "told to stop, and had no time left before all of its artifacts were saved" in last


async def test_a_worker_that_cannot_be_trusted_claims_no_more_although_a_run_is_still_ending(tmp_path: Path) -> None:
    storing, created = trio.Event(), trio.Event()

    async def answer(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            storing.set()
            await created.wait()
        return None

    async with open_world(tmp_path) as world:
        await world.create({"mock": {"raises": "fatal"}})
        config = world.config(engine="mock", plugins={"disabled": ["maxRunTime"]}, capacity=2)
        async with working(world, config, answer):
            await storing.wait()
            task_id = await world.create({})
            created.set()
        assert (await world.queue.status(task_id)).state == "pending"


def with_short_limits(config: Config) -> Config:
    """As no operator can have them: an end that hangs is noticed after a second."""
    limits = config.worker.limits.model_copy(update={"kill": timedelta()})
    return dataclasses.replace(config, worker=config.worker.model_copy(update={"limits": limits}))


async def test_an_engine_that_hangs_when_a_task_has_ended_by_itself_is_cut_off_and_named(tmp_path: Path) -> None:
    class HangingBuilder(Builder):
        def __init__(self, inner: Builder) -> None:
            super().__init__(inner.env, inner.worker_env)
            self.inner = inner

        def result(self) -> AbstractAsyncContextManager[Result]:
            return self.inner.result()

        @asynccontextmanager
        async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
            async with self.inner.sandbox() as sandbox:
                yield sandbox
                await trio.sleep_forever()

    class Hanging(Native):
        payloads: ClassVar = Native.payloads

        @asynccontextmanager
        async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
            async with super().builder(run) as builder:
                yield HangingBuilder(builder)

    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("true"))
        config = with_short_limits(world.config(numberOfTasks=1))
        async with working(world, config, extra_engines={"native": Hanging}):
            pass
        assert resolved(await world.queue.status(task_id)) == [("exception", "internal-error")]
        assert "the engine's sandbox, leaving: took longer than 1 second" in (await world.log(task_id)).splitlines()[-1]


async def test_a_hook_that_does_not_end_with_its_task_is_the_watchdogs(tmp_path: Path) -> None:
    released = trio.Event()

    class StubbornHooks(TaskHooks):
        async def alongside(self, sandbox: Sandbox) -> None:
            with trio.CancelScope(shield=True):
                await released.wait()

    class Stubborn(Plugin[Document, Slice]):
        @asynccontextmanager
        async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
            yield StubbornHooks()

    watchdog = Watchdog(0.2, time.monotonic)

    @asynccontextmanager
    async def open_watchdog(slack: float) -> AsyncGenerator[Watchdog, None]:
        yield watchdog

    async with open_world(tmp_path) as world:
        await world.create(shell("true"))
        config = with_short_limits(world.config(numberOfTasks=1))
        async with working(world, config, extra_plugins={"stubborn": Stubborn}, open_watchdog=open_watchdog):
            overdue = await trio.to_thread.run_sync(watchdog.wait_overdue)
            released.set()
        assert overdue is not None
        assert overdue.what.endswith(": its execution")


async def test_nothing_is_started_when_a_cause_came_while_a_hook_could_not_be_ended(tmp_path: Path) -> None:
    class StubbornHooks(TaskHooks):
        async def prepare(self, builder: Builder) -> None:
            with trio.CancelScope(shield=True):
                preparing.set()
                await stopped.wait()

    class Stubborn(Plugin[Document, Slice]):
        @asynccontextmanager
        async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
            yield StubbornHooks()

    class Noticing(Native):
        payloads: ClassVar = Native.payloads

        @asynccontextmanager
        async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
            async with super().builder(run) as builder:
                yield NoticingBuilder(builder)

    class NoticingBuilder(Builder):
        def __init__(self, inner: Builder) -> None:
            super().__init__()
            self._inner = inner

        @asynccontextmanager
        async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
            started.append(self)
            async with self._inner.sandbox() as sandbox:
                yield sandbox

        @asynccontextmanager
        async def result(self) -> AsyncGenerator[Result, None]:
            async with self._inner.result() as result:
                yield result

    preparing, stopped = trio.Event(), trio.Event()
    started: list[Builder] = []
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("true"))
        options: dict[str, Any] = {"extra_plugins": {"stubborn": Stubborn}, "extra_engines": {"native": Noticing}}
        async with working(world, world.config(), **options) as worker:
            await preparing.wait()
            await trio.testing.wait_all_tasks_blocked()  # The other plugins have prepared.
            worker.supervisor.stop()
            stopped.set()
        assert resolved(await world.queue.status(task_id))[0] == ("exception", "worker-shutdown")
    assert started == []
