"""Process trees seen from outside: when they are complete, and when nothing is left of them.

with Arrivals(tmp_path / "ready") as arrivals:
    ...  # runs hostile.command("abc", ..., ready=arrivals.path)
    await arrivals.wait("abc")
    ...
    await wait_gone("abc")
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from worker.testing.leaks import Process, processes


class Arrivals:
    """A FIFO at `path`, to which trees say that they are complete. Anybody may write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[str] = set()
        self._text = b""
        os.mkfifo(path)
        path.chmod(0o666)
        # For writing too, so that it has no end when nobody else writes.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._reading = trio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    async def wait(self, mark: str) -> None:
        """Return when the tree of that mark is complete. Several may wait at once."""
        while mark not in self._seen:
            async with self._reading:
                if mark not in self._seen:
                    await trio.lowlevel.wait_readable(self._descriptor)
                    self._take()

    def _take(self) -> None:
        *lines, self._text = (self._text + os.read(self._descriptor, 1 << 16)).split(b"\n")
        self._seen |= {line.split()[1].decode() for line in lines}


def survivors(mark: str) -> list[Process]:
    """The living whose arguments have `mark` in them, except for this process. Blocks for a few milliseconds."""
    own = os.getpid()
    # A zombie has no arguments.
    return [each for each in processes() if each.pid != own and mark in each.command]


async def wait_gone(mark: str) -> float:
    """Return when no process has `mark` in its arguments, also none that was started meanwhile.

    The time, by Trio's clock, at which the last one was seen to end; now, where there was none.
    """
    ended = trio.current_time()
    while found := await trio.to_thread.run_sync(survivors, mark):
        held = _hold(found)
        try:
            for descriptor in held:
                await trio.lowlevel.wait_readable(descriptor)
            ended = trio.current_time()
        finally:
            for descriptor in held:
                os.close(descriptor)
    return ended


def _hold(found: list[Process]) -> list[int]:
    """A pidfd for each that lives."""
    held = []
    for process in found:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            if process.lives:  # else the number may be another one's now
                held.append(descriptor)
            else:
                os.close(descriptor)
    return held
