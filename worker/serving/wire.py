"""A stream whose peer is waited for only so long."""

from __future__ import annotations

from math import inf

import trio

RECEIVE = 64 * 1024  # bytes at once
PIECE = 64 * 1024  # bytes that the peer has `stalled_time` for
LINGER = 2.0  # seconds for a peer to take the last bytes and to close as well


class Wire:
    """Sends and receives; many may send, one receives. After an error it is `broken`, and neither raises anything.

    A send that is cancelled closes the stream: the peer could make no sense of what would follow. `abandoned` is for
    the protocol to set when what applications send is to reach nobody.
    """

    def __init__(self, stream: trio.abc.Stream, stalled_time: float) -> None:
        self._stream = stream
        self._stalled_time = stalled_time
        self._sending = trio.Lock()
        self._receiving = trio.CancelScope()
        self._eof = False
        self._taken_at = -inf
        self.broken = False
        self.abandoned = False

    @property
    def is_useless(self) -> bool:
        """Whether what an application sends reaches nobody."""
        return self.broken or self.abandoned

    def has_taken_since(self, time: float) -> bool:
        """Whether the peer has taken something since then, or is being waited for to do so."""
        return self._sending.locked() or self._taken_at > time

    async def receive(self, most: int, deadline: float) -> bytes | None:
        """What the peer has sent, at most so many bytes of it; None at the deadline or by `wake`.

        `b""` at its end, after which it waits for the deadline and `wake` alone, or when the wire is broken.
        """
        with trio.CancelScope(deadline=deadline) as self._receiving:
            if self._eof:
                await trio.sleep_forever()
            try:
                data = bytes(await self._stream.receive_some(most))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.broken = True
                data = b""
            self._eof = not data
            return data
        return None

    def wake(self) -> None:
        """Have `receive` return."""
        self._receiving.cancel()

    async def send(self, data: bytes) -> None:
        """Send all of `data`, unless the wire is broken or breaks meanwhile."""
        try:
            async with self._sending:
                for start in range(0, len(data), PIECE):
                    with trio.fail_after(self._stalled_time):
                        await self._stream.send_all(memoryview(data)[start : start + PIECE])
                    self._taken_at = trio.current_time()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._break()
            await trio.aclose_forcefully(self._stream)
        except trio.Cancelled:
            self._break()
            await trio.aclose_forcefully(self._stream)
            raise

    def _break(self) -> None:
        self.broken = True
        self.wake()

    async def close(self) -> None:
        """Close the stream so that the peer gets what was sent, within 2 s. Cancelled, it is closed at once."""
        if not self.broken:
            with trio.move_on_after(LINGER):
                async with self._sending:
                    await close_in_steps(self._stream)
        await trio.aclose_forcefully(self._stream)


async def close_in_steps(stream: trio.abc.Stream) -> None:
    """Close `stream` when the peer has closed it as well: a socket that is closed with bytes unread takes from the
    peer what it was sent last. A stream that has no `send_eof` is closed at once, and does this inside. Raises nothing
    where the peer has gone; cancelled, it closes the stream as it is."""
    try:
        if send_eof := getattr(stream, "send_eof", None):
            await send_eof()
            while await stream.receive_some(RECEIVE):
                pass
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)
