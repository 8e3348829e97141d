"""The engine of the simulation: its processes write numbered lines, leave files, resist being killed, and crash."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar

import trio
from pydantic import Field

from engines.base import Builder, Ended, Engine, FileInvalid, FileMissing, Result, Sandbox, SandboxFile
from worker.errors import FatalWorkerFault, ResourceUnavailable, TaskFault, WorkerFault
from worker.model import RunKey
from worker.run import Run
from worker.schema import Document, Slice
from worker.services import Services
from worker.testing.simulation.chaos import seeded
from worker.testing.simulation.ledger import FOLDER, PROCESS, SANDBOX
from worker.testing.simulation.ports import SimulatedPorts

if TYPE_CHECKING:
    from worker.testing.simulation.world import World

STEPS = ("builder", "start", "running", "leaving", "result", "reading", "cleanup")


class Script(Document):
    """What a task does: `lines` over `seconds`, then `files` (name to size) are there, and it ends with `exitCode`.

    Lines have `width` characters at least. `stubborn`: TERM is ignored. `respawns`: what KILL ended begins anew so many
    times.
    """

    lines: Annotated[int, Field(ge=0)] = 0
    width: int = 0
    seconds: Annotated[float, Field(ge=0, strict=False)] = 0
    files: dict[str, int] = {}
    exit_code: int = 0
    stubborn: bool = False
    respawns: int = 0


class SimulatedPayload(Slice):
    sim: Script = Script()


def content_of(key: RunKey, path: str, size: int) -> bytes:
    """What a run leaves at `path`."""
    return seeded(f"{key} {path}").randbytes(size)


def line_of(key: RunKey, number: int, width: int) -> str:
    """A line that a run writes."""
    return f"{key} line {number} ".ljust(width, "x").rstrip()


def world_of(services: Services) -> tuple[World, SimulatedPorts]:
    """The world that an engine or a plugin is in, and the ports of its worker."""
    assert isinstance(services.ports, SimulatedPorts)
    return services.ports.world, services.ports


async def trouble(world: World, who: str, where: str) -> None:
    """Perhaps wait, perhaps raise: whatever goes wrong in an engine at one of its steps."""
    if world.chaos.strikes(f"engine is slow: {where}"):
        await trio.sleep(world.chaos.between(0.01, 20))
    if world.chaos.strikes(f"engine crashes: {where}"):
        error: Exception = world.chaos.one(
            [
                RuntimeError("a bug of the engine"),
                WorkerFault("the machine is at fault"),
                ResourceUnavailable("a service is at fault"),
                TaskFault("the task is at fault"),
                OSError(errno.EIO, "input/output error"),
            ]
        )
        if world.chaos.strikes("engine is broken for good"):
            error = FatalWorkerFault("the machine is broken")
            world.broken_for_good.add(who)
        world.history.note(who, f"engine: {where}: {type(error).__name__}")
        raise error


class SimulatedSandbox(Sandbox):
    """One process."""

    def __init__(self, builder: SimulatedBuilder) -> None:
        self._builder = builder
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._gone = trio.Event()
        self._killed = False
        self._respawns = builder.script.respawns

    async def wait(self) -> None:
        """Return when it has ended by itself."""
        await self._ended.wait()

    async def run(self) -> None:
        """The process, and what it starts anew when it is killed."""
        builder = self._builder
        builder.world.ledger.opened(builder.who, builder.run.key, PROCESS)
        try:
            while True:
                with self._scope:
                    await self._execute()
                if self._respawns == 0 or not self._scope.cancelled_caught:
                    break
                self._respawns -= 1
                self._scope = trio.CancelScope()
        finally:
            builder.world.ledger.closed(builder.who, builder.run.key, PROCESS)
            self._gone.set()

    async def _execute(self) -> None:
        builder = self._builder
        script, key = builder.script, builder.run.key
        for number in range(script.lines):
            await trio.sleep(script.seconds / (script.lines + 1))
            await trouble(builder.world, builder.who, "running")
            await builder.run.log.write(f"{line_of(key, number, script.width)}\n".encode())
        await trio.sleep(script.seconds / (script.lines + 1))
        if not self._killed:
            code = builder.world.variant.exit_code(script.exit_code)
            builder.ended = Ended(code == 0, code, "" if code == 0 else f"exited with code {code}")
            builder.files = dict(script.files)
            builder.world.ledger.ended.add(key)
            self._ended.set()

    async def kill(self, grace: float) -> None:
        """TERM, grace, KILL until nothing is left."""
        self._killed = True
        if self._builder.script.stubborn:
            with trio.move_on_after(grace):
                await self._gone.wait()
        else:
            self._respawns = 0
        while not self._gone.is_set():
            self._scope.cancel()
            with trio.move_on_after(0.01):
                await self._gone.wait()


class SimulatedFile(SandboxFile):
    def __init__(self, builder: SimulatedBuilder, content: bytes) -> None:
        self._builder = builder
        self._content = memoryview(content)
        self.size = len(content)

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        chaos = self._builder.world.chaos
        if chaos.strikes("engine is slow: reading"):
            await trio.sleep(chaos.between(0.01, 20))
        if chaos.strikes("engine crashes: reading"):
            raise OSError(errno.EIO, "input/output error")
        head, self._content = self._content[:max_bytes], self._content[max_bytes:]
        return bytes(head)


class SimulatedResult(Result):
    def __init__(self, builder: SimulatedBuilder) -> None:
        self._builder = builder
        self.ended = builder.ended

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        size = self._builder.files.get(path)
        if size is None:
            raise FileMissing(f"there is nothing at {path}")
        yield SimulatedFile(self._builder, content_of(self._builder.run.key, path, size))

    async def walk(self, path: str) -> AsyncGenerator[str, None]:
        raise FileInvalid(f"{path} is no folder")
        yield ""


class SimulatedBuilder(Builder):
    """One run's folder."""

    def __init__(self, run: Run[SimulatedPayload], services: Services) -> None:
        super().__init__()
        self.run = run
        self.world, ports = world_of(services)
        self.who = ports.who
        self.script = run.payload.sim
        self.ended: Ended | None = None
        self.files: dict[str, int] = {}
        self._grace = services.kill_grace.total_seconds()

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        self.world.ledger.opened(self.who, self.run.key, SANDBOX)
        try:
            await trouble(self.world, self.who, "start")
            async with trio.open_nursery() as nursery:
                process = SimulatedSandbox(self)
                self.world.variant.start(self.world, process, nursery)
                try:
                    yield process
                finally:
                    with trio.CancelScope(shield=True):
                        await self.world.variant.kill(self.world, process, self._grace)
            await trouble(self.world, self.who, "leaving")
        finally:
            self.world.ledger.closed(self.who, self.run.key, SANDBOX)

    @asynccontextmanager
    async def result(self) -> AsyncGenerator[Result, None]:
        await trouble(self.world, self.who, "result")
        yield SimulatedResult(self)


class Simulated(Engine[Document, SimulatedPayload]):
    """Known as `simulated` in the simulation alone."""

    payloads: ClassVar = {"generic-worker": SimulatedPayload}

    @asynccontextmanager
    async def builder(self, run: Run[SimulatedPayload]) -> AsyncGenerator[Builder, None]:
        world, ports = world_of(self.services)
        world.ledger.opened(ports.who, run.key, FOLDER)
        try:
            await trouble(world, ports.who, "builder")
            yield SimulatedBuilder(run, self.services)
            await trouble(world, ports.who, "cleanup")
        finally:
            world.ledger.closed(ports.who, run.key, FOLDER)
