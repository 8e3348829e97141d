"""Folders that outlive a task, by name: each is one run's alone while it is in use.

    work_dir/caches/N   meta.json and content: nobody uses it
    work_dir/leased/N   a run has it, or had it when the worker was killed
    work_dir/trash      from where nothing comes back

A cache goes from one to the other by a rename, which happens or does not. So what a killed worker left is told by where
it is: caches that a run had are thrown away at the next start, and the others are whole. There are no locks on disk.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import stat
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import trio

from plugins.mounts.purge import Purges
from worker.disk import Item
from worker.errors import WorkerFault
from worker.services import Services

log = logging.getLogger("worker")

CACHES = "caches"
LEASED = "leased"
META = "meta.json"
CONTENT = "content"
# Seconds by which the clocks of the worker and the service may differ unnoticed: in doubt a cache is thrown away.
SLACK = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of a pool, in `caches` or `leased` by its number. `made` is by the service's clock."""

    number: int
    name: str
    made: datetime
    used: datetime


@dataclass
class Lease:
    """What a run has of a cache: the folder at `path`, which is its alone. `fresh`: it was made anew and is empty.

    Only where the run says `keep` is it there for others afterwards.
    """

    path: Path
    fresh: bool
    keep: bool = False


class Caches:
    """The pools: for each name what nobody uses, the last used last."""

    def __init__(self, services: Services, purges: Purges | None) -> None:
        self._services = services
        self._ports = services.ports
        self._purges = purges
        self._folder = services.work_dir / CACHES
        self._leased = services.work_dir / LEASED
        self._pools: defaultdict[str, list[Cache]] = defaultdict(list)
        self._purged: dict[str, datetime] = {}
        self._numbers = itertools.count()

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[Lease, None]:
        """A cache of that name, as it was left last, or a fresh one; for the block alone.

        Afterwards it is kept, if `keep` says so and a folder is at its path. Raises WorkerFault where none can be made.
        """
        if self._pools.get(name) and self._purges is not None:
            await self._purges.refresh()
        # From here on a cancellation would leave a cache that nobody knows of.
        with trio.CancelScope(shield=True):
            taken = await self._take(name)
            cache = taken or await self._make(name)
        lease = Lease(self._leased / str(cache.number) / CONTENT, fresh=taken is None)
        try:
            yield lease
        finally:
            with trio.CancelScope(shield=True):
                await self._give_back(cache, lease)

    async def _take(self, name: str) -> Cache | None:
        while pool := self._pools.get(name):
            cache = pool.pop()
            folder = self._folder / str(cache.number)
            if self._is_purged(cache):
                log.info("cache %s is thrown away, as was asked", name)
                await self._services.trash.discard(folder)
                continue
            try:
                await self._ports.run_sync(os.rename, folder, self._leased / str(cache.number))
            except OSError as error:
                log.warning("cache %s is lost: %s", name, error)
                await self._services.trash.discard(folder)
            else:
                return cache
        self._pools.pop(name, None)
        return None

    async def _make(self, name: str) -> Cache:
        number, now = next(self._numbers), self._now()
        try:
            await self._ports.run_sync(_make, self._leased / str(number))
        except OSError as error:
            raise WorkerFault(f"no cache can be made: {error.strerror}") from error
        return Cache(number, name, now, now)

    async def _give_back(self, cache: Cache, lease: Lease) -> None:
        leased = self._leased / str(cache.number)
        if lease.keep and not self._is_purged(cache):
            kept = Cache(cache.number, cache.name, cache.made, self._now())
            try:
                await self._ports.run_sync(_keep, kept, leased, self._folder / str(cache.number))
            except OSError as error:
                log.warning("cache %s is lost: %s", cache.name, error.strerror)
            else:
                await self._add(kept)
        await self._services.trash.discard(leased)

    async def _add(self, cache: Cache) -> None:
        pool = self._pools[cache.name]
        pool.append(cache)
        while len(pool) > self._services.capacity:
            await self._services.trash.discard(self._folder / str(pool.pop(0).number))

    async def purge(self, names: Iterable[str]) -> None:
        """Throw away all caches of these names: unused ones at once, the others when they come back."""
        now = self._now()
        for name in names:
            self._purged[name] = now
            for cache in self._pools.pop(name, []):
                await self._services.trash.discard(self._folder / str(cache.number))

    def _is_purged(self, cache: Cache) -> bool:
        if (moment := self._purged.get(cache.name)) and cache.made <= moment:
            return True
        before = self._purges.before(cache.name) if self._purges is not None else None
        return before is not None and cache.made < before + SLACK

    def _now(self) -> datetime:
        service = self._services.purge_cache
        return self._ports.now() if service is None else service.client.deployment.clock.now()

    # As a store of the disk's

    async def unused(self) -> list[Item]:
        """What nobody uses now."""
        return [
            Item(cache.used.timestamp(), 0, f"cache {cache.name}", str(cache.number))
            for pool in self._pools.values()
            for cache in pool
        ]

    async def remove(self, item: Item) -> bool:
        """Throw one away; False where a run has it by now."""
        for pool in self._pools.values():
            for cache in pool:
                if str(cache.number) == item.key:
                    pool.remove(cache)
                    await self._services.trash.discard(self._folder / item.key)
                    return True
        return False

    async def load(self) -> None:
        """Find what is there. What is not as it should be is thrown away."""
        for path in await self._ports.run_sync(_begin, self._folder, self._leased):
            await self._services.trash.discard(path)
        caches, bad = await self._ports.run_sync(_load, self._folder)
        for path in bad:
            await self._services.trash.discard(path)
        for cache in sorted(caches, key=lambda cache: cache.used):
            self._pools[cache.name].append(cache)
        self._numbers = itertools.count(max((cache.number for cache in caches), default=-1) + 1)


@asynccontextmanager
async def open_caches(services: Services) -> AsyncGenerator[Caches, None]:
    """The caches of a worker, for as long as the block lasts: those that an earlier worker kept are there."""
    service = services.purge_cache
    purges = None if service is None else Purges(service, services.identity.task_queue_id)
    caches = Caches(services, purges)
    await caches.load()
    with services.disk.add(caches):
        yield caches


def _begin(folder: Path, leased: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    leased.mkdir(parents=True, exist_ok=True, mode=0o700)
    return list(leased.iterdir())


def _load(folder: Path) -> tuple[list[Cache], list[Path]]:
    caches, bad = [], []
    for path in folder.iterdir():
        try:
            caches.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError):
            bad.append(path)
    return caches, bad


def _read(path: Path) -> Cache:
    meta = json.loads((path / META).read_text())
    if not stat.S_ISDIR((path / CONTENT).lstat().st_mode):
        raise ValueError("no folder")
    made, used = datetime.fromisoformat(meta["made"]), datetime.fromisoformat(meta["used"])
    return Cache(int(path.name), str(meta["name"]), made, used)


def _make(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / CONTENT).mkdir()


def _keep(cache: Cache, leased: Path, target: Path) -> None:
    if not stat.S_ISDIR((leased / CONTENT).lstat().st_mode):
        raise NotADirectoryError(None, "the task has put something else in its place")
    meta = {"name": cache.name, "made": cache.made.isoformat(), "used": cache.used.isoformat()}
    (leased / META).write_text(json.dumps(meta))
    leased.rename(target)
