"""A worker whose run stops at one stage and waits there, so that something can happen to it at that stage for certain.

A gate plugin and an engine around the native one hold the stages of the execution; the worker's transport holds the
requests of the others. All of them know the `Script` by the worker's ports.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import httpx
import trio
from cancellation_table import Stage
from trio.testing import wait_all_tasks_blocked

from engines.base import Builder, Result, Sandbox
from engines.native import Native
from engines.native.engine import NativePayload
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Verdict
from worker.ports import Ports
from worker.run import Run
from worker.schema import Document, Slice

T = TypeVar("T")

REPORTS = ("/completed", "/failed", "/exception")
GATE = "gate"
GATED_NATIVE = "native"  # it takes the place of the native engine


class Injected(Exception):
    """What a plugin or an engine raises when it crashes."""


class Script:
    """A run is held at `stage`, from when it is `entered` until it is `released`; then `crasher` raises, if any."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.entered = trio.Event()
        self.released = trio.Event()
        self.crasher = ""

    async def hold(self, stage: Stage, party: str) -> None:
        """Wait here at that stage; then raise, if this party is to crash."""
        if stage is self.stage:
            self.entered.set()
            await self.follow(stage, party)

    async def follow(self, stage: Stage, party: str) -> None:
        """As `hold`, for somebody who is there at that stage too."""
        if stage is self.stage:
            await self.released.wait()
            self.crash(stage, party)

    def crash(self, stage: Stage, party: str) -> None:
        """Raise, if this party is to."""
        if (stage, party) == (self.stage, self.crasher):
            raise Injected(f"{party} crashes while {stage}")


class StagedPorts(Ports):
    """The worker's world. `reports` has the requests by which it reported a run, `disk_is_full` is for its log."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.reports: list[str] = []
        self.disk_is_full = False
        self._polls: list[trio.Event] = []
        self._ended = False

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return StagedTransport(self, super().transport(idle_limit))

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if self.disk_is_full and function is os.pwrite:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().run_sync(function, *args)

    async def polled(self) -> None:
        """Return when a poll that begins now or later was answered, and the worker has done what follows from it.

        Also when the worker has ended, since then it knew without the poll.
        """
        if not self._ended:
            answered = trio.Event()
            self._polls.append(answered)
            await answered.wait()
        await wait_all_tasks_blocked(0.02)

    def worker_ended(self) -> None:
        """Nobody polls any more."""
        self._ended = True
        for each in self._polls:
            each.set()

    @asynccontextmanager
    async def polling(self) -> AsyncGenerator[None, None]:
        waiting, self._polls = self._polls, []
        try:
            yield
        finally:
            for each in waiting:
                each.set()


class StagedTransport(httpx.AsyncBaseTransport):
    """Holds the first report and the first upload, at their stages."""

    def __init__(self, ports: StagedPorts, inner: httpx.AsyncBaseTransport) -> None:
        self._ports = ports
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "PUT":
            await self._ports.script.hold(Stage.UPLOADING, "network")
        if request.method == "POST" and path.endswith(REPORTS):
            self._ports.reports.append(path)
            await self._ports.script.hold(Stage.REPORTING, "network")
        if not path.endswith("/tasks/status"):
            return await self._inner.handle_async_request(request)
        async with self._ports.polling():
            response = await self._inner.handle_async_request(request)
            # Read here, so that the worker has it all when the poll counts as answered.
            content = await response.aread()
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=content)

    async def aclose(self) -> None:
        await self._inner.aclose()


class GateHooks(TaskHooks):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def prepare(self, builder: Builder) -> None:
        await self._script.hold(Stage.PREPARING, "plugin")

    async def background(self) -> None:
        await self._script.follow(Stage.STARTING, "plugin")
        await self._script.follow(Stage.STOPPING, "plugin")

    async def alongside(self, sandbox: Sandbox) -> None:
        await self._script.hold(Stage.RUNNING, "plugin")

    async def stopped(self, result: Result | None) -> Verdict:
        await self._script.follow(Stage.UPLOADING, "plugin")
        return COMPLETED


def script_of(holder: Plugin[Any, Any] | Native) -> Script:
    ports = holder.services.ports
    assert isinstance(ports, StagedPorts)
    return ports.script


class Gate(Plugin[Document, Slice]):
    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        script = script_of(self)
        await script.hold(Stage.CLAIMED, "plugin")
        yield GateHooks(script)


class GatedSandbox(Sandbox):
    def __init__(self, inner: Sandbox, script: Script) -> None:
        self._inner = inner
        self._script = script

    async def wait(self) -> None:
        await self._script.follow(Stage.RUNNING, "engine")
        await self._inner.wait()


class GatedBuilder(Builder):
    """The builder `inner`, whose environments it shares."""

    def __init__(self, inner: Builder, script: Script) -> None:
        super().__init__(inner.env, inner.worker_env)
        self._inner = inner
        self._script = script

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        async with self._inner.sandbox() as inner:
            await self._script.hold(Stage.STARTING, "engine")
            yield GatedSandbox(inner, self._script)
            await self._script.hold(Stage.STOPPING, "engine")

    @asynccontextmanager
    async def result(self) -> AsyncGenerator[Result, None]:
        async with self._inner.result() as inner:
            yield inner
            self._script.crash(Stage.UPLOADING, "engine")


class GatedNative(Native):
    payloads: ClassVar = Native.payloads

    @asynccontextmanager
    async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
        script = script_of(self)
        async with super().builder(run) as inner:
            if script.stage is Stage.PREPARING:
                # The plugins hold this stage; only an engine that crashes is to be known by now.
                script.crash(Stage.PREPARING, "engine")
            yield GatedBuilder(inner, script)
