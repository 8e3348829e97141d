"""Asks the purge-cache service which caches are to be thrown away."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import trio

from worker.queue.errors import QueueError
from worker.queue.retry import RetryPolicy
from worker.queue.services import PurgeCache

log = logging.getLogger("worker")

INTERVAL = 10.0  # seconds: the service gives the same answer for so long (facts page, 1)
LIMIT = 5.0  # seconds for an answer; without one the caches are used as they are
POLICY = RetryPolicy(attempts=2, total=LIMIT)
# What a request's time may be before that of an answer that did not have it yet: the service's caching, and clocks.
OVERLAP = timedelta(minutes=1)


class Purges:
    """The requests that are known. `since` is asked from the second time on."""

    def __init__(self, service: PurgeCache, task_queue_id: str) -> None:
        self._service = service
        self._task_queue_id = task_queue_id
        self._before: dict[str, datetime] = {}
        self._asked: datetime | None = None  # by the service's clock
        self._not_before = 0.0
        self._asking = trio.Lock()
        self._is_out = False

    def before(self, name: str) -> datetime | None:
        """A cache of that name is to be thrown away if it was made before then, by the service's clock."""
        return self._before.get(name)

    def add(self, name: str, moment: datetime) -> None:
        """Caches of that name that were made before then are to be thrown away."""
        self._before[name] = max(moment, self._before.get(name, moment))

    async def refresh(self) -> None:
        """Ask, unless that was done just now. An outage is told once, and raises nothing."""
        async with self._asking:
            if trio.current_time() < self._not_before:
                return
            asked = self._service.client.deployment.clock.now()
            since = None if self._asked is None else self._asked - OVERLAP
            reason = f"no answer within {LIMIT:.0f} seconds"
            try:
                with trio.move_on_after(LIMIT):
                    answer = await self._service.requests(self._task_queue_id, since, policy=POLICY)
                    for request in answer.requests:
                        self.add(request.cache_name, request.before)
                    self._asked, reason = asked, ""
            except QueueError as error:
                reason = str(error)
            if reason and not self._is_out:
                log.warning("purge requests are not known, and caches are used as they are: %s", reason)
            self._is_out = bool(reason)
            self._not_before = trio.current_time() + INTERVAL
