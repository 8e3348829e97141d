"""Folders that outlive a task, by name: each is one run's alone while it is in use.

    work_dir/caches/N   meta.json and content: nobody uses it
    work_dir/leased/N   a run has it, or had it when the worker was killed
    work_dir/trash      from where nothing comes back

A cache goes from one to the other by a rename, which happens or does not. So where it is tells what a killed worker has
left: caches that a run had are thrown away at the next start, and the others are whole. There are no locks on disk.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trio

from plugins.mounts.cachefiles import CACHES, CONTENT, LEASED, Cache, begin, end, keep, make
from plugins.mounts.purge import KEPT, Purges
from worker.disk import Item, fault_of
from worker.services import Services

log = logging.getLogger("worker")

# An idle worker asks for purge requests so often, in seconds: they are kept for a day, and none is to be missed.
IDLE_INTERVAL = KEPT.total_seconds() / 4


@dataclass
class Lease:
    """What a run has of a cache: the folder at `path`, which is its alone. `fresh`: it was made anew and is empty.

    Only where the run says `keep`, and a folder is at the path when the block ends, is it there for others afterwards.
    """

    path: Path
    fresh: bool
    keep: bool = False


class Caches:
    """For each name a pool of what nobody uses, the last used last."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ports = services.ports
        self._folder = services.work_dir / CACHES
        self._leased = services.work_dir / LEASED
        self._pools: defaultdict[str, list[Cache]] = defaultdict(list)
        self._in_use: set[Cache] = set()
        self._doomed: set[Cache] = set()  # those in use that are not to be kept
        self._numbers = itertools.count()
        self._purging = trio.Lock()
        self._purges: Purges | None = None
        if (service := services.purge_cache) is not None:
            task_queue_id = services.identity.task_queue_id
            self._purges = Purges(self._ports, service, task_queue_id, self._folder / "purged")

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[Lease, None]:
        """A cache of that name, as it was left last, or a fresh one; for the block alone. Purge requests count first.

        Raises WorkerFault where none can be made, and ResourceUnavailable where the disk is full.
        """
        if name in self._pools:
            await self.follow_requests()
        # Cancelled in the midst of it, it would leave a cache that nobody knows of. It is a rename, or few.
        with trio.CancelScope(shield=True):
            taken = await self._take(name)
            cache = taken or await self._make(name)
        lease = Lease(self._leased / str(cache.number) / CONTENT, fresh=taken is None)
        try:
            yield lease
        finally:
            with trio.CancelScope(shield=True):
                await self._give_back(cache, lease.keep)

    async def _take(self, name: str) -> Cache | None:
        while (cache := self._pop(name)) is not None:
            self._in_use.add(cache)
            try:
                await self._ports.run_sync(os.rename, self._place(cache), self._leased / str(cache.number))
            except OSError as error:
                log.warning("cache %s is lost: %s", name, error.strerror)
                self._end_use(cache)
                await self._services.trash.discard(self._place(cache))
            else:
                return cache
        return None

    def _pop(self, name: str) -> Cache | None:
        pool = self._pools.get(name)
        return self._out_of_pool(pool[-1]) if pool else None

    async def _make(self, name: str) -> Cache:
        cache = Cache(next(self._numbers), name, now := self._now(), now)
        try:
            await self._ports.run_sync(make, self._leased / str(cache.number))
        except OSError as error:
            raise fault_of(error, f"the cache {name} cannot be made in workDir") from error
        self._in_use.add(cache)
        return cache

    async def _give_back(self, cache: Cache, is_kept: bool) -> None:
        place = self._leased / str(cache.number)
        if is_kept and cache not in self._doomed:
            kept = cache.used_at(self._now())
            try:
                await self._ports.run_sync(keep, kept, place, self._place(kept))
            except OSError as error:
                log.warning("cache %s is lost: %s", cache.name, error.strerror)
            else:
                place = self._place(kept)
                # It may have been purged meanwhile.
                if cache not in self._doomed:
                    self._end_use(cache)
                    await self._into_pool(kept)
                    return
        self._end_use(cache)
        await self._services.trash.discard(place)

    def _end_use(self, cache: Cache) -> None:
        self._in_use.discard(cache)
        self._doomed.discard(cache)

    async def _into_pool(self, cache: Cache) -> None:
        pool = self._pools[cache.name]
        pool.append(cache)
        while len(pool) > self._services.capacity:
            await self._throw_away(pool[0])

    async def purge(self, names: Iterable[str]) -> None:
        """Throw away all caches of these names that there are now: those in use when they come back."""
        wanted = frozenset(names)
        await self._throw_away_where(lambda cache: cache.name in wanted)

    async def follow_requests(self) -> None:
        """Throw away what the purge-cache service asks for. It takes a few seconds at most, whatever the service does.

        The service is asked every few seconds at most, and by one at a time: the others wait for its answer.
        """
        if self._purges is None:
            return
        async with self._purging:
            if (requests := await self._purges.ask()) is None:
                return
            # An answer counts once, so a cancellation must not come between.
            with trio.CancelScope(shield=True):
                await self._throw_away_where(lambda cache: requests.concern(cache.name, cache.made))
                await self._purges.followed()

    async def keep_following(self) -> None:
        """Follow the requests while no task asks for a cache. Runs until cancelled."""
        while True:
            await trio.sleep(IDLE_INTERVAL)
            if self._pools or self._in_use:
                await self.follow_requests()

    async def _throw_away_where(self, is_to_go: Callable[[Cache], bool]) -> None:
        self._doomed.update(filter(is_to_go, self._in_use))
        for cache in [cache for pool in self._pools.values() for cache in pool if is_to_go(cache)]:
            if await self._throw_away(cache):
                log.info("cache %s is thrown away, since it was purged", cache.name)

    async def _throw_away(self, cache: Cache) -> bool:
        """Unless somebody has it by now."""
        if cache not in self._pools.get(cache.name, ()):
            return False
        self._out_of_pool(cache)
        await self._services.trash.discard(self._place(cache))
        return True

    def _out_of_pool(self, cache: Cache) -> Cache:
        pool = self._pools[cache.name]
        pool.remove(cache)
        if not pool:
            del self._pools[cache.name]
        return cache

    def _place(self, cache: Cache) -> Path:
        return self._folder / str(cache.number)

    def _now(self) -> datetime:
        service = self._services.purge_cache
        return self._ports.now() if service is None else service.client.deployment.clock.now()

    # As a store of the disk's

    async def unused(self) -> list[Item]:
        """What nobody uses now."""
        return [
            Item(cache.used.timestamp(), f"cache {cache.name}", str(cache.number))
            for pool in self._pools.values()
            for cache in pool
        ]

    async def remove(self, item: Item) -> bool:
        """Throw one away; False where a run has it by now."""
        found = [cache for pool in self._pools.values() for cache in pool if str(cache.number) == item.key]
        return await self._throw_away(found[0]) if found else False

    # What there is on disk

    async def load(self) -> None:
        """Find the caches that an earlier worker kept. What is not as it should be is thrown away."""
        found = await self._ports.run_sync(begin, self._folder, self._leased)
        for path in found.bad:
            await self._services.trash.discard(path)
        for cache in sorted(found.caches, key=lambda cache: cache.used):
            self._pools[cache.name].append(cache)
        self._numbers = itertools.count(max((cache.number for cache in found.caches), default=-1) + 1)

    async def close(self) -> None:
        """Have all of it on disk, so that the machine may be switched off. Not where the worker is in a hurry."""
        if self._services.hurry.is_set():
            return
        try:
            await self._ports.run_sync(end, self._folder)
        except OSError as error:
            log.warning("caches are lost if the machine goes down now: %s", error.strerror)


@asynccontextmanager
async def open_caches(services: Services) -> AsyncGenerator[Caches, None]:
    """The caches of a worker, for as long as the block lasts: those that an earlier worker kept are there.

    Raises FatalWorkerFault where they cannot be.
    """
    caches = Caches(services)
    await caches.load()
    async with trio.open_nursery() as beside:
        beside.start_soon(caches.keep_following)
        with services.disk.add(caches):
            yield caches
        beside.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await caches.close()
