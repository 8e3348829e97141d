from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engines.base import Builder, Ended
from engines.mock import MockBuilder, MockSandbox
from plugins.base import Plugin, TaskHooks
from plugins.env import Env, EnvConfig, EnvPayload
from plugins.logprefix import LogPrefix, LogPrefixConfig
from plugins.maxruntime import MaxRunTime, MaxRunTimeConfig, MaxRunTimePayload
from plugins.success import OnExitStatus, Success, SuccessPayload
from worker.errors import MalformedPayload
from worker.model import COMPLETED, Cause, CauseKind, Severity
from worker.run import Run
from worker.schema import Document, Slice
from worker.testing.results import FolderResult
from worker.testing.runs import KEY, ROOT_URL, log_text, open_run, open_services


@asynccontextmanager
async def hooks_of(
    folder: Path, plugin: type[Plugin[Any, Any]], config: Document, payload: Slice, **run: Any
) -> AsyncGenerator[tuple[TaskHooks, Run[Slice]], None]:
    async with (
        open_services(folder) as services,
        open_run(folder, payload, **run) as made,
        plugin(config, services).task_scope(made) as hooks,
    ):
        yield hooks, made


def builder_for(run: Run[Any]) -> Builder:
    return MockBuilder(run)


async def test_the_environment_comes_from_the_config_then_the_payload_and_last_the_worker(tmp_path: Path) -> None:
    config = EnvConfig(variables={"A": "config", "B": "config"}, location={"cloud": "none"})
    payload = EnvPayload(env={"B": "task", "TASK_ID": "forged"})
    async with hooks_of(tmp_path, Env, config, payload) as (hooks, run):
        builder = builder_for(run)
        await hooks.prepare(builder)
    assert builder.env == {"A": "config", "B": "task", "TASK_ID": "forged"}
    assert builder.worker_env == {
        "TASK_ID": KEY.task_id,
        "RUN_ID": "0",
        "TASK_GROUP_ID": run.task.task_group_id,
        "TASKCLUSTER_ROOT_URL": ROOT_URL,
        "TASKCLUSTER_WORKER_LOCATION": '{"cloud": "none"}',
    }


@pytest.mark.parametrize("env", [{"A": 1}, {"A": True}, {"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, ["A=B"]])
def test_an_environment_that_cannot_be_is_refused(env: object) -> None:
    with pytest.raises(ValueError, match="env"):
        EnvPayload.model_validate({"env": env})


async def test_a_task_is_stopped_after_its_maximum_run_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    causes: list[Cause] = []
    payload = MaxRunTimePayload(max_run_time=30)
    async with hooks_of(tmp_path, MaxRunTime, MaxRunTimeConfig(), payload, stop=causes.append) as (hooks, _):
        began = trio.current_time()
        await hooks.alongside(MockSandbox())
    assert trio.current_time() - began == 30
    assert [cause.kind for cause in causes] == [CauseKind.MAX_RUN_TIME]
    assert "30 seconds" in causes[0].message


async def test_a_maximum_run_time_above_the_workers_is_malformed_and_names_both(tmp_path: Path) -> None:
    config = MaxRunTimeConfig(max_run_time=timedelta(hours=1))
    with pytest.raises(MalformedPayload, match=r"maxRunTime: 3601 seconds .* 1 hour"):
        async with hooks_of(tmp_path, MaxRunTime, config, MaxRunTimePayload(max_run_time=3601)):
            pass


@pytest.mark.parametrize(
    ("ended", "severity"),
    [
        (Ended(True, 0), Severity.COMPLETED),
        (Ended(False, 1, "exited with 1"), Severity.FAILED),
        (Ended(False, 75, "exited with 75"), Severity.INTERMITTENT),
        (Ended(False, -9, "ended by SIGKILL"), Severity.FAILED),
        (None, Severity.COMPLETED),
    ],
)
async def test_the_verdict_follows_the_exit_status(tmp_path: Path, ended: Ended | None, severity: Severity) -> None:
    payload = SuccessPayload(on_exit_status=OnExitStatus(retry=[75]))
    async with hooks_of(tmp_path, Success, Document(), payload) as (hooks, _):
        verdict = await hooks.stopped(FolderResult(tmp_path, ended))
    assert verdict.severity is severity
    assert (ended.message if ended else "") in verdict.message


async def test_without_a_sandbox_there_is_nothing_to_judge(tmp_path: Path) -> None:
    async with hooks_of(tmp_path, Success, Document(), SuccessPayload()) as (hooks, _):
        assert await hooks.stopped(None) == COMPLETED


async def test_the_landmarks_are_written(tmp_path: Path) -> None:
    config = LogPrefixConfig(settings={"config": "v1"})
    async with hooks_of(tmp_path, LogPrefix, config, Slice()) as (hooks, run):
        await hooks.prepare(builder_for(run))
        await hooks.stopped(None)
        lines = [line.partition("] ")[2] for line in (await log_text(run)).splitlines()]
    assert '"config": "v1"' in lines[0]
    assert lines[1:4] == [f"Task ID: {KEY.task_id}", "=== Task Starting ===", "=== Task Finished ==="]
    assert re.fullmatch(r"Task Duration: \d+\.\d{3}s", lines[4])
