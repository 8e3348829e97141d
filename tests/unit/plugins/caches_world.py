"""A purge-cache service, caches with a worker around them, and a child process that uses them until it is killed."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio

from plugins.mounts.caches import Caches, Lease, open_caches
from worker.embedded import open_embedded_queue
from worker.http import open_http
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.retry import RetryPolicy
from worker.queue.services import PurgeCache
from worker.recovery import open_work_dir
from worker.services import Services
from worker.testing.runs import IDENTITY, open_services

NAMES = ("npm", "checkouts", "a name / with ü")


@contextmanager
def mounted_disk(folder: Path) -> Generator[Path, None, None]:
    """A disk that is really small: a tmpfs of 16 MiB, in `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=1000", "none", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class ShiftedPorts(Ports):
    """A clock that can be put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift


async def write(lease: Lease, randomness: random.Random, *, pause: float = 0) -> None:
    """Change the content, file by file; the checksum of all of it comes last."""
    (lease.path / "sum").unlink(missing_ok=True)
    for number in range(randomness.randrange(1, 4)):
        folder = lease.path / f"folder{number}"
        folder.mkdir(exist_ok=True)
        (folder / "file").write_bytes(randomness.randbytes(randomness.randrange(20_000)))
        await trio.sleep(pause)
    (lease.path / "sum").write_text(checksum(lease.path))


def checksum(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "sum")
    return hashlib.sha256(
        b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    ).hexdigest()


def check(lease: Lease) -> None:
    """What was handed out is whole, or empty."""
    if lease.fresh:
        assert list(lease.path.iterdir()) == [], "a fresh cache is not empty"
    else:
        assert (lease.path / "sum").read_text() == checksum(lease.path), "a corrupted cache was handed out"


async def use(caches: Caches, randomness: random.Random) -> bool:
    """Lease one, look whether it is whole, change it; keep it, mostly. Whether it was there before."""
    name = randomness.choice(NAMES)
    async with caches.lease(name) as lease:
        await trio.to_thread.run_sync(check, lease)
        end = randomness.random()
        await write(lease, randomness)
        lease.keep = end < 0.8
    if end > 0.95:
        await caches.purge([name])
    return not lease.fresh


async def child(work_dir: Path, seed: int) -> None:
    """A worker's life, as far as caches go: takes over the folder and uses three at once until it is killed."""
    randomness = random.Random(seed)
    ports = Ports()

    async def end_processes(ports: Ports, owner: str) -> None:
        await trio.lowlevel.checkpoint()

    async def user(caches: Caches) -> None:
        while True:
            if await use(caches, randomness):
                sys.stdout.write("+")
                sys.stdout.flush()

    async with (
        open_work_dir(ports, work_dir / "work", end_processes),
        open_services(work_dir, capacity=3) as services,
        open_caches(services) as caches,
        trio.open_nursery() as nursery,
    ):
        sys.stdout.write(f"ready {len(await caches.unused())}\n")
        sys.stdout.flush()
        for _ in range(3):
            nursery.start_soon(user, caches)


@asynccontextmanager
async def open_purging(folder: Path, ports: Ports | None = None) -> AsyncGenerator[tuple[Services, PurgeCache], None]:
    """Services with a purge-cache service that is there; by the other client requests are made."""
    ports = ports or Ports()
    async with open_embedded_queue(ports) as embedded, open_http(ports) as http:
        credentials = Credentials(embedded.credentials.client_id, embedded.credentials.access_token)
        deployment = Deployment(embedded.root_url, http, ports, RetryPolicy(attempts=1))
        service = PurgeCache(deployment, lambda: credentials)
        async with open_services(folder, ports=ports, purge_cache=service) as services:
            yield services, service


async def ask_to_purge(service: PurgeCache, name: str) -> None:
    """As a user does."""
    await service.client.purgeCache(IDENTITY.task_queue_id, {"cacheName": name})


if __name__ == "__main__":
    trio.run(child, Path(sys.argv[1]), int(sys.argv[2]))
