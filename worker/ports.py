"""The worker's ports to the world: wall clock, randomness, threads and the network, in one object.

Everything that is not a pure function takes them from a `Ports` that it was given, so that a simulation can own them
all: there, time is virtual, randomness is seeded, and what would go to a thread runs inline.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import httpx
import trio

from worker.transport import Transport

T = TypeVar("T")


class Ports:
    """The real world. A simulation derives from it.

    Monotonic time needs no port: it is `trio.current_time`, which a test's clock replaces as it is.
    """

    def __init__(self) -> None:
        self.random: random.Random = random.SystemRandom()

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        return datetime.now(UTC)

    def token(self, octets: int = 32) -> str:
        """An unguessable name for a URL: `octets` random bytes in URL-safe base64, no padding."""
        return base64.urlsafe_b64encode(self.random.randbytes(octets)).rstrip(b"=").decode()

    def slug(self) -> str:
        """A fresh Taskcluster id: a UUID v4 in 22 characters, the first of them never `-`."""
        octets = bytearray(self.random.randbytes(16))
        octets[0] &= 0x7F
        octets[6] = octets[6] & 0x0F | 0x40
        octets[8] = octets[8] & 0x3F | 0x80
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        """Run a blocking `function` off the event loop and return what it returns.

        Cancellation is noticed before the call. One that has begun is waited for, and its result returned.
        """
        return await trio.to_thread.run_sync(function, *args)

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        """The network under an HTTP client; a connection that was idle for `idle_limit` seconds is not used again."""
        return Transport(idle_limit)
