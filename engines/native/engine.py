"""The engine `native`: builder and sandbox."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import trio
from pydantic import Field

from engines.base import Builder, Ended, Engine, Result, Sandbox
from engines.native.commands import run_commands
from engines.native.files import FolderResult
from engines.native.output import Output
from engines.native.remarks import in_words, warnings_of
from engines.native.volumes import Volumes
from worker.cgroups import Limits
from worker.errors import FatalWorkerFault, MalformedPayload, Problem, WorkerFault
from worker.process import Containment, NotContained, ProcessTree, open_containment, owner_of
from worker.quantities import Duration, Size, approximate_size, format_duration
from worker.run import Run
from worker.schema import Document, Slice

log = logging.getLogger(__name__)

# Output that is still in the pipe when everything is dead is read for so long, in seconds: more would mean that someone
# outside of the tree holds the pipe open.
DRAIN_LIMIT = 5.0

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "SHELL")

Argument = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class TaskLimits(Document):
    """`kill_grace` is in seconds, from TERM to KILL when the task is ended; at most the worker's `killGrace`."""

    kill_grace: Annotated[float, Field(ge=0, strict=False)] | None = None


class NativePayload(Slice):
    command: Annotated[list[Annotated[list[Argument], Field(min_length=1)]], Field(min_length=1)]
    limits: TaskLimits = TaskLimits()


class NativeLimits(Document):
    """What each task may use at most: memory, processes (threads count), processors. Not given is unlimited."""

    memory: Annotated[Size, Field(ge=2**20)] | None = None
    processes: Annotated[int, Field(ge=1)] | None = None
    cpus: Annotated[float, Field(ge=0.01, strict=False)] | None = None


class NativeConfig(Document):
    """`path` is the tasks' PATH; where it is not given they have the worker's.

    `kill_grace` is for tasks that do not ask for one; where it is not given they have the worker's, which is the most.
    """

    path: str | None = None
    limits: NativeLimits = NativeLimits()
    kill_grace: Duration | None = None


class NativeSandbox(Sandbox):
    def __init__(self) -> None:
        self._done = trio.Event()
        self.ended: Ended | None = None

    async def wait(self) -> None:
        await self._done.wait()

    def end(self, ended: Ended) -> None:
        self.ended = ended
        self._done.set()


class NativeBuilder(Builder):
    def __init__(self, engine: Native, run: Run[NativePayload], directory: Path, grace: float) -> None:
        super().__init__()
        self._engine = engine
        self._run = run
        self._directory = directory
        self._grace = grace
        self._ended: Ended | None = None
        self.mounted = Volumes(engine.services.ports, directory, run.log)

    def _environment(self) -> dict[str, str]:
        own = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        path = {"PATH": self._engine.config.path or own.get("PATH", DEFAULT_PATH)}
        home = {"HOME": str(self._directory)}
        return own | path | home | self.env | self.worker_env | {"TASK_WORKDIR": str(self._directory)}

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        log, engine = self._run.log, self._engine
        await self.mounted.place(self.volumes)
        begun = trio.current_time()
        output = Output(log)
        pumping = trio.CancelScope(shield=True)  # A killed task's last words belong into the log.
        sandbox = NativeSandbox()
        run_all = partial(run_commands, self._run.payload.command, self._directory, self._environment(), log)
        open_tree = partial(engine.containment.open_tree, limits=engine.limits, hurry=engine.services.hurry)
        tree: ProcessTree | None = None
        try:
            async with trio.open_nursery() as pump:
                pump.start_soon(self._pump, output, pumping)
                try:
                    async with open_tree(str(self._run.key).replace("/", "-"), self._grace) as tree:
                        log.say(f"Processes are held by a {engine.containment.kind}{engine.limits_in_words()}")
                        async with trio.open_nursery() as commands:
                            commands.start_soon(run_all, tree, output, sandbox.end)
                            yield sandbox
                            commands.cancel_scope.cancel()
                except* NotContained as group:
                    sandbox.ended = None  # what survives could still write into what would be kept
                    raise WorkerFault(str(group.exceptions[0])) from group
                finally:
                    output.close_writer()
                    pumping.deadline = trio.current_time() + DRAIN_LIMIT
        finally:
            self._ended = sandbox.ended
            if tree is not None:
                self._tell_end(tree, trio.current_time() - begun)

    def _tell_end(self, tree: ProcessTree, wall: float) -> None:
        for line in warnings_of(tree.ending, by_itself=self._ended is not None):
            self._run.log.warn(line)
        if (usage := tree.usage()) is not None:
            self._run.log.say(in_words(usage, wall))

    async def _pump(self, output: Output, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await output.pump()
        finally:
            output.close_reader()
        if scope.cancelled_caught:
            self._run.log.warn("a process outside of the task holds its output open; what it writes is not logged")

    @asynccontextmanager
    async def result(self) -> AsyncGenerator[Result, None]:
        yield FolderResult(self._engine.services.ports, self._directory, self._ended)


class Native(Engine[NativeConfig, NativePayload]):
    Config = NativeConfig
    payloads: ClassVar = {"generic-worker": NativePayload}
    mounts: ClassVar = True
    containment: Containment  # while `worker_scope` lasts

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        services = self.services
        owner = await services.ports.run_sync(owner_of, services.work_dir)
        async with open_containment(services.ports, owner) as self.containment:
            if lacking := self.containment.lacking(self.limits):
                raise FatalWorkerFault(
                    f"engines.native.limits cannot be kept on this machine, which gives no cgroup controller "
                    f"{', '.join(lacking)} to this worker; tc-worker doctor tells more"
                )
            log.info("tasks are held by a %s", self.containment.kind)
            yield

    @property
    def limits(self) -> Limits:
        """What each task may use."""
        configured = self.config.limits
        return Limits(configured.memory, configured.processes, configured.cpus)

    def limits_in_words(self) -> str:
        """For a log: nothing where there are none."""
        own = self.config.limits
        words = [f"memory {approximate_size(own.memory)}"] if own.memory is not None else []
        words += [f"{own.processes} processes"] if own.processes is not None else []
        words += [f"{own.cpus:g} processors"] if own.cpus is not None else []
        return f"; limits: {', '.join(words)}" if words else ""

    @asynccontextmanager
    async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
        ports = self.services.ports
        grace = self._grace(run.payload.limits)
        directory = self.services.work_dir / "tasks" / f"{run.key.task_id}-{run.key.run_id}"
        await ports.run_sync(_make, directory)
        builder = NativeBuilder(self, run, directory, grace)
        try:
            yield builder
        finally:
            with trio.CancelScope(shield=True):
                await builder.mounted.put_back()
                await self.services.trash.discard(directory)

    def _grace(self, limits: TaskLimits) -> float:
        most = self.services.kill_grace
        if limits.kill_grace is None:
            return min(self.config.kill_grace or most, most).total_seconds()
        if limits.kill_grace > most.total_seconds():
            problem = Problem("limits.killGrace", f"is more than this worker allows, {format_duration(most)}")
            raise MalformedPayload([problem])
        return limits.kill_grace


def _make(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
