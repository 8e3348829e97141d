"""The engine `native`: builder and sandbox."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
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
from worker.errors import WorkerFault
from worker.process import NotContained, open_tree
from worker.run import Run
from worker.schema import Document, Slice

log = logging.getLogger(__name__)

# Output that is still in the pipe when everything is dead is read for so long, in seconds: more would mean that someone
# outside of the tree holds the pipe open.
DRAIN_LIMIT = 5.0

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "SHELL")

Argument = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class NativePayload(Slice):
    command: Annotated[list[Annotated[list[Argument], Field(min_length=1)]], Field(min_length=1)]


class NativeConfig(Document):
    """`path` is the tasks' PATH; where it is not given they have the worker's."""

    path: str | None = None


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
    def __init__(self, engine: Native, run: Run[NativePayload], directory: Path) -> None:
        super().__init__()
        self._engine = engine
        self._run = run
        self._directory = directory
        self._ended: Ended | None = None

    def _environment(self) -> dict[str, str]:
        own = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        path = {"PATH": self._engine.config.path or own.get("PATH", DEFAULT_PATH)}
        home = {"HOME": str(self._directory)}
        return own | path | home | self.env | self.worker_env | {"TASK_WORKDIR": str(self._directory)}

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        services = self._engine.services
        name = f"{self._run.key.task_id}-{self._run.key.run_id}"
        grace = services.kill_grace.total_seconds()
        output = Output(self._run.log)
        pumping = trio.CancelScope(shield=True)  # A killed task's last words belong into the log.
        sandbox = NativeSandbox()
        run_all = partial(run_commands, self._run.payload.command, self._directory, self._environment(), self._run.log)
        async with trio.open_nursery() as pump:
            pump.start_soon(self._pump, output, pumping)
            try:
                async with open_tree(services.ports, name, grace) as tree, trio.open_nursery() as commands:
                    commands.start_soon(run_all, tree, output, sandbox.end)
                    yield sandbox
                    commands.cancel_scope.cancel()
            except* NotContained as group:
                raise WorkerFault(str(group.exceptions[0])) from group
            finally:
                output.close_writer()
                pumping.deadline = trio.current_time() + DRAIN_LIMIT
        self._ended = sandbox.ended

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

    @asynccontextmanager
    async def builder(self, run: Run[NativePayload]) -> AsyncGenerator[Builder, None]:
        ports = self.services.ports
        directory = self.services.work_dir / "tasks" / f"{run.key.task_id}-{run.key.run_id}"
        await ports.run_sync(_make, directory)
        try:
            yield NativeBuilder(self, run, directory)
        finally:
            with trio.CancelScope(shield=True):
                await ports.run_sync(_remove, directory)


def _make(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)


def _remove(directory: Path) -> None:
    """Remove a task's directory, whatever the task has made of it; what cannot be removed is the worker's to tell."""
    try:
        shutil.rmtree(directory)
    except (OSError, RecursionError):
        # Folders without permissions, or more of them in one another than Python can follow.
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            done = subprocess.run([*command, "--", directory], capture_output=True, text=True, check=False)
        if directory.exists():
            log.error("%s could not be removed: %s", directory, done.stderr.strip()[:500])
