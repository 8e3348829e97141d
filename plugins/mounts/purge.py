"""Asks the purge-cache service which caches are to be thrown away.

The service knows a request for a day, and answers what it answered ten seconds ago (facts page, 1). Times are the
service's own, as well as the worker knows its clock: in doubt a cache is thrown away, which costs time alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from worker.ports import Ports
from worker.queue.errors import QueueError
from worker.queue.retry import RetryPolicy
from worker.queue.services import PurgeCache

log = logging.getLogger("worker")

INTERVAL = 10.0  # seconds between two questions
FAILED_INTERVAL = 60.0  # after one that was not answered, since each costs a task its time
LIMIT = 5.0  # seconds for an answer; without one the caches are used as they are
POLICY = RetryPolicy(attempts=2, total=LIMIT)
KEPT = timedelta(days=1)
# What is known of the service's clock may be wrong by so much (`worker.queue.clock`): a cache counts as older by that.
SLACK = timedelta(seconds=5)
# A request may be missing in an answer that is later than it, by the service's caching and by clocks.
OVERLAP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Requests:
    """What an answer asks for: caches are to go by their name and age, or by their age alone."""

    before: Mapping[str, datetime]
    all_before: datetime | None = None

    def concern(self, name: str, made: datetime) -> bool:
        """Whether a cache of that name that was made then is to be thrown away."""
        before = self.before.get(name)
        missed = self.all_before is not None and made < self.all_before
        return missed or (before is not None and made < before + SLACK)


class Purges:
    """The questions to the service. One at a time: that is the caller's affair.

    `path` has the time of the last answer whose requests were followed: if that is longer ago than a request is kept,
    requests have been missed, and nobody knows for which caches of that time.
    """

    def __init__(self, ports: Ports, service: PurgeCache, task_queue_id: str, path: Path, limit: float = LIMIT) -> None:
        self._ports = ports
        self._service = service
        self._task_queue_id = task_queue_id
        self._path = path
        self.limit = limit
        self._answered: datetime | None = None
        self._since: datetime | None = None  # the first answer is to have all that there is
        self._not_before = trio.current_time()
        self._is_out = False

    async def ask(self) -> Requests | None:
        """What is to be thrown away; None where there is no answer, or was one just now.

        It takes a few seconds at most. An outage is told once, and raises nothing.
        """
        if trio.current_time() < self._not_before:
            return None
        asked = self._service.client.deployment.clock.now()
        reason = f"no answer within {self.limit:g} seconds"
        requests = None
        try:
            with trio.move_on_after(self.limit):
                answer = await self._service.requests(self._task_queue_id, self._since, policy=POLICY)
                before: dict[str, datetime] = {}
                for entry in answer.requests:
                    before[entry.cache_name] = max(entry.before, before.get(entry.cache_name, entry.before))
                requests, reason = Requests(before, await self._missed(asked)), ""
                self._answered = asked
        except QueueError as error:
            reason = str(error)
        if reason and not self._is_out:
            log.warning("it is not known which caches are to be purged, and they are used as they are: %s", reason)
        self._is_out = bool(reason)
        # Not before the answer: whoever waits behind a question that is cancelled asks anew.
        self._not_before = trio.current_time() + (FAILED_INTERVAL if reason else INTERVAL)
        return requests

    async def _missed(self, asked: datetime) -> datetime | None:
        """Caches that were made before then may have been meant by a request that nobody knows any more."""
        last = self._since or await self._ports.run_sync(_read, self._path)
        oldest = asked - KEPT + SLACK
        return oldest if last is None or last < oldest else None

    async def followed(self) -> None:
        """What the last answer asked for was done."""
        if self._answered is None:
            return
        self._since = self._answered - OVERLAP
        with suppress(OSError):  # After a restart more requests than these count as missed.
            await self._ports.run_sync(_write, self._path, self._since)


def _read(path: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(path.read_text()).astimezone(UTC)
    except (OSError, ValueError):
        return None


def _write(path: Path, moment: datetime) -> None:
    new = path.with_suffix(".new")
    new.write_text(moment.isoformat())
    new.replace(path)
