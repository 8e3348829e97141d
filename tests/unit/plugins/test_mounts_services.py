"""What the index and the auth service may say of mounts that the embedded queue never says."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from plugins.mounts import Mounts
from plugins.mounts.payload import Content, GenericWorkerPayload
from plugins.mounts.plugin import MountsConfig
from plugins.mounts.sources import find_source
from worker.errors import MalformedPayload, ResourceUnavailable
from worker.http import open_http
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.retry import RetryPolicy
from worker.queue.services import Queue
from worker.run import Run
from worker.testing.plugin_suite import IdleBuilder
from worker.testing.runs import ROOT_URL, open_run, open_services, task_definition

CACHE = {"cacheName": "c", "directory": "cache"}
ROLE = "assume:project:mine"


class ServicePorts(Ports):
    """The services of a deployment, in which `answers` are by path."""

    def __init__(self, answers: dict[str, tuple[int, object]]) -> None:
        super().__init__()
        self.answers = answers
        self.requests: list[httpx.Request] = []

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        status, document = self.answers.get(request.url.path, (404, {"code": "ResourceNotFound", "message": "nothing"}))
        return httpx.Response(status, json=document)


@asynccontextmanager
async def open_one(
    tmp_path: Path, ports: ServicePorts, payload: GenericWorkerPayload, scopes: list[str]
) -> AsyncGenerator[tuple[Mounts, Run[GenericWorkerPayload]], None]:
    async with open_services(tmp_path, ports=ports) as services, open_http(ports) as http:
        policy = RetryPolicy(attempts=2, first=0.01)
        queue = Queue(Deployment(ROOT_URL, http, ports, policy), lambda: Credentials("task", "token"))
        plugin = Mounts(MountsConfig(), services)
        task = task_definition(scopes=scopes)
        async with plugin.worker_scope(), open_run(tmp_path, payload, task=task, queue=queue) as run:
            yield plugin, run


async def test_an_index_that_does_not_work_is_not_the_tasks_fault(tmp_path: Path) -> None:
    ports = ServicePorts({"/api/index/v1/task/down": (500, {})})
    async with open_one(tmp_path, ports, GenericWorkerPayload(), []) as (_, run):
        with pytest.raises(ResourceUnavailable, match="namespace down in the index"):
            await find_source(run, Content(namespace="down", artifact="public/a"))


@pytest.mark.parametrize("role", [ROLE, "assume*"])
@pytest.mark.parametrize("status", [200, 401, 404, 500])
@pytest.mark.parametrize("expanded", [["generic-worker:cache:*"], ["something:else"]])
async def test_a_role_may_have_the_scope_for_a_cache(
    tmp_path: Path, status: int, expanded: list[str], role: str
) -> None:
    ports = ServicePorts({"/api/auth/v1/scopes/expand": (status, {"scopes": [role, *expanded]})})
    payload = GenericWorkerPayload.model_validate({"mounts": [CACHE]})
    builder = IdleBuilder()

    async def prepare() -> None:
        async with open_one(tmp_path, ports, payload, [role]) as (plugin, run), plugin.task_scope(run) as hooks:
            await hooks.prepare(builder)

    if status == 200 and expanded == ["generic-worker:cache:*"]:
        await prepare()
        assert [volume.path for volume in builder.volumes] == ["cache"]
    else:
        expected = ResourceUnavailable if status in {401, 500} else MalformedPayload
        with pytest.RaisesGroup(expected, flatten_subgroups=True, allow_unwrapped=True):
            await prepare()
        assert builder.volumes == []
    assert json.loads(ports.requests[0].content) == {"scopes": [role]}
