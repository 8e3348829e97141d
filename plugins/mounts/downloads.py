"""Downloads, each of them once for all runs that want it, and kept for those to come.

    run ─ hold ─┐
    run ─ hold ─┼─ flight ─ attempt, attempt, … ─ settled ─ entry      a flight lives in the store's nursery, and ends
    run ─ hold ─┘                                                      when nobody waits for it any more

How content is addressed, and when what is kept may be used: `plugins.mounts.sources`, and docs/decisions/0023.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from functools import partial

import trio

from plugins.mounts import kept
from plugins.mounts.extraction import Limits, Unpacking, perform
from plugins.mounts.kept import Entry, Settled
from plugins.mounts.sources import Source
from plugins.mounts.transfer import NotModified, Part, Transfer, Validators
from plugins.mounts.tree import Refused
from worker.disk import Item
from worker.errors import ResourceUnavailable, TaskFault, WorkerFault
from worker.outcome import leaves
from worker.quantities import approximate_size, format_size
from worker.queue.retry import RetryPolicy, Transient, retrying
from worker.services import Services
from worker.tasklog import TaskLog

log = logging.getLogger("worker")

FOLDER = "downloads"
INTERVAL = 10.0  # seconds between two lines on something that takes long, and before the first


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """`kept` and `max_size` in bytes: of all that is kept unused, and of one download; `time` in seconds for one.

    `ratio` is the most that a download may grow to when its encoding is undone, times its size. `interval` is the time
    between two lines on one download.
    """

    kept: int
    max_size: int
    time: float
    parallelism: int
    ratio: int
    policy: RetryPolicy
    interval: float = INTERVAL


@dataclass(eq=False)
class _Waiter:
    source: Source
    log: TaskLog


@dataclass(eq=False)
class _Flight:
    """A download under way, and who waits for it. When it is `over` there is an `entry` or an `error`."""

    source: Source
    waiters: list[_Waiter] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    part: Part | None = None
    entry: Entry | None = None
    error: Exception | None = None

    def say(self, message: str) -> None:
        for waiter in self.waiters:
            waiter.log.say(message)


class Downloads:
    """The store. A `Store` of the disk's, too: it gives up what nobody uses."""

    def __init__(self, services: Services, settings: DownloadSettings, nursery: trio.Nursery) -> None:
        """`nursery` holds the flights: a download outlives the call that began it while others wait for it."""
        self._services = services
        self._ports = services.ports
        self._settings = settings
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(settings.parallelism)
        self._folder = services.work_dir / FOLDER
        self._entries: dict[str, Entry] = {}
        self._flights: dict[str, _Flight] = {}

    async def load(self) -> None:
        """Find what an earlier worker has kept. Raises OSError."""
        for entry in await self._ports.run_sync(kept.load, self._folder):
            self._entries[entry.address] = entry

    @asynccontextmanager
    async def held(self, source: Source, log: TaskLog) -> AsyncGenerator[Entry, None]:
        """The content of `source`, downloaded unless it is there; it stays there while the block lasts.

        Raises TaskFault, ResourceUnavailable, WorkerFault. A cancellation is nothing to others who want the same.
        """
        entry = await self.hold(source, log)
        try:
            yield entry
        finally:
            with trio.CancelScope(shield=True):
                await self.release(entry)

    async def hold(self, source: Source, log: TaskLog) -> Entry:
        """As `held`, until `release`."""
        while True:
            entry = self._entries.get(source.address) if source.sha256 else None
            if entry is not None and await self._use(entry):
                log.say(f"[mounts] Found {source.name} among the downloads of this worker, {_amount(entry)}")
                return entry
            flight = self._flights.get(source.key)
            if flight is None:
                flight = self._flights[source.key] = _Flight(source)
                self._nursery.start_soon(self._fly, flight)
            elif flight.scope.cancel_called:
                await flight.over.wait()
                continue
            return await self._wait_for(flight, source, log)

    async def release(self, entry: Entry) -> None:
        """The content is not needed any more. Cancellation does not end it early."""
        entry.pins -= 1
        if entry.doomed and not entry.pins:
            await self._discard(entry)
        else:
            await self._trim()

    async def _use(self, entry: Entry) -> bool:
        """Pin it; False where somebody has removed its file."""
        entry.pins += 1
        entry.last_used = self._ports.now().timestamp()
        try:
            await self._ports.run_sync(os.utime, entry.path, (entry.last_used, entry.last_used))
        except OSError as error:
            log.warning("the download %s is lost: %s", entry.name, error.strerror)
            entry.pins -= 1
            if self._entries.get(entry.address) is entry:
                del self._entries[entry.address]
            return False
        except BaseException:
            entry.pins -= 1
            raise
        return True

    async def _wait_for(self, flight: _Flight, source: Source, log: TaskLog) -> Entry:
        waiter = _Waiter(source, log)
        verb = "Waiting for the download of" if flight.waiters else "Downloading"
        log.say(f"[mounts] {verb} {source.name}")
        flight.waiters.append(waiter)
        taken = False
        try:
            await flight.over.wait()
            if flight.entry is not None:
                taken = True
                return flight.entry
            raise _again(flight.error)
        finally:
            flight.waiters.remove(waiter)
            if not flight.over.is_set():
                if not flight.waiters:
                    flight.scope.cancel()
            elif flight.entry is not None and not taken:
                flight.entry.pins -= 1

    async def _fly(self, flight: _Flight) -> None:
        """The flight's task: its failure is the waiters', and not the store's."""
        try:
            with flight.scope:
                async with self._limiter, trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell, flight)
                    await self._download(flight)
                    nursery.cancel_scope.cancel()
        except* (TaskFault, ResourceUnavailable, WorkerFault) as group:
            flight.error = next(error for error in leaves(group) if isinstance(error, Exception))
        except* Exception as group:
            log.exception("a download has failed")
            flight.error = group
        finally:
            if flight.entry is not None:
                # The flight's own pin becomes one for each who waits; who goes before it wakes gives it back.
                flight.entry.pins += len(flight.waiters) - 1
            del self._flights[flight.source.key]
            flight.over.set()

    async def _tell(self, flight: _Flight) -> None:
        size, began = 0, trio.current_time()
        while True:
            await trio.sleep(self._settings.interval)
            if (part := flight.part) is not None and part.size:
                total = f" of {approximate_size(part.total)}" if part.total else ""
                rate = approximate_size(int(max(0, part.size - size) / (trio.current_time() - began)))
                flight.say(f"[mounts] Downloading {flight.source.name}: {approximate_size(part.size)}{total}, {rate}/s")
                size, began = part.size, trio.current_time()

    async def _download(self, flight: _Flight) -> None:
        """Returns when the flight has its entry."""
        settings, name = self._settings, flight.source.name
        old = self._entries.get(flight.source.address)
        if old is not None and not await self._use(old):
            old = None
        try:
            began = trio.current_time()
            with trio.move_on_after(settings.time) as limit:
                entry = await self._insist(flight, old)
            if limit.cancelled_caught:
                raise ResourceUnavailable(f"{name} could not be downloaded within {settings.time:.0f} seconds")
            if entry is old:
                flight.say(f"[mounts] {name} has not changed since it was downloaded, {_amount(entry)}")
            else:
                took = max(trio.current_time() - began, 0.001)
                rate = approximate_size(int(entry.size / took))
                flight.say(f"[mounts] Downloaded {name} in {took:.1f} seconds ({rate}/s), {_amount(entry)}")
        finally:
            if old is not None:
                with trio.CancelScope(shield=True):
                    await self.release(old)

    async def _insist(self, flight: _Flight, old: Entry | None) -> Entry:
        part = flight.part = await self._part(flight.source)
        known = old.validators if old is not None else Validators()
        begun = partial(self._remember, flight.source, part)
        transfer = Transfer(self._services.http.bulk, self._ports, part, known, self._settings.max_size, begun)

        async def attempt(number: int) -> Entry | Transient:
            source = flight.waiters[0].source if flight.waiters else flight.source
            result: Entry | Transient
            try:
                result = await self._attempt(flight, transfer, part, source, old)
            except OSError as error:
                if error.errno not in {ENOSPC, EDQUOT}:
                    raise WorkerFault(f"{source.name} cannot be kept: {error.strerror}") from error
                await self._services.disk.make_room()
                result = Transient(f"there is no room for it: {error.strerror}")
            if isinstance(result, Transient):
                flight.say(f"[mounts] Downloading {source.name}: attempt {number} failed: {result.reason}")
            return result

        try:
            result, attempts = await retrying(attempt, self._settings.policy, self._ports.random)
        finally:
            if flight.entry is None:
                with trio.CancelScope(shield=True):
                    await self._remember(flight.source, part)
        if isinstance(result, Transient):
            raise ResourceUnavailable(
                f"{flight.source.name} could not be downloaded in {attempts} attempts: {result.reason}"
            )
        return result

    async def _attempt(
        self, flight: _Flight, transfer: Transfer, part: Part, source: Source, old: Entry | None
    ) -> Entry | Transient:
        result = await transfer.attempt(source)
        if isinstance(result, Transient):
            return result
        if isinstance(result, NotModified):
            assert old is not None  # else nothing was asked that has this answer
            old.pins += 1
            flight.entry = old
            return old
        settled = Settled(part.path)
        limits = Limits(self._settings.max_size, entries=0, ratio=self._settings.ratio)
        try:
            await perform(self._ports, kept.settling(part, Unpacking(limits, part.size), settled))
        except Refused as error:
            part.forget()
            raise TaskFault(f"{source.name} cannot be decoded: {error}") from error
        found = settled.digest.hexdigest()
        if source.sha256 is not None and found != source.sha256:
            resumed = part.resumed
            part.forget()
            message = f"its SHA-256 is {found}, and not {source.sha256}"
            if resumed:
                return Transient(message)  # Its pieces may be of different things.
            raise TaskFault(f"{source.name} is not what the task expects: {message}")
        entry = Entry(
            path=self._folder / f"{kept.stem_of(source.address)}-{self._ports.token(6)}",
            address=source.address,
            name=source.name,
            sha256=found,
            size=0,
            validators=result.validators,
            last_used=self._ports.now().timestamp(),
        )
        with trio.CancelScope(shield=True):  # so that what is on disk is known of
            await self._ports.run_sync(kept.publish, settled.path, entry, part)
            await self._add(flight, entry)
        return entry

    async def _add(self, flight: _Flight, entry: Entry) -> None:
        entry.pins += 1
        flight.entry = entry
        old = self._entries.get(entry.address)
        self._entries[entry.address] = entry
        if old is not None:
            old.doomed = True
            if not old.pins:
                await self._discard(old)
        await self._trim()

    async def _part(self, source: Source) -> Part:
        """Where to download to: what there is already, where the hash will tell whether it is the right thing.

        Without one it may be damaged by a loss of power, and nobody would know.
        """
        path = self._folder / f"{kept.stem_of(source.key)}{kept.PART}"
        return await self._ports.run_sync(kept.load_part, path) if source.sha256 else Part(path)

    async def _remember(self, source: Source, part: Part) -> None:
        """What is on disk says whether the part can be gone on with: for a later flight, or after a crash."""
        if source.sha256 and part.validators:
            await self._ports.run_sync(kept.save_part, part)
        else:
            await self._ports.run_sync(kept.remove, part.path)

    async def _trim(self) -> None:
        """Give up what was used least recently, beyond what is to be kept."""
        with trio.CancelScope(shield=True):
            while sum(entry.size for entry in self._entries.values()) > self._settings.kept:
                unused = [entry for entry in self._entries.values() if not entry.pins]
                if not unused:
                    return
                await self._drop(min(unused, key=lambda entry: entry.last_used))

    async def _drop(self, entry: Entry) -> None:
        del self._entries[entry.address]
        await self._discard(entry)

    async def _discard(self, entry: Entry) -> None:
        with trio.CancelScope(shield=True):
            await self._ports.run_sync(partial(kept.sidecar(entry.path).unlink, missing_ok=True))
            await self._services.trash.discard(entry.path)

    # As a store of the disk's

    async def unused(self) -> list[Item]:
        """What nobody uses now, parts of downloads that broke off included."""
        parts = await self._ports.run_sync(kept.parts, self._folder)
        used = self._parts_in_use()
        return [
            *(
                Item(entry.last_used, entry.size, f"the download {entry.name}", entry.address)
                for entry in self._entries.values()
                if not entry.pins
            ),
            *(Item(when, size, "a download that broke off", name) for name, size, when in parts if name not in used),
        ]

    def _parts_in_use(self) -> set[str]:
        return {f"{kept.stem_of(key)}{kept.PART}" for key in self._flights}

    async def remove(self, item: Item) -> bool:
        """Give one up; False where somebody uses it by now."""
        if item.key.endswith(kept.PART):
            if item.key in self._parts_in_use():
                return False
            await self._ports.run_sync(kept.remove, self._folder / item.key)
            return True
        entry = self._entries.get(item.key)
        if entry is None or entry.pins:
            return False
        await self._drop(entry)
        return True


@asynccontextmanager
async def open_downloads(services: Services, settings: DownloadSettings) -> AsyncGenerator[Downloads, None]:
    """The downloads of a worker, for as long as the block lasts. Raises OSError where there can be no folder."""
    async with trio.open_nursery() as nursery:
        downloads = Downloads(services, settings, nursery)
        await downloads.load()
        with services.disk.add(downloads):
            yield downloads
        nursery.cancel_scope.cancel()


def _amount(entry: Entry) -> str:
    return f"{format_size(entry.size)} with SHA-256 {entry.sha256}"


def _again(error: Exception | None) -> Exception:
    """What a flight ended with, for one of those who wait: each has its own traceback."""
    match error:
        case TaskFault() | ResourceUnavailable() | WorkerFault():
            return type(error)(*error.args)
        case None:
            return ResourceUnavailable("the download was ended with the worker")
    failure = WorkerFault("a download has failed, see the worker's log")
    failure.__cause__ = error
    return failure
