"""What a task writes to stdout and stderr, into its log."""

from __future__ import annotations

import array
import fcntl
import os
import termios

import trio

from worker.tasklog import TaskLog

CHUNK = 64 * 1024


class Output:
    """One pipe for all commands of a run, so that the order of what they write is kept."""

    def __init__(self, log: TaskLog) -> None:
        self._log = log
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._reading = trio.Lock()

    async def pump(self) -> None:
        """Write into the log what comes, until nobody can write any more. Raises OSError of the log's."""
        while True:
            await trio.lowlevel.wait_readable(self._reader)
            async with self._reading:
                if await self._take(CHUNK) == 0:
                    return

    async def drain(self) -> None:
        """Write into the log what is in the pipe now, so that a remark comes after it."""
        async with self._reading:
            waiting = array.array("i", [0])
            fcntl.ioctl(self._reader, termios.FIONREAD, waiting)
            left = waiting[0]
            while left > 0 and (taken := await self._take(min(left, CHUNK))) > 0:
                left -= taken

    async def _take(self, most: int) -> int:
        """Bytes taken; 0 at the end, -1 where somebody else was faster."""
        try:
            chunk = os.read(self._reader, most)
        except BlockingIOError:
            return -1
        if chunk:
            await self._log.write(chunk)
        return len(chunk)

    def close_writer(self) -> None:
        """Leave writing to those who inherited it."""
        os.close(self.writer)

    def close_reader(self) -> None:
        """Let go of the pipe; whoever still writes gets SIGPIPE."""
        os.close(self._reader)
