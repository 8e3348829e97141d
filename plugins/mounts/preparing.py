"""What one run's mounts are made of, and whether its caches are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from engines.base import Builder, Lending, Result, Volume
from plugins.base import TaskHooks
from plugins.mounts.caches import Caches, Lease
from plugins.mounts.downloads import INTERVAL, Downloads
from plugins.mounts.extraction import Limits, Unpacking, decompression, extraction, perform
from plugins.mounts.payload import Content, Declared, MountsPayload, missing_scopes
from plugins.mounts.sources import find_source
from plugins.mounts.tree import Refused
from worker.disk import fault_of
from worker.errors import MalformedPayload, ResourceUnavailable, TaskFault, WorkerFault
from worker.model import COMPLETED, Verdict
from worker.quantities import approximate_size
from worker.queue.errors import ApiError, QueueError, Unauthorized
from worker.queue.services import Auth
from worker.run import Run
from worker.services import Services


@dataclass(frozen=True, slots=True)
class Shop:
    """What the plugin has for all runs. `folder` has a folder for each run that unpacks something."""

    services: Services
    downloads: Downloads
    caches: Caches
    folder: Path
    limits: Limits
    extracting: trio.CapacityLimiter


class MountsHooks(TaskHooks):
    """One run's mounts. What `stack` holds is let go of when the run's scope is left.

    `roles`: the task's own scopes do not permit its caches, but those of its roles may.
    """

    def __init__(
        self,
        shop: Shop,
        run: Run[MountsPayload],
        declared: Sequence[Declared],
        stack: AsyncExitStack,
        *,
        roles: bool = False,
    ) -> None:
        self._shop = shop
        self._ports = shop.services.ports
        self._run = run
        self._declared = declared
        self._stack = stack
        self._roles = roles
        self._leases: list[tuple[Declared, Lease]] = []
        self._folder = shop.folder / f"{run.key.task_id}-{run.key.run_id}"

    async def prepare(self, builder: Builder) -> None:
        """Get everything, side by side; the volumes are in the payload's order, for one may be in another."""
        if self._roles:
            await self._check_roles()
        await self._make("the folder for mounts", self._folder.mkdir)
        self._stack.push_async_callback(self._shop.services.trash.discard, self._folder)
        volumes: list[Volume | None] = [None] * len(self._declared)
        leases: dict[int, Lease] = {}
        for index, item in enumerate(self._declared):
            if item.kind == "cache":
                leases[index] = await self._lease(item)

        failures: list[TaskFault | ResourceUnavailable | WorkerFault] = []

        async def get(index: int, item: Declared) -> None:
            try:
                volumes[index] = await self._get(index, item, leases.get(index))
            except (TaskFault, ResourceUnavailable, WorkerFault) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, item in enumerate(self._declared):
                nursery.start_soon(get, index, item)
        if failures:
            # The first has ended the others: what these say as they end is no reason.
            raise failures[0]
        builder.volumes += [volume for volume in volumes if volume is not None]

    async def _check_roles(self) -> None:
        client = self._run.queue.client
        auth = Auth(client.deployment, client.credentials)
        try:
            scopes = await auth.expand_scopes(self._run.task.scopes)
        except QueueError as error:
            # The service may refuse to say it, but not to know the worker's own credentials.
            if not isinstance(error, ApiError) or isinstance(error, Unauthorized):
                raise ResourceUnavailable(f"the scopes of the task's roles are not to be had: {error}") from error
            scopes = self._run.task.scopes
        if lacking := missing_scopes(self._run.payload, self._declared, scopes):
            raise MalformedPayload(lacking)

    async def _lease(self, item: Declared) -> Lease:
        lease = await self._stack.enter_async_context(self._shop.caches.lease(item.cache))
        self._leases.append((item, lease))
        what = f"No cache {item.cache} is there: it is made anew" if lease.fresh else f"Using the cache {item.cache}"
        self._run.log.say(f"[mounts] {what}, at {item.path}")
        return lease

    async def _get(self, index: int, item: Declared, lease: Lease | None) -> Volume:
        made = self._folder / str(index)
        if lease is not None:
            if lease.fresh and item.content is not None:
                await self._unpack(item, item.content, lease.path, made)
            return Volume(lease.path, item.path, Lending.LENT)
        assert item.content is not None  # since it is no cache
        if item.kind == "directory":
            await self._make(item.path, made.mkdir, 0o755)
            await self._unpack(item, item.content, made, made)
            return Volume(made, item.path, Lending.GIVEN)
        if item.format is not None:
            await self._unpack(item, item.content, made, made)
            return Volume(made, item.path, Lending.GIVEN)
        if item.content.inline is not None:
            await self._inline(item, item.content, made)
            return Volume(made, item.path, Lending.GIVEN)
        source = await find_source(self._run, item.content)
        entry = await self._stack.enter_async_context(self._shop.downloads.held(source, self._run.log))
        self._run.log.say(f"[mounts] {source.name} is mounted as {item.path}")
        return Volume(entry.path, item.path, Lending.SHARED)

    async def _inline(self, item: Declared, content: Content, path: Path) -> None:
        assert content.inline is not None  # as its caller has seen
        await self._make(item.path, path.write_bytes, content.inline)

    async def _make(self, what: str, function: Callable[..., object], *args: object) -> None:
        try:
            await self._ports.run_sync(function, *args)
        except OSError as error:
            raise fault_of(error, f"{what} could not be made") from error

    async def _unpack(self, item: Declared, content: Content, target: Path, made: Path) -> None:
        """Content of a format to `target`: an empty folder, or a file that is not there yet."""
        if content.inline is not None:
            packed = made.with_name(f"{made.name}.packed")
            await self._inline(item, content, packed)
            await self._extract(item, "the content in the payload", packed, target)
            return
        source = await find_source(self._run, content)
        async with self._shop.downloads.held(source, self._run.log) as entry:
            await self._extract(item, source.name, entry.path, target)

    async def _extract(self, item: Declared, name: str, packed: Path, target: Path) -> None:
        assert item.format is not None  # since it has content that is to be unpacked
        log = self._run.log
        size = (await self._ports.run_sync(packed.stat)).st_size
        unpacking = Unpacking(self._shop.limits, size)
        async with self._shop.extracting:
            log.say(f"[mounts] Extracting {name} ({item.format}, {approximate_size(size)}) to {item.path}")
            begun = told = trio.current_time()

            def tell() -> None:
                nonlocal told
                if (now := trio.current_time()) - told >= INTERVAL:
                    told = now
                    log.say(f"[mounts] Extracting to {item.path}: {_amount(unpacking)}")

            try:
                await perform(self._ports, self._steps(item, packed, target, unpacking), tell)
            except Refused as error:
                raise TaskFault(f"{name} was not extracted to {item.path}: {error}") from error
            except OSError as error:
                raise fault_of(error, f"{name} was not extracted to {item.path}") from error
            took = trio.current_time() - begun
            log.say(f"[mounts] Extracted {_amount(unpacking)} to {item.path} in {took:.1f} seconds")

    @staticmethod
    def _steps(item: Declared, packed: Path, target: Path, unpacking: Unpacking) -> Iterator[None]:
        assert item.format is not None  # as its caller has seen
        unpack = decompression if item.kind == "file" else extraction
        return unpack(packed, item.format, target, unpacking)

    async def stopped(self, result: Result | None) -> Verdict:
        """A cache is kept if the task has ended by itself, however, and not by an exit code that says otherwise.

        So is one that was there before, where nothing of the task has begun.
        """
        ended = None if result is None else result.ended
        purged = ended is not None and ended.exit_code in self._run.payload.on_exit_status.purge_caches
        for item, lease in self._leases:
            lease.keep = (not lease.fresh if result is None else ended is not None) and not purged
            if result is None or ended is None:
                continue
            if purged:
                self._run.log.say(
                    f"[mounts] The cache {item.cache} is thrown away, as the task wants it for this exit code"
                )
            elif not await result.is_folder(item.path):
                lease.keep = False
                self._run.log.warn(
                    f"[mounts] The cache {item.cache} is not kept: no folder is at {item.path} any more. "
                    "A task may empty the folder, but must leave it at its place"
                )
            else:
                self._run.log.say(f"[mounts] The cache {item.cache} is kept")
        if purged and self._leases:
            await self._shop.caches.purge({item.cache for item, _ in self._leases})
        return COMPLETED


def _amount(unpacking: Unpacking) -> str:
    entries = f"{unpacking.entries} entries, " if unpacking.entries else ""
    return f"{entries}{approximate_size(unpacking.size)}"
