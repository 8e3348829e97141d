"""How many connections there are at once, and which of them make room."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from math import inf

import trio

GRACE = 1.0  # seconds that a connection may be idle while other peers wait


class Places:
    """As many connections as there are places. While peers wait for one, connections that have no request under way
    may be idle for only `GRACE`: so idle sockets, however many, keep nobody out for long."""

    def __init__(self, number: int) -> None:
        self._free = trio.Semaphore(number)
        self._idle: dict[Place, float] = {}  # since when, the longest first
        self._asking = trio.Lock()
        self._review = trio.CancelScope()

    async def take(self) -> Place:
        """Wait for a place. It is to be `held`, at once."""
        async with self._asking:
            while True:
                review = inf if self._free.value else self.end_idle()
                with trio.CancelScope(deadline=review) as self._review:
                    await self._free.acquire()
                    return Place(self)

    def end_idle(self) -> float:
        """End those that are idle for longer than `GRACE`. Returns when there may be another."""
        for place, since in list(self._idle.items()):
            if since + GRACE > trio.current_time():
                return since + GRACE
            place.end()
        return inf

    def set_busy(self, place: Place, busy: bool) -> None:
        """For `Place`."""
        if busy:
            self._idle.pop(place, None)
        elif place not in self._idle:
            self._idle[place] = trio.current_time()
            self._review.deadline = min(self._review.deadline, trio.current_time() + GRACE)

    def leave(self, place: Place) -> None:
        """For `Place`."""
        self._idle.pop(place, None)
        self._free.release()


class Place:
    """One connection's."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._scope = trio.CancelScope()

    def set_busy(self, busy: bool) -> None:
        """Say whether a request is under way."""
        self._places.set_busy(self, busy)

    def end(self) -> None:
        """End the connection."""
        self._places.set_busy(self, True)
        self._scope.cancel()

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Around the connection, which begins idle. The block is cancelled when the connection is to make room."""
        self.set_busy(False)
        try:
            with self._scope:
                yield
        finally:
            self._places.leave(self)
