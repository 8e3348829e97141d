"""A plugin whose hooks hang, raise, or take their time, each at any stage."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from engines.base import Builder, Result, Sandbox
from plugins.base import Plugin, TaskHooks
from worker.errors import MalformedPayload, Problem, ResourceUnavailable, TaskFault, WorkerFault
from worker.model import COMPLETED, Resolution, Verdict
from worker.run import Run
from worker.schema import Document, Slice
from worker.testing.simulation import limits
from worker.testing.simulation.engine import world_of
from worker.testing.simulation.ledger import HOOKS

STAGES = ("enter", "prepare", "background", "alongside", "stopped", "finished", "exit")
# Where a hook that cannot be ended delays a run, and not the end of what executes: no worker can keep that from it.
SHIELDED_STAGES = ("enter", "prepare", "background", "stopped", "finished", "exit")


class FaultyHooks(TaskHooks):
    """One run's."""

    def __init__(self, plugin: Faulty, run: Run[Slice]) -> None:
        self._plugin = plugin
        self._run = run

    async def prepare(self, builder: Builder) -> None:
        await self._plugin.trouble(self._run, "prepare")

    async def background(self) -> None:
        await self._plugin.trouble(self._run, "background")

    async def alongside(self, sandbox: Sandbox) -> None:
        await self._plugin.trouble(self._run, "alongside")

    async def stopped(self, result: Result | None) -> Verdict:
        await self._plugin.trouble(self._run, "stopped")
        return COMPLETED

    async def finished(self, resolution: Resolution) -> None:
        await self._plugin.trouble(self._run, "finished")


class Faulty(Plugin[Document, Slice]):
    """Passed to the worker as an extra plugin."""

    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        world, ports = world_of(self.services)
        world.ledger.opened(ports.who, run.key, HOOKS)
        try:
            await self.trouble(run, "enter")
            yield FaultyHooks(self, run)
            await self.trouble(run, "exit")
        finally:
            world.ledger.closed(ports.who, run.key, HOOKS)

    async def trouble(self, run: Run[Slice], stage: str) -> None:
        """Perhaps wait, perhaps raise."""
        world, ports = world_of(self.services)
        chaos = world.chaos
        if chaos.strikes(f"hook is slow: {stage}"):
            await trio.sleep(chaos.between(0.01, 20))
        if chaos.strikes(f"hook hangs: {stage}"):
            world.history.note(ports.who, f"{run.key} hook hangs: {stage}")
            await trio.sleep(world.plan.hang)
        if chaos.strikes(f"hook cannot be ended: {stage}"):
            with trio.CancelScope(shield=True):
                await trio.sleep(limits.SHIELDED)
        if chaos.strikes(f"hook raises: {stage}"):
            error: Exception = chaos.one(
                [
                    RuntimeError("a bug of the plugin"),
                    WorkerFault("the machine is at fault"),
                    ResourceUnavailable("a service is at fault"),
                    TaskFault("the task is at fault"),
                    MalformedPayload([Problem("sim", "is not as it should be")]),
                    OSError(errno.EIO, "input/output error"),
                ]
            )
            world.history.note(ports.who, f"{run.key} hook raises: {stage}: {type(error).__name__}")
            world.troubled.add((run.key, stage))
            raise error
