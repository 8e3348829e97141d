"""Says how far long uploads have come."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from worker.tasklog import TaskLog

INTERVAL = 10.0  # seconds between two lines on one upload, and before the first

MIB = 1024 * 1024


@dataclass
class Progress:
    """How far one file has come with what is being done to it."""

    order: int
    name: str
    what: str = "Uploading"
    done: int = 0
    total: int = 0
    begun: float = field(default_factory=trio.current_time)
    told: float = field(default_factory=trio.current_time)

    def begin(self, what: str, total: int) -> None:
        """Something new is done to all of it, from the start."""
        self.what, self.total, self.done, self.begun = what, total, 0, trio.current_time()

    def line(self, now: float) -> str:
        """`Uploading artifact public/a.bin: 12.0 of 96.0 MiB, 1.2 MiB/s`."""
        rate = self.done / max(now - self.begun, 0.001)
        size = f"{self.done / MIB:.1f} of {self.total / MIB:.1f} MiB"
        return f"{self.what} artifact {self.name}: {size}, {rate / MIB:.1f} MiB/s"


class ProgressLog:
    """The files that are under way."""

    def __init__(self, log: TaskLog) -> None:
        self._log = log
        self._under_way: dict[int, Progress] = {}
        self._begun = trio.current_time()

    @contextmanager
    def of(self, order: int, name: str) -> Generator[Progress, None, None]:
        """One file, as long as the block lasts."""
        progress = self._under_way[order] = Progress(order, name)
        try:
            yield progress
        finally:
            del self._under_way[order]

    def summary(self, files: int, stored: int) -> None:
        """One line on all of them: `Uploaded 10000 artifacts: 9.8 MiB in 12.3 s, 0.8 MiB/s`."""
        seconds = max(trio.current_time() - self._begun, 0.001)
        size = f"{stored / MIB:.1f} MiB in {seconds:.1f} s, {stored / MIB / seconds:.1f} MiB/s"
        self._log.say(f"Uploaded {files} artifacts: {size}")

    async def run(self) -> None:
        """Write a line on each file that is under way for long, now and then, until cancelled."""
        while True:
            await trio.sleep(INTERVAL / 4)
            now = trio.current_time()
            for progress in sorted(self._under_way.values(), key=lambda progress: progress.order):
                if now - progress.told >= INTERVAL:
                    progress.told = now
                    self._log.say(progress.line(now))
