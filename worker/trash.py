"""What nobody wants any more on the worker's disk: moved aside at once, and removed in the background.

A task may leave a million files, and nobody waits until they are gone: a rename takes them out of the way, into
`work_dir/trash`. What is there when a worker ends, in whatever way, is removed when the next one begins.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from worker.folders import move, removing
from worker.ports import Ports

log = logging.getLogger("worker")

FOLDER = "trash"
SLICE = 500  # entries that are removed before the service can be stopped, and others can see how far it has got
STOP_LIMIT = 5.0  # seconds that the service gets when the worker ends


class Trash:
    """`folder` has what is to be removed, and is on the filesystem of all that is discarded."""

    def __init__(self, ports: Ports, folder: Path, *, leftovers: bool = True) -> None:
        self._ports = ports
        self._folder = folder
        self._numbers = itertools.count()
        self._filled = trio.Event()  # replaced when the service begins to look
        self._stuck: set[str] = set()  # what could not be removed; a later start tries again
        self._progress = trio.Event()  # replaced whenever it is set
        self._busy = leftovers

    @property
    def busy(self) -> bool:
        """Whether something is yet to be removed."""
        return self._busy

    async def discard(self, path: Path) -> None:
        """Take a file or a folder away, at once; its removal follows. Nothing happens where there is none.

        What cannot be moved is removed before this returns, and what cannot be removed is told in the worker's log.
        Cancellation does not end it early.
        """
        with trio.CancelScope(shield=True):
            if await self._ports.run_sync(throw_away, path, self._folder, self._numbers):
                self._busy = True
                self._filled.set()

    async def wait_progress(self) -> None:
        """Return when some more was removed, or at once where nothing is left to be."""
        if self._busy:
            await self._progress.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def wait_empty(self) -> None:
        """Return when everything was removed that can be."""
        while self._busy:
            await self._progress.wait()

    async def run(self) -> None:
        """Remove what is in the folder, and what comes. Runs until cancelled, which it heeds soon."""
        if not self._busy:
            await self._filled.wait()
        while True:
            self._filled = trio.Event()
            steps = self._emptying()
            try:
                while await self._ports.run_sync(_advance, steps):
                    self._tell_progress()
            except OSError as error:
                log.error("what is in %s cannot be removed: %s", self._folder, error.strerror)
            if not self._filled.is_set():
                self._busy = False
            self._tell_progress()
            await self._filled.wait()

    def _emptying(self) -> Iterator[None]:
        """Remove all that is there, in steps that are short each."""
        while names := self._names():
            for name in names:
                yield from removing(self._folder / name)
                if os.path.lexists(self._folder / name):
                    self._stuck.add(name)
                yield

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return [entry.name for entry in entries if entry.name not in self._stuck]
        except FileNotFoundError:
            return []

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = trio.Event()


def _advance(steps: Iterator[None]) -> bool:
    """Whether more is to be done."""
    return sum(1 for _ in islice(steps, SLICE)) == SLICE


def throw_away(path: Path, trash: Path, numbers: Iterable[int]) -> bool:
    """Move `path` into the folder `trash`, or remove it where that cannot be; whether it was moved. Blocks."""
    if not os.path.lexists(path):
        return False
    target = next(target for number in numbers if not os.path.lexists(target := trash / str(number)))
    try:
        move(path, target)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # for the longer folder
            log.warning("%s is removed where it is, since it cannot be moved: %s", path, error.strerror)
        for _ in removing(path):
            pass
        return False
    return True


@asynccontextmanager
async def open_trash(
    ports: Ports, work_dir: Path, hurry: trio.Event, stop_limit: float = STOP_LIMIT, *, leftovers: bool = True
) -> AsyncGenerator[Trash, None]:
    """The trash of a worker, which is emptied beside the block, and for `stop_limit` seconds after it.

    `hurry` ends that at once. What is left then is the next start's, which says by `leftovers` that there may be
    some. What the block raises comes out as it is. Raises OSError where there can be no folder.
    """
    folder = work_dir / FOLDER
    await ports.run_sync(partial(folder.mkdir, mode=0o700, exist_ok=True))
    trash = Trash(ports, folder, leftovers=leftovers)
    inside: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            # Whoever cleans up when the worker is cancelled needs it still.
            service = trio.CancelScope(shield=True)
            nursery.start_soon(_run, trash, service)
            try:
                yield trash
            except BaseException as error:
                inside = error
                raise
            finally:
                with trio.move_on_after(stop_limit, shield=True) as limit:
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(_cancel_at, hurry, limit)
                        await trash.wait_empty()
                        waiting.cancel_scope.cancel()
                service.cancel()
    except BaseExceptionGroup as group:
        # A cancellation from inside would be no more of it than what the service has failed with.
        if inside is not None and not isinstance(inside, trio.Cancelled) and len(group.exceptions) == 1:
            raise inside from None
        raise


async def _run(trash: Trash, service: trio.CancelScope) -> None:
    with service:
        await trash.run()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
