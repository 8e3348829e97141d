"""The clock of a deployment's services, as far as it is known from the `Date` of their answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import trio

from worker.ports import Ports

NOTABLE_SKEW = 2.0  # seconds: a `Date` has no fractions, and the answer takes its time
LONGEST_SLEEP = 3600.0  # seconds


def parse_date(value: str) -> datetime | None:
    """A time as HTTP's headers have it (RFC 9110, 5.6.7); None where it is nonsense."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # Beyond these years sums of times have no result.
    if not 1970 <= moment.year <= 9000:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Skew(NamedTuple):
    """Between how many seconds another clock is ahead of ours."""

    least: float
    most: float

    def agrees(self, other: Skew) -> bool:
        """Whether both can be true of the same clock."""
        return self.least - NOTABLE_SKEW < other.most and other.least - NOTABLE_SKEW < self.most

    def narrowed(self, other: Skew) -> Skew:
        """What both say; where they differ by little, which is a clock's drift, what `other` says."""
        least, most = max(self.least, other.least), min(self.most, other.most)
        return Skew(least, most) if least <= most else other

    def nearest(self, seconds: float) -> float:
        """The possible value that is nearest to `seconds`."""
        return min(max(seconds, self.least), self.most)


class ServiceClock:
    """Times of the services', by our own clock and what is known of the difference.

    The first answer is believed at once. One that contradicts what is known is not believed before the next one agrees
    with it, since deadlines and claims hang on the clock.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.skew = 0.0  # seconds that the services' clock is ahead of ours, as well as it is known
        self._known: Skew | None = None
        self._claimed: Skew | None = None  # what the last answer alone says
        self._was_set = trio.Event()  # replaced whenever it is set

    @property
    def claimed_skew(self) -> float:
        """The skew as the last answer has it, be it believed or not."""
        return self.skew if self._claimed is None else self._claimed.nearest(self.skew)

    def timestamp(self) -> float:
        """The time in seconds since 1970, as well as it is known."""
        return self._ports.now().timestamp() + self.skew

    def now(self) -> datetime:
        """The time, for comparing with times of the services'. A difference that their seconds hide is none."""
        skew = self.skew if abs(self.skew) >= NOTABLE_SKEW else 0.0
        return self._ports.now() + timedelta(seconds=skew)

    def seconds_until(self, moment: datetime) -> float:
        """How long it is to a time of the services', 0 where it has passed."""
        return max(0.0, (moment - self.now()) / timedelta(seconds=1))

    async def sleep_until(self, moment: datetime) -> None:
        """Until a time of the services', also when it is learnt meanwhile that their clock is another one."""
        while seconds := self.seconds_until(moment):
            # Our own clock may be set too, which nothing tells: so long at most is slept in error.
            with trio.move_on_after(min(seconds, LONGEST_SLEEP)):
                await self._was_set.wait()

    def learn(self, sent: datetime, date: str | None) -> None:
        """An answer to a request that was `sent` at that time, by our clock, has arrived now with the header `date`."""
        if (moment := parse_date(date or "")) is None:
            return
        # It was written, by their clock, between the moment that it tells, to the second, and our receiving it: so an
        # answer that was long on its way tells little.
        received = self._ports.now()
        new = Skew((moment - received) / timedelta(seconds=1), (moment - sent) / timedelta(seconds=1) + 1)
        before, self._claimed = self._claimed, new
        if self._known is None or self._known.agrees(new):
            self._set(new if self._known is None else self._known.narrowed(new))
        elif before is not None and before.agrees(new):
            self._set(before.narrowed(new))

    def _set(self, known: Skew) -> None:
        self._known = known
        before, self.skew = self.skew, known.nearest(self.skew)
        if abs(self.skew - before) >= NOTABLE_SKEW:
            self._was_set.set()
            self._was_set = trio.Event()
