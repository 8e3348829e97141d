"""The clock of a deployment's services, as far as it is known from the `Date` of their answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

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


class ServiceClock:
    """Times of the services', by our own clock and what is known of the difference.

    The first answer is believed at once. Later a single answer does not change the clock by much, since deadlines and
    claims hang on it: the next one must agree.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        # Seconds that the services' clock is ahead of ours.
        self.skew = 0.0
        # The same as the last answer alone has it: until the next one agrees it is no more than a claim.
        self.claimed_skew = 0.0
        self._known = False
        self._was_set = trio.Event()  # replaced whenever it is set

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
        # It was written, by their clock, between the moment that it tells, to the second, and our receiving it. What is
        # known already holds unless that contradicts it: an answer that was long on its way tells little.
        least = (moment - self._ports.now()) / timedelta(seconds=1)
        most = (moment - sent) / timedelta(seconds=1) + 1
        agrees = least - NOTABLE_SKEW < self.claimed_skew < most + NOTABLE_SKEW
        self.claimed_skew = min(max(self.skew, least), most)
        if abs(self.claimed_skew - self.skew) < NOTABLE_SKEW:
            self.skew = self.claimed_skew
        elif agrees or not self._known:
            self.skew = self.claimed_skew
            self._was_set.set()
            self._was_set = trio.Event()
        self._known = True
