"""The limit: the calls of a trivial task, or a spawn, or both, and nothing else: `python -m bench.bare`.

The calls go through the same client (`worker.queue`, `worker.http`) and as many at once as the worker's. A log is kept
ready, nothing is reclaimed, nobody watches a deadline, and any error ends it.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
import trio

from worker import garbage
from worker.http import open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.models import LinkArtifactRequest, TaskClaim
from worker.queue.services import Queue
from worker.queue.transfer import Content, NewArtifact
from worker.queue.upload import DeploymentStorage

MAX_CLAIM = 32
COMMAND = "/bin/true"
# About what the worker's remarks on a trivial task come to.
LOG = gzip.compress(b"".join(b"[taskcluster 2026-01-31T00:00:%02d.000Z] a line of the log\n" % i for i in range(12)))


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done: `tasks` of the pool, `capacity` at once, each with a process if it says `spawn`."""

    pool: str
    tasks: int
    capacity: int
    spawn: bool
    worker_id: str = "bare"


async def run_tasks(ports: Ports, root_url: str, credentials: Credentials, load: Load) -> None:
    """Claim and complete the tasks. As the worker does, it asks for what is free as soon as one place is."""
    async with open_http(ports) as http, trio.open_nursery() as nursery:
        deployment = Deployment(root_url, http, ports)
        queue = Queue(deployment, lambda: credentials)
        places = trio.Semaphore(load.capacity, max_value=load.capacity)

        async def run(claim: TaskClaim) -> None:
            if load.spawn:
                await spawn()
            await _upload_and_report(deployment, claim)
            places.release()

        left = load.tasks
        while left:
            await places.acquire()
            places.release()
            answer = await queue.claim_work(load.pool, "bench", load.worker_id, min(places.value, left, MAX_CLAIM))
            left -= len(answer.tasks)
            for claim in answer.tasks:
                places.acquire_nowait()
                nursery.start_soon(run, claim)


async def _upload_and_report(deployment: Deployment, claim: TaskClaim) -> None:
    credentials = Credentials.from_wire(claim.credentials)
    queue = Queue(deployment, lambda: credentials)
    key = RunKey(claim.status.task_id, claim.run_id)
    expires = claim.status.expires
    async with trio.open_nursery() as uploads:
        link = LinkArtifactRequest(
            artifact="public/logs/live_backing.log", content_type="text/plain; charset=utf-8", expires=expires
        )
        uploads.start_soon(queue.create_artifact, key, "public/logs/live.log", link)
        content = Content(len(LOG), _open_log, "gzip")
        name, content_type = "public/logs/live_backing.log", "text/plain; charset=utf-8"
        artifact = NewArtifact(queue, key, name, content_type, expires, content, content)
        await DeploymentStorage(deployment.http, deployment.ports, "s3").upload(artifact)
    await queue.report_completed(key)


@asynccontextmanager
async def _open_log() -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
    async def content() -> AsyncGenerator[bytes, None]:
        yield LOG

    yield content()


async def run_spawns(number: int, at_once: int) -> float:
    """Start and await so many processes; the seconds that it took."""
    limiter = trio.CapacityLimiter(at_once)

    async def one() -> None:
        async with limiter:
            await spawn()

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return time.perf_counter() - begun


async def spawn() -> None:
    """One process from start to end, by the primitive and with the options that `worker.process` uses."""
    null = subprocess.DEVNULL
    process = await trio.lowlevel.open_process(
        [COMMAND], stdin=null, stdout=null, stderr=null, cwd="/", env={}, start_new_session=True
    )
    await process.wait()


@click.command()
@click.option("--pool", default="", help="Task queue to claim from; without one there are no calls.")
@click.option("--tasks", type=int, required=True)
@click.option("--capacity", type=int, required=True)
@click.option("--spawn", "with_spawn", is_flag=True, help="Run a process for each task.")
@click.option("--worker-id", default="bare", help="As whom it claims.")
def main(pool: str, tasks: int, capacity: int, with_spawn: bool, worker_id: str) -> None:
    """The queue and its credentials come by the environment. Without a queue it prints the seconds that it took."""
    if not pool:
        print(trio.run(run_spawns, tasks, capacity))
        return
    garbage.resume()  # as the worker does
    credentials = Credentials(
        os.environ["TASKCLUSTER_CLIENT_ID"],
        os.environ["TASKCLUSTER_ACCESS_TOKEN"],
        os.environ.get("TASKCLUSTER_CERTIFICATE"),
    )
    load = Load(pool, tasks, capacity, with_spawn, worker_id)
    trio.run(run_tasks, Ports(), os.environ["TASKCLUSTER_ROOT_URL"], credentials, load)


if __name__ == "__main__":
    main()
