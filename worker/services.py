"""What the worker offers to its engine and its plugins for as long as it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import trio

from worker.disk import Disk
from worker.http import HttpClients
from worker.ports import Ports
from worker.queue.services import PurgeCache
from worker.queue.upload import DeploymentStorage
from worker.trash import Trash
from worker.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Identity:
    """Which worker this is. `task_queue_id` is `provisionerId/workerType`."""

    root_url: str
    task_queue_id: str
    worker_group: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Services:
    """Everything of the worker's that outlives a run. `work_dir` is the worker's alone; each uses a folder in it.

    `trash` takes what is to be removed from it, and `disk` keeps room there. `purge_cache` has the worker's own
    credentials; None where there is no deployment. `capacity` is how many runs there may be at once.
    `kill_grace` is the longest that any task gets from TERM to KILL: claims are given up that much before their end.
    `hurry` is set when the worker is told to end at once: from then on there is no grace any more. `storage` is how the
    deployment takes artifacts.
    """

    identity: Identity
    ports: Ports
    http: HttpClients
    webhooks: Webhooks
    work_dir: Path
    trash: Trash
    disk: Disk
    kill_grace: timedelta
    storage: DeploymentStorage
    capacity: int = 1
    purge_cache: PurgeCache | None = None
    hurry: trio.Event = field(default_factory=trio.Event)
