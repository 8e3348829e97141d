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
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from plugins.mounts import kept
from plugins.mounts.extraction import Limits, Unpacking, perform
from plugins.mounts.kept import Broken, Entry, Settled
from plugins.mounts.sources import Source
from plugins.mounts.transfer import NotModified, Part, Transfer, Validators
from plugins.mounts.tree import Refused
from worker.disk import Item, fault_of, is_full
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
    """`kept` and `max_size` in bytes: of all that is kept, and of one download; `time` in seconds for one.

    What is in use, and what broke off, counts as kept; but what is in use stays.

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
    """A download under way, and who waits for it. When it is `over` there is an `entry`, or an `error`
    and what is left."""

    source: Source
    waiters: list[_Waiter] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    part: Part | None = None
    entry: Entry | None = None
    broken: Broken | None = None
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
        self._broken: dict[str, Broken] = {}  # by their files' names; a flight's until it is over, too
        self._parts = trio.Lock()  # between a flight that looks for its part, and its removal

    async def load(self) -> None:
        """Find what an earlier worker has kept. Raises OSError."""
        for entry in await self._ports.run_sync(kept.load, self._folder):
            self._entries[entry.address] = entry
        for broken in await self._ports.run_sync(kept.broken, self._folder):
            self._broken[broken.name] = broken
        self._trim()

    @asynccontextmanager
    async def held(self, source: Source, log: TaskLog) -> AsyncGenerator[Entry, None]:
        """The content of `source`, downloaded unless it is there; it stays there while the block lasts.

        Raises TaskFault, ResourceUnavailable, WorkerFault. A cancellation is nothing to others who want the same.
        """
        entry = await self._hold(source, log)
        try:
            yield entry
        finally:
            self._unpin(entry)

    async def _hold(self, source: Source, log: TaskLog) -> Entry:
        """The content, with a pin for the caller."""
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

    def _unpin(self, entry: Entry) -> None:
        """Give a pin back. Nobody waits for the removal of what is not to be kept, so no cancellation can lose it."""
        entry.pins -= 1
        if entry.pins:
            return
        if entry.doomed:
            self._nursery.start_soon(self._discard, entry)
        else:
            self._trim()

    async def _use(self, entry: Entry) -> bool:
        """Pin it; False where somebody has removed its file."""
        entry.pins += 1
        entry.last_used = self._ports.now().timestamp()
        try:
            await self._ports.run_sync(os.utime, entry.path, (entry.last_used, entry.last_used))
        except OSError as error:
            log.warning("the download %s is lost: %s", entry.name, error.strerror)
            if self._entries.get(entry.address) is entry:
                del self._entries[entry.address]
            entry.doomed = True
            self._unpin(entry)
            return False
        except BaseException:
            self._unpin(entry)
            raise
        return True

    async def _wait_for(self, flight: _Flight, source: Source, log: TaskLog) -> Entry:
        waiter = _Waiter(source, log)
        if flight.waiters:
            log.say(f"[mounts] Waiting for the download of {source.name}")
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
                self._unpin(flight.entry)

    async def _fly(self, flight: _Flight) -> None:
        """The flight's task: its failure is the waiters', and not the store's."""
        try:
            with flight.scope:
                name, most = flight.source.name, self._settings.parallelism
                if not self._limiter.available_tokens:
                    flight.say(f"[mounts] {name} waits for a place: this worker downloads {most} at once")
                async with self._limiter, trio.open_nursery() as nursery:
                    flight.say(f"[mounts] Downloading {name}")
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
                # One pin for each who waits, in place of the flight's own; who goes before it wakes gives it back.
                flight.entry.pins += len(flight.waiters)
                self._unpin(flight.entry)
            del self._flights[flight.source.key]
            if flight.part is not None:  # else it has not come so far as to look for what there is
                self._broken.pop(flight.part.path.name, None)
            if flight.broken is not None:
                self._broken[flight.broken.name] = flight.broken
                self._trim()
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
                self._unpin(old)

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
                if not is_full(error):
                    raise fault_of(error, f"{source.name} cannot be kept") from error
                with suppress(OSError):  # The next attempt would begin with that.
                    await self._ports.run_sync(kept.decoded(part.path).unlink)
                with suppress(OSError):  # Nobody can look. It may be enough all the same.
                    await self._services.disk.make_room()
                result = Transient(f"the worker's disk is full: {error.strerror}")
            if isinstance(result, Transient):
                flight.say(f"[mounts] Downloading {source.name}: attempt {number} failed: {result.reason}")
            return result

        try:
            result, attempts = await retrying(attempt, self._settings.policy, self._ports.random)
        finally:
            if flight.entry is None:
                with trio.CancelScope(shield=True):
                    await self._keep(flight, part)
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
            return _given_up(part, source, f"cannot be decoded: {error}")
        found = settled.digest.hexdigest()
        if source.sha256 is not None and found != source.sha256:
            problem = f"is not what the task expects: its SHA-256 is {found}, and not {source.sha256}"
            return _given_up(part, source, problem)
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
        self._add(flight, entry)
        return entry

    def _add(self, flight: _Flight, entry: Entry) -> None:
        entry.pins += 1
        flight.entry = entry
        old = self._entries.get(entry.address)
        self._entries[entry.address] = entry
        if old is not None:
            old.doomed = True
            if not old.pins:
                self._nursery.start_soon(self._discard, old)
        self._trim()

    async def _part(self, source: Source) -> Part:
        """Where to download to: what there is already, where the hash will tell whether it is the right thing.

        Without one it may be damaged by a loss of power, and nobody would know.
        """
        path = self._folder / _part_name(source)
        async with self._parts:
            return await self._ports.run_sync(kept.load_part, path) if source.sha256 else Part(path)

    async def _remember(self, source: Source, part: Part) -> None:
        """What is on disk says whether the part can be gone on with: for a later flight, or after a crash."""
        if source.sha256 and part.validators:
            await self._ports.run_sync(kept.save_part, part)
        else:
            await self._ports.run_sync(kept.remove, part.path)

    async def _keep(self, flight: _Flight, part: Part) -> None:
        """Keep what there is of a download that has failed. How it has failed is what counts: it raises nothing."""
        is_of_use = bool(flight.source.sha256 and part.validators and part.size)
        try:
            if is_of_use:
                await self._ports.run_sync(kept.save_part, part)
        except OSError as error:
            log.warning("what there is of the download %s is not kept: %s", flight.source.name, error.strerror)
            is_of_use = False
        if not is_of_use:
            with suppress(OSError):
                await self._ports.run_sync(kept.remove, part.path)
        if is_of_use:
            flight.broken = Broken(part.path.name, part.size, self._ports.now().timestamp())

    def _trim(self) -> None:
        """Give up what was used least recently, beyond what is to be kept."""
        size = sum(entry.size for entry in self._entries.values())
        size += sum(broken.size for broken in self._broken.values())
        unused: list[Entry | Broken] = [*(entry for entry in self._entries.values() if not entry.pins), *self._idle()]
        for each in sorted(unused, key=lambda each: each.last_used):
            if size <= self._settings.kept:
                return
            size -= each.size
            if isinstance(each, Entry):
                del self._entries[each.address]
                self._nursery.start_soon(self._discard, each)
            else:
                del self._broken[each.name]
                self._nursery.start_soon(self._remove_part, each)

    async def _discard(self, entry: Entry) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._ports.run_sync(partial(kept.sidecar(entry.path).unlink, missing_ok=True))
            except OSError as error:  # The next start finds it.
                log.error("the download %s could not be removed: %s", entry.name, error.strerror)
            else:
                await self._services.trash.discard(entry.path)

    def _parts_in_use(self) -> set[str]:
        return {_part_name(flight.source) for flight in self._flights.values()}

    def _idle(self) -> list[Broken]:
        used = self._parts_in_use()
        return [each for each in self._broken.values() if each.name not in used]

    async def _remove_part(self, broken: Broken) -> bool:
        """Whether it is gone: a flight may have taken it meanwhile."""
        is_gone = False
        with trio.CancelScope(shield=True):
            async with self._parts:
                if broken.name in self._parts_in_use():
                    self._broken[broken.name] = broken
                else:
                    try:
                        await self._ports.run_sync(kept.remove, self._folder / broken.name)
                        is_gone = True
                    except OSError as error:
                        log.error("a download that broke off could not be removed: %s", error.strerror)
        return is_gone

    # As a store of the disk's

    async def unused(self) -> list[Item]:
        """What nobody uses now, parts of downloads that broke off included."""
        await trio.lowlevel.checkpoint()
        return [
            *(
                Item(entry.last_used, f"the download {entry.name}", entry.address)
                for entry in self._entries.values()
                if not entry.pins
            ),
            *(Item(each.last_used, "a download that broke off", each.name) for each in self._idle()),
        ]

    async def remove(self, item: Item) -> bool:
        """Give one up; False where somebody uses it by now."""
        if (broken := next((each for each in self._idle() if each.name == item.key), None)) is not None:
            del self._broken[broken.name]
            return await self._remove_part(broken)
        entry = self._entries.get(item.key)
        if entry is None or entry.pins:
            await trio.lowlevel.checkpoint()
            return False
        del self._entries[entry.address]
        await self._discard(entry)
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


def _given_up(part: Part, source: Source, problem: str) -> Transient:
    """What becomes of content that is not right: of what came at once the task is to blame (TaskFault)."""
    resumed = part.resumed
    part.forget()
    if not resumed:
        raise TaskFault(f"{source.name} {problem}")
    return Transient(f"what came in pieces, which may be of different things, {problem}")


def _part_name(source: Source) -> str:
    return f"{kept.stem_of(source.key)}{kept.PART}"


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
