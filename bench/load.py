"""The tasks that a benchmark's workers run: created beforehand, looked at afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import trio

from bench.canned import Account
from bench.processes import BenchmarkFailed, Deployment
from worker.http import open_http
from worker.outcome import leaves
from worker.ports import Ports
from worker.queue import deployment as services
from worker.queue.errors import QueueError
from worker.queue.models import TaskStatus
from worker.queue.services import Queue
from worker.queue.wire import format_time
from worker.taskfile import complete_task

AT_ONCE = 16
LIFETIME = timedelta(minutes=20)  # of a task: what a benchmark that fails leaves in a queue is soon over


@asynccontextmanager
async def open_client(deployment: Deployment, ports: Ports) -> AsyncGenerator[Queue, None]:
    """The typed client of the queue, as its root client."""
    async with open_http(ports) as http:
        yield Queue(services.Deployment(deployment.root_url, http, ports), lambda: deployment.credentials)


async def create_tasks(deployment: Deployment, pool: str, payload: dict[str, Any], number: int) -> list[str]:
    """Create so many equal tasks, several at once; their ids. Raises BenchmarkFailed where the queue refuses."""
    ports = Ports()
    deadline = format_time(ports.now() + LIFETIME)
    task = complete_task({"payload": payload, "deadline": deadline}, "bench", pool, ports.now())
    ids = [ports.slug() for _ in range(number)]
    limiter = trio.CapacityLimiter(AT_ONCE)
    async with open_client(deployment, ports) as queue:

        async def create(task_id: str) -> None:
            async with limiter:
                await queue.create_task(task_id, task)

        try:
            async with trio.open_nursery() as nursery:
                for task_id in ids:
                    nursery.start_soon(create, task_id)
        except* QueueError as refusals:
            refusal = str(next(leaves(refusals)))
        else:
            return ids
    raise BenchmarkFailed(f"the tasks could not be created: {refusal}")


async def seconds_to_run(deployment: Deployment, ids: list[str]) -> float:
    """From the first claim to the last resolution, by the queue's clock.

    Raises BenchmarkFailed unless each task was completed, by one run.
    """
    async with open_client(deployment, Ports()) as queue:
        statuses = [found.status for found in await queue.statuses(ids)]
    if len(statuses) != len(ids) or not all(_completed_once(status) for status in statuses):
        ends = sorted({f"{status.state} after {len(status.runs)} runs" for status in statuses})
        raise BenchmarkFailed(f"{len(statuses)} of {len(ids)} tasks are known; they are {', '.join(ends)}")
    runs = [status.runs[0] for status in statuses]
    started = [run.started for run in runs if run.started]
    resolved = [run.resolved for run in runs if run.resolved]
    return (max(resolved) - min(started)) / timedelta(seconds=1)


async def account_of(deployment: Deployment) -> Account:
    """What a `bench.canned` has counted."""
    async with open_http(Ports()) as http:
        answer = await http.control.request("GET", f"{deployment.root_url}/bench")
    return Account(**json.loads(answer.body))


async def add_tasks(deployment: Deployment, number: int) -> None:
    """So many more, for a `bench.canned`."""
    async with open_http(Ports()) as http:
        content = json.dumps({"tasks": number}).encode()
        await http.control.request("POST", f"{deployment.root_url}/bench", content=content)


Counted = Literal["reported", "waiting"]  # tasks that were reported, claims that wait for tasks


async def counted(deployment: Deployment, what: Counted, at_least: int = 0) -> int:
    """A count of a `bench.canned`, which waits some seconds for it to be so high."""
    async with open_http(Ports()) as http:
        return int((await http.control.request("GET", f"{deployment.root_url}/bench/{what}/{at_least}")).body)


async def wait_counted(
    deployment: Deployment, what: Counted, number: int, limit: float, *workers: trio.Process
) -> None:
    """Until a count of a `bench.canned` is so high.

    Raises BenchmarkFailed after `limit` seconds, and soon after one of the workers has ended without that.
    """
    with trio.move_on_after(limit):
        while await counted(deployment, what, number) < number:
            if any(worker.returncode is not None for worker in workers):
                break
        else:
            return
    codes = ", ".join(f"{worker.returncode}" for worker in workers)
    raise BenchmarkFailed(f"{number} were not {what}; the workers' exit codes: {codes}")


async def seconds_of(deployment: Deployment, tasks: int) -> float:
    """As `seconds_to_run`, of a `bench.canned`."""
    account = await account_of(deployment)
    if len(account.claims) != tasks or account.reported != {"completed": tasks}:
        raise BenchmarkFailed(f"{len(account.claims)} of {tasks} tasks were claimed, and reported: {account.reported}")
    return account.reports[-1] - account.claims[0]


def _completed_once(status: TaskStatus) -> bool:
    return status.state == "completed" and len(status.runs) == 1
