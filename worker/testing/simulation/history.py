"""What happened in one seed, line by line, and the first thing that must not have happened."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

KEPT = 600  # lines that are kept for the reader; all of them are in the digest
MOST = 150_000  # lines after which a seed is thought to go round in circles


class History:
    """Lines of `virtual time  who  what`. `broken` is the promise that was broken, empty while none is.

    `on_break` is called once, when one is; after it the history takes no more lines.
    """

    def __init__(self, on_break: Callable[[], None] = lambda: None) -> None:
        self._digest = hashlib.sha256()
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._on_break = on_break
        self._now = 0.0
        self.count = 0
        self.broken = ""
        self.watchers: list[Callable[[], None]] = []  # asked after each line whether all still holds

    def note(self, who: str, what: str) -> None:
        """Add a line, and look whether everything still holds."""
        if self.broken:
            return
        self._now = trio.current_time()
        self._add(who, what)
        for watcher in self.watchers:
            watcher()
        if self.count > MOST:
            self.fail("the simulation ends", f"more than {MOST} events")

    def fail(self, promise: str, what: str) -> None:
        """A promise is broken: the first one counts. It may be told when the world has come to its end, too."""
        if self.broken:
            return
        with suppress(RuntimeError):  # outside of Trio
            self._now = trio.current_time()
        self._add("BROKEN", f"{promise}: {what}")
        self.broken = f"{promise}: {what}"
        self._on_break()

    def _add(self, who: str, what: str) -> None:
        line = f"{self._now:12.6f}  {who:<10} {what}"
        self._digest.update(line.encode(errors="backslashreplace") + b"\n")
        self._lines.append(line)
        self.count += 1

    @property
    def digest(self) -> str:
        """The SHA-256 of all lines."""
        return self._digest.hexdigest()

    def tail(self) -> list[str]:
        """The last lines."""
        return list(self._lines)


class HistoryHandler(logging.Handler):
    """Takes the worker's own log into the history, without what differs from one machine to the other."""

    def __init__(self, history: History, hidden: str) -> None:
        super().__init__(logging.INFO)
        self._history = history
        self._hidden = hidden  # the folder of this seed

    def emit(self, record: logging.LogRecord) -> None:
        """Add the message; of an exception only its kind."""
        text = record.getMessage().replace(self._hidden, "$FOLDER")
        error = record.exc_info[1] if record.exc_info else None
        cause = f" [{describe(error)}]" if error is not None else ""
        self._history.note("log", f"{record.levelname} {text}{cause}".replace("\n", "\\n"))


def describe(error: BaseException) -> str:
    """An exception in one line; a group with what is in it."""
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({'; '.join(describe(inner) for inner in error.exceptions)})"
    return f"{type(error).__name__}: {error}".partition("\n")[0]
