from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from plugins.base import Plugin, TaskHooks
from worker.errors import ResourceUnavailable, TaskFault
from worker.limits import Limiter, LimitsConfig
from worker.model import COMPLETED, Severity, Verdict
from worker.outcome import classify
from worker.pluginhost import Member, PluginHost, enter_plugins, in_order
from worker.run import Run
from worker.schema import Document, Slice
from worker.testing.runs import open_run, open_services
from worker.watchdog import Watchdog

LIMIT = timedelta(minutes=1)
LIMITER = Limiter(LimitsConfig(), Watchdog(60, time.monotonic))


class Recorder(Plugin[Document, Slice]):
    """Writes down what is called; `fails` has exceptions by stage."""

    def __init__(self, services: Any, name: str, calls: list[str], fails: dict[str, Exception]) -> None:
        super().__init__(Document(), services)
        self.name = name
        self.calls = calls
        self.fails = fails

    def record(self, stage: str) -> None:
        self.calls.append(f"{self.name} {stage}")
        if error := self.fails.get(stage):
            raise error

    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        self.record("enter")
        yield RecorderHooks(self)
        self.record("leave")


class RecorderHooks(TaskHooks):
    def __init__(self, plugin: Recorder) -> None:
        self.plugin = plugin

    async def background(self) -> None:
        await trio.lowlevel.checkpoint()
        self.plugin.record("background")

    async def stopped(self, result: object) -> Verdict:
        await trio.lowlevel.checkpoint()
        self.plugin.record("stopped")
        return COMPLETED


def after(*names: str) -> type[Recorder]:
    return type("After", (Recorder,), {"after": frozenset(names)})


@asynccontextmanager
async def entered(
    folder: Path, *plugins: tuple[str, type[Recorder], dict[str, Exception]]
) -> AsyncGenerator[tuple[PluginHost, list[str]], None]:
    calls: list[str] = []
    async with open_services(folder) as services, open_run(folder, Slice()) as run:
        members = in_order([Member(name, kind(services, name, calls, fails)) for name, kind, fails in plugins])
        runs = {member.name: run for member in members}
        async with enter_plugins(members, runs, lambda error: classify(error, "i1"), LIMITER) as host:
            yield host, calls


async def test_plugins_are_entered_in_order_and_left_in_reverse(tmp_path: Path) -> None:
    plugins: Iterable[Any] = [("a", after("c"), {}), ("b", Recorder, {}), ("c", after("b"), {})]
    async with entered(tmp_path, *plugins) as (host, calls):
        await host.every("stopped", lambda hooks: hooks.stopped(None), LIMIT)
    order = ["b", "c", "a"]
    assert calls == [f"{n} enter" for n in order] + [f"{n} stopped" for n in order] + [
        f"{n} leave" for n in order[::-1]
    ]
    assert host.verdicts == [COMPLETED] * 3


async def test_hooks_without_an_order_are_called_at_once(tmp_path: Path) -> None:
    async with entered(tmp_path, ("a", Recorder, {}), ("b", Recorder, {})) as (host, _):
        begun: list[TaskHooks] = []
        both = trio.Event()

        async def meet(hooks: TaskHooks) -> None:
            begun.append(hooks)
            if len(begun) == 2:
                both.set()
            await both.wait()

        with trio.fail_after(5):
            await host.each("stopped", meet)


async def test_a_plugin_that_fails_keeps_no_other_from_its_hook(tmp_path: Path) -> None:
    failing: Any = {"stopped": TaskFault("oh")}
    async with entered(tmp_path, ("a", Recorder, failing), ("b", after("a"), {})) as (host, calls):
        await host.every("stopped", lambda hooks: hooks.stopped(None), LIMIT)
        assert calls[-2:] == ["a stopped", "b stopped"]
        assert host.verdicts == [Verdict(Severity.FAILED, "oh"), COMPLETED]


async def test_one_that_cannot_be_entered_is_a_verdict_and_is_not_called(tmp_path: Path) -> None:
    failing: Any = {"enter": ResourceUnavailable("gone")}
    async with entered(tmp_path, ("a", Recorder, failing), ("b", Recorder, {})) as (host, calls):
        await host.every("stopped", lambda hooks: hooks.stopped(None), LIMIT)
    assert calls == ["a enter", "b enter", "b stopped", "b leave"]
    assert host.verdicts == [Verdict(Severity.RESOURCE_UNAVAILABLE, "gone"), COMPLETED]


async def test_errors_on_leaving_are_all_kept(tmp_path: Path) -> None:
    failing: Any = {"leave": TaskFault("stuck")}
    async with entered(tmp_path, ("a", Recorder, failing), ("b", Recorder, failing)) as (host, calls):
        pass
    assert calls == ["a enter", "b enter", "b leave", "a leave"]
    assert [verdict.message for verdict in host.verdicts] == ["stuck", "stuck"]


async def test_an_error_in_a_stage_that_raises_comes_out(tmp_path: Path) -> None:
    async with entered(tmp_path, ("a", Recorder, {"background": TaskFault("no")})) as (host, _):
        with pytest.raises(TaskFault, match="no"):
            await host.each("background", lambda hooks: hooks.background())


async def test_plugins_that_wait_for_one_another_are_refused(tmp_path: Path) -> None:
    async with open_services(tmp_path) as services:
        members = [Member(name, after(other)(services, name, [], {})) for name, other in ("ab", "ba")]
        with pytest.raises(ValueError, match="wait for one another: a, b"):
            in_order(members)
