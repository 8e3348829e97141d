"""Says once in the log that a service does not answer, and once that it does again."""

from __future__ import annotations

import logging

log = logging.getLogger("worker.queue")


class Outage:
    """The state of one service, fed with the end of every attempt; monotonic times in seconds."""

    def __init__(self) -> None:
        self._failing: dict[str, float] = {}
        # A second method that fails in the same outage is no news; one that fails after an answer is.
        self._answered = True

    def failed(self, method: str, reason: str, now: float) -> None:
        """An attempt of `method` failed for a reason that may pass."""
        if method in self._failing:
            return
        self._failing[method] = now
        if self._answered:
            log.warning("%s does not work: %s; it is tried again", method, reason)
        self._answered = False

    def answered(self, method: str, now: float) -> None:
        """An attempt of `method` was answered, be it with a refusal."""
        self._answered = True
        since = self._failing.get(method)
        if since is not None:
            self._failing.clear()
            log.info("%s works again, after %.1f s", method, now - since)
