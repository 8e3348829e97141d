"""Logs that are followed while something on the way breaks."""

from __future__ import annotations

import hashlib

import trio

STEP = 2_000_000  # bytes that the task writes in a second


def digest(content: bytes | bytearray) -> tuple[int, str]:
    """To compare large contents by: pytest would look for minutes for how these differ."""
    return len(content), hashlib.sha256(content).hexdigest()


class Reader:
    """What has come."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._grown = trio.Event()

    def take(self, data: bytes) -> None:
        """In a thread of Trio's."""
        self.content += data
        trio.from_thread.run_sync(self.wake)

    def wake(self) -> None:
        """The content has grown."""
        self._grown.set()
        self._grown = trio.Event()

    async def wait_size(self, size: int) -> None:
        """Return when so many bytes have come."""
        while len(self.content) < size:
            await self._grown.wait()


def talkative(seconds: int) -> dict[str, object]:
    """A task that writes `STEP` bytes a second."""
    steps = seconds * 50
    script = f'for step in $(seq {steps}); do seq -f "$step %g of a log that is followed" 1300; sleep 0.02; done'
    return {"command": [["sh", "-c", script]], "maxRunTime": 600}
