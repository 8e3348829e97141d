"""When the bytes of a log were written, without I/O."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

LIMIT = 32 * 1024  # entries of 16 bytes


class LineTimes:
    """An index of (offset, time) per write. Times are POSIX seconds.

    A time that it tells is less than `precision` seconds away from that of the write, and before it, unless the clock
    was set back. The precision is a millisecond until there are more than `limit` writes that it tells apart, and
    doubles whenever that happens again. So with a clock that runs forward it is less than 2 / (limit - 1) of the time
    between the first and the last write: with LIMIT never worse than 0.22 s after an hour and 5.3 s after a day.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._offsets = array("Q")
        self._times = array("Q")  # milliseconds
        # Of the writes in one interval of 2 ** shift ms the first is kept. Each interval is two of those before, so
        # that errors do not add up.
        self._shift = 0

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._offsets)

    @property
    def precision(self) -> float:
        """Seconds by which a time may be off."""
        return (1 << self._shift) / 1000

    def wrote(self, offset: int, time: float) -> None:
        """A write began at `offset`, which is behind all offsets before."""
        milliseconds = int(time * 1000)
        if self._times and milliseconds >> self._shift == self._times[-1] >> self._shift:
            return
        self._offsets.append(offset)
        self._times.append(milliseconds)
        while len(self._offsets) > self._limit:
            self._shift += 1
            self._thin()

    def _thin(self) -> None:
        intervals = [time >> self._shift for time in self._times]
        kept = [i for i, interval in enumerate(intervals) if i == 0 or interval != intervals[i - 1]]
        self._offsets = array("Q", [self._offsets[i] for i in kept])
        self._times = array("Q", [self._times[i] for i in kept])

    def at(self, offset: int) -> float:
        """When the byte at `offset` was written, so for a line: when it began. Raises LookupError before any write."""
        index = bisect_right(self._offsets, offset) - 1
        if index < 0:
            raise LookupError(f"nothing was written at {offset} or before")
        return self._times[index] / 1000

    def since(self, offset: int) -> Iterator[tuple[int, int]]:
        """What tells the times from `offset` on: pairs of offset and milliseconds, in order."""
        first = max(0, bisect_right(self._offsets, offset) - 1)
        return zip(self._offsets[first:], self._times[first:], strict=True)
