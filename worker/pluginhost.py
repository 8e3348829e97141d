"""Enters a run's plugins in order, calls their hooks, leaves them in reverse, and keeps every error."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import trio

from plugins.base import Plugin, TaskHooks
from worker.limits import Limiter
from worker.model import Verdict
from worker.run import Run

Classify = Callable[[BaseException], Verdict]


@dataclass(frozen=True, slots=True)
class Member:
    """One plugin of the worker, by its name."""

    name: str
    plugin: Plugin[Any, Any]


def in_order(members: Sequence[Member]) -> list[Member]:
    """`members` so that each comes after those that its `after` names, else by name.

    Raises ValueError where they wait for one another. A name that is not among them is no matter: it is disabled.
    """
    left = sorted(members, key=lambda member: member.name)
    present = {member.name for member in left}
    ordered: list[Member] = []
    done: set[str] = set()
    while left:
        ready = next((member for member in left if member.plugin.after & present <= done), None)
        if ready is None:
            raise ValueError(f"plugins wait for one another: {', '.join(member.name for member in left)}")
        left.remove(ready)
        ordered.append(ready)
        done.add(ready.name)
    return ordered


@dataclass
class PluginHost:
    """The plugins of one run that were entered. `verdicts` has what went wrong in any of them."""

    classify: Classify
    limiter: Limiter
    verdicts: list[Verdict] = field(default_factory=list)
    _entered: dict[str, tuple[Member, TaskHooks]] = field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        """Keep an error as a verdict."""
        self.verdicts.append(self.classify(error))

    async def each(
        self, hook: str, call: Callable[[TaskHooks], Awaitable[None]], *, limit: timedelta | None = None
    ) -> None:
        """Call one hook on all plugins at once. Raises what they raise, and WorkerFault for one that exceeds `limit`.

        Each begins when those that it is to come after have returned; without a `limit` the hook may last, and none
        waits for another one.
        """

        async def limited(member: Member, hooks: TaskHooks) -> None:
            with nullcontext() if limit is None else self.limiter.step(f"plugin {member.name}: {hook}", limit):
                await call(hooks)

        await self._at_once(hook, limited, ordered=limit is not None)

    async def every(self, hook: str, call: Callable[[TaskHooks], Awaitable[Verdict | None]], limit: timedelta) -> None:
        """As `each`, and keep every verdict and error: no plugin's failure keeps another one from its hook."""

        async def kept(member: Member, hooks: TaskHooks) -> None:
            try:
                with self.limiter.step(f"plugin {member.name}: {hook}", limit):
                    verdict = await call(hooks)
            except Exception as error:  # noqa: BLE001 - whatever a plugin does wrong is a verdict
                self.fail(error)
            else:
                if verdict is not None:
                    self.verdicts.append(verdict)

        await self._at_once(hook, kept, ordered=True)

    async def _at_once(self, hook: str, call: Callable[[Member, TaskHooks], Awaitable[None]], *, ordered: bool) -> None:
        # Most plugins override few hooks, and tasks for the others would be much of what a short run costs.
        overridden = [
            each for each in self._entered.values() if getattr(type(each[1]), hook) is not getattr(TaskHooks, hook)
        ]
        if len(overridden) == 1:
            await call(*overridden[0])
            return
        done = {member.name: trio.Event() for member, _ in overridden}

        async def one(member: Member, hooks: TaskHooks) -> None:
            for name in member.plugin.after & done.keys() if ordered else ():
                await done[name].wait()
            try:
                await call(member, hooks)
            finally:
                done[member.name].set()

        async with trio.open_nursery() as nursery:
            for member, hooks in overridden:
                nursery.start_soon(one, member, hooks, name=member.name)


@asynccontextmanager
async def enter_plugins(
    members: Sequence[Member], runs: Mapping[str, Run[Any]], classify: Classify, limiter: Limiter
) -> AsyncGenerator[PluginHost, None]:
    """Enter each member that has a run in `runs`, in order. One that fails to is left out and is a verdict."""
    host, limits = PluginHost(classify, limiter), limiter.config

    @asynccontextmanager
    async def guarded(member: Member) -> AsyncGenerator[None, None]:
        entered = False
        inside: BaseException | None = None
        try:
            scope = member.plugin.task_scope(runs[member.name])
            async with limiter.scope(f"plugin {member.name}: its scope", scope, limits.enter, limits.exit) as hooks:
                host._entered[member.name] = (member, hooks)
                entered = True
                try:
                    yield
                except BaseException as error:
                    inside = error
                    raise
        except Exception as error:
            if inside is not None:
                raise  # It is not this plugin's.
            host.fail(error)
        if not entered:
            yield  # A generator's context manager must get here once, whether or not there is a plugin in it.

    async with AsyncExitStack() as stack:
        for member in members:
            if member.name in runs:
                await stack.enter_async_context(guarded(member))
        yield host
