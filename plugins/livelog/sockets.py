"""A log over a websocket: binary messages, pieces of it as they are written."""

from __future__ import annotations

import trio
from starlette.types import Receive, Send

from plugins.livelog.answers import cancel_on_disconnect
from plugins.livelog.streaming import PAUSE
from worker.logfile import Follower, LogFile

# Close codes (RFC 6455, section 7.4; from 4000 on they are an application's own).
ENDED = (1000, "the log has ended")
DETACHED = (1001, "the log is no longer served here")
TOO_SLOW = (4008, "the log has ended, and there was no time left to read it here: it is stored")

CLOSE_LIMIT = 0.5  # seconds for a viewer who is cut off to take the frame that is under way, and for the close code


async def show_log(file: LogFile, offset: int, receive: Receive, send: Send) -> None:
    """Send all from the offset on, then close. What the viewer sends is ignored.

    Cancelled, it closes with the code that says why the rest does not follow, unless the viewer takes nothing.
    """
    follower = Follower(file, offset, pause=PAUSE)
    await receive()  # the opening
    await send({"type": "websocket.accept"})
    viewing = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_on_disconnect, receive, viewing)
        nursery.start_soon(_limit_when_cancelled, viewing)
        with viewing:
            try:
                async for chunk in follower:
                    # A frame that is cut in the middle ends the connection, and nobody is told why.
                    viewing.shield = True
                    await send({"type": "websocket.send", "bytes": chunk})
                    viewing.shield = False
                await _close(send, ENDED)
            except trio.Cancelled:
                if not viewing.cancel_called:  # else there is nobody any more
                    with trio.move_on_after(CLOSE_LIMIT, shield=True):
                        await _close(send, TOO_SLOW if file.closed else DETACHED)
                raise
        nursery.cancel_scope.cancel()


async def _limit_when_cancelled(scope: trio.CancelScope) -> None:
    try:
        await trio.sleep_forever()
    finally:
        scope.deadline = trio.current_time() + CLOSE_LIMIT


async def _close(send: Send, code_and_reason: tuple[int, str]) -> None:
    code, reason = code_and_reason
    await send({"type": "websocket.close", "code": code, "reason": reason})
