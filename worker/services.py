"""What the worker offers to its engine and its plugins for as long as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from worker.http import HttpClients
from worker.ports import Ports
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
    """Everything of the worker's that outlives a run. `work_dir` is the worker's alone; each uses a folder in it."""

    identity: Identity
    ports: Ports
    http: HttpClients
    webhooks: Webhooks
    work_dir: Path
    kill_grace: timedelta
