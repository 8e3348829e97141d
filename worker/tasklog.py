"""One run's log: what its task writes and what the worker remarks, without secrets, in one append-only file.

task ─ write ─▸ redaction ─┐
                           ├─▸ size limit ─▸ file ─▸ viewers, backing log
worker ─ say ─▸ redaction ─┘            └─▸ tail, appended at the end
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import trio

from worker.linetimes import LineTimes
from worker.logfile import CHUNK, Follower, LogFile
from worker.ports import Ports
from worker.quantities import approximate_size, format_size
from worker.redaction import LINE, Redactor
from worker.spellings import spellings

log = logging.getLogger("worker.run")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How long a log may get, and what it must not tell; sizes in bytes.

    `secrets` are hidden in all of their `spellings`.
    """

    size_limit: int | None = None
    tail: int = 64 * 1024
    secrets: frozenset[bytes] = field(default=frozenset(), repr=False)
    patterns: tuple[re.Pattern[bytes], ...] = ()


class TaskLog:
    """The writer's end, and what readers read from.

    Secrets are hidden before anything is stored, so stored, live and followed logs are the same bytes. What the task
    writes and what the worker remarks are redacted apart from one another: a remark in the midst of a secret does not
    split it. So a remark may come before the last few bytes that a task has written, where a secret may begin with
    these, or before an unfinished line, where there are patterns.

    Beyond the size limit the log stops and says so; its end follows when it is closed.
    """

    def __init__(self, ports: Ports, file: LogFile, settings: LogSettings) -> None:
        secrets = _all_spellings(settings.secrets)
        self._ports = ports
        self._settings = settings
        self._output = Redactor(secrets, settings.patterns)
        self._remarks = Redactor(secrets, settings.patterns)
        self._tail: _Tail | None = None
        self.file = file
        self.times = LineTimes()

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def size(self) -> int:
        """How many bytes readers can read so far."""
        return self.file.size

    @property
    def closed(self) -> bool:
        """Whether nothing follows any more."""
        return self.file.closed

    def hide(self, secrets: Iterable[bytes]) -> None:
        """Hide these too from now on, in all of their `spellings`; what is too short to be a secret is not hidden."""
        found = _all_spellings(secrets)
        self._output.add(found)
        self._remarks.add(found)

    async def write(self, data: bytes) -> None:
        """Append a task's output. Waits while the disk is behind. Raises OSError, as from a full disk."""
        if self._settings.patterns:
            # These may take long, so others get their turn. What was taken from the task is not lost by a cancel.
            for start in range(0, len(data), LINE):
                self._append(self._output.feed(data[start : start + LINE]))
                await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            self._append(self._output.feed(data))
        if self.file.unwritten >= CHUNK:
            await self.file.flush()
        else:
            await trio.lowlevel.checkpoint()

    def end_output(self) -> None:
        """A command has ended: what was held back of its output is told. Whatever follows begins anew."""
        self._append(self._output.end())

    def say(self, message: str) -> None:
        """Append a remark of the worker, a line or more: `[taskcluster 2026-01-31T00:00:00.000Z] message`.

        A remark that comes when the log is closed goes to the worker's own log.
        """
        self._remark(f"[taskcluster {self._time()}] ", message)

    def warn(self, message: str) -> None:
        """Append what its reader should know but did not end the task: `[taskcluster:warn TIME] message`."""
        self._remark(f"[taskcluster:warn {self._time()}] ", message)

    def error(self, message: str) -> None:
        """Append why the task did not complete: `[taskcluster:error] message`."""
        self._remark("[taskcluster:error] ", message)

    def _remark(self, prefix: str, message: str) -> None:
        hidden = self._hidden(message)
        if self.closed:
            log.info("%s: after its log was closed: %s", self.path.stem, hidden.decode(errors="replace"))
            return
        lines = hidden.splitlines() or [b""]
        self._append(b"".join(b"%b%b\n" % (prefix.encode(), line) for line in lines))

    def _hidden(self, message: str) -> bytes:
        return self._remarks.feed(message.encode(errors="backslashreplace")) + self._remarks.end()

    def _time(self) -> str:
        return _wire(self._ports.now())

    def _append(self, data: bytes) -> None:
        if self.closed:
            raise ValueError("the log is closed")
        limit = self._settings.size_limit
        if self._tail is None and limit is not None and self.size + len(data) > limit:
            room = max(0, limit - self.size)
            self._store(data[:room])
            self._store(
                f"\n[taskcluster:warn {self._time()}] the log has reached its limit of {format_size(limit)}: from here "
                f"on only the last {format_size(self._settings.tail)} are kept, for its end\n".encode()
            )
            data, self._tail = data[room:], _Tail(self._settings.tail)
        if self._tail is None:
            self._store(data)
        else:
            self._tail.append(data)

    def _store(self, data: bytes) -> None:
        if data:
            self.times.wrote(self.size, self._ports.now().timestamp())
            self.file.append(data)

    async def read(self, offset: int) -> bytes:
        """As `LogFile.read`."""
        return await self.file.read(offset)

    def follow(self, offset: int = 0) -> Follower:
        """All bytes from `offset` on, as they are written, until the log is closed."""
        return Follower(self.file, offset)

    async def close(self) -> None:
        """Take no more; readers get what there is and then the end. Raises OSError; is closed all the same."""
        if not self.closed:
            self.end_output()
            if self._tail is not None:
                self._store(self._tail.notice(self._time()) + self._tail.content())
            self.file.close()
        if self.file.has_file:
            await self.file.flush()


class _Tail:
    """The last bytes of what is not stored, `size` of them at least."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()
        self._dropped = 0

    def append(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > 2 * self._size:  # not at each write, since that moves the others
            self._drop(len(self._kept) - self._size)

    def _drop(self, count: int) -> None:
        del self._kept[:count]
        self._dropped += count

    def notice(self, time: str) -> bytes:
        """What stands before the content."""
        if len(self._kept) > self._size:
            self._drop(len(self._kept) - self._size)
        if not self._dropped:
            return b""
        first_line = self._kept.find(b"\n") + 1
        if first_line < len(self._kept):  # whole lines, unless all of it is one
            self._drop(first_line)
        return f"[taskcluster:warn {time}] {approximate_size(self._dropped)} of the log are left out here\n".encode()

    def content(self) -> bytes:
        return bytes(self._kept)


def _all_spellings(secrets: Iterable[bytes]) -> frozenset[bytes]:
    return frozenset(form for secret in secrets for form in spellings(secret))


def _wire(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@asynccontextmanager
async def open_tasklog(ports: Ports, path: Path, settings: LogSettings | None = None) -> AsyncGenerator[TaskLog, None]:
    """A new log, readable until the block ends; where it becomes long it is kept in a new file at `path` until then."""
    file = LogFile(ports, path)
    try:
        yield TaskLog(ports, file, settings or LogSettings())
    finally:
        await file.aclose()
