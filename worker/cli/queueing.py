"""Queues that live as long as a command, and how a worker is joined to one."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from worker.cli.common import WORKER_FAULT, Failure
from worker.config import Config
from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.serving import ServingLimits
from worker.webhooks import WebhooksConfig


@asynccontextmanager
async def open_queue(ports: Ports, host: str, port: int, data: Path | None) -> AsyncGenerator[EmbeddedQueue, None]:
    """The embedded queue. Raises Failure where it cannot begin."""
    begun = False
    try:
        async with open_embedded_queue(ports, host=host, port=port, data=data) as queue:
            begun = True
            yield queue
    except* (OSError, RuntimeError) as errors:
        if begun:
            raise
        reasons = "; ".join(str(error) for error in errors.exceptions)
        raise Failure(f"the queue cannot start on {host}, port {port}: {reasons}", WORKER_FAULT) from None


def exports(queue: EmbeddedQueue) -> list[str]:
    """The environment that leads clients to the queue: `NAME=value`, for a shell to take as it is."""
    return [
        f"TASKCLUSTER_ROOT_URL={queue.root_url}",
        f"TASKCLUSTER_CLIENT_ID={queue.credentials.client_id}",
        f"TASKCLUSTER_ACCESS_TOKEN={queue.credentials.access_token}",
    ]


def joined(config: Config, queue: EmbeddedQueue, **worker: object) -> Config:
    """`config` for a worker of the embedded queue, with other values for `config.worker`.

    Unless it says otherwise, no disk space need be free, since this is somebody's own machine, and cancelled tasks are
    looked for every second, since this is somebody's own queue. Its web server is for this machine alone: a tunnel
    would not take this queue's tokens, and the config's port may be in use by a worker that runs. And it leaves most
    connections to the queue, whose server is in the same process.
    """
    given = config.worker.model_fields_set
    if "minimum_disk_space" not in given:
        worker.setdefault("minimum_disk_space", 0)
    if "minimum_inodes" not in given:
        worker.setdefault("minimum_inodes", 0)
    if "cancel_poll_interval" not in given:
        worker.setdefault("cancel_poll_interval", timedelta(seconds=1))
    credentials = Credentials(queue.credentials.client_id, queue.credentials.access_token)
    own = config.worker.model_copy(update=worker)
    webhooks = WebhooksConfig(limits=ServingLimits(connections=200))
    return dataclasses.replace(config, root_url=queue.root_url, credentials=credentials, worker=own, webhooks=webhooks)
