"""The applications of one connection: their tasks and what they receive."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, Scope

from worker.serving.wire import Wire

log = logging.getLogger(__name__)

INBOX = 2  # messages that wait for an application, each as large as `RECEIVE` or a websocket's message


class PeerGone(OSError):
    """What an application sends can reach nobody. It may let this through."""


class Applications(TaskGroup):
    """Runs applications in the connection's nursery, which outlives the call that started them.

    An application that fails ends only its exchange.
    """

    def __init__(self, nursery: trio.Nursery, wire: Wire) -> None:
        super().__init__()
        self._nursery: trio.Nursery = nursery
        self._wire = wire

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        inbox = _Inbox(scope["type"])

        async def checked_send(event: ASGISendEvent) -> None:
            if not self._wire.is_useless:
                await send(event)
            if self._wire.is_useless:
                raise PeerGone

        async def run() -> None:
            await _run_app(app, scope, inbox, checked_send)
            await send(None)

        self._nursery.start_soon(run)
        return inbox.put


class _Inbox:
    """What an application receives. Unlike hypercorn's it holds up nobody once the application is past receiving."""

    def __init__(self, kind: str) -> None:
        self._into, self._out = trio.open_memory_channel[ASGIReceiveEvent](INBOX)
        self._last = cast("ASGIReceiveEvent", {"type": f"{kind}.disconnect"})

    async def put(self, event: ASGIReceiveEvent) -> None:
        if event["type"] in {"http.disconnect", "websocket.disconnect"}:
            self._last = event
            self._into.close()
            return
        # Closed or broken: the exchange is over, and nobody wants the rest of the request.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._into.send(event)

    async def receive(self) -> ASGIReceiveEvent:
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            return self._last

    def close(self) -> None:
        self._out.close()


async def _run_app(app: AppWrapper, scope: Scope, inbox: _Inbox, send: ASGISendCallable) -> None:
    try:
        await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except* PeerGone:
        log.debug("a peer went in the middle of an answer")
    except* Exception as errors:  # noqa: BLE001  # one request's bug is not the server's end
        log.error("an application failed: %s", kind_and_place(errors))
    finally:
        inbox.close()


def kind_and_place(error: BaseException) -> str:
    """For a log: of which kind an error is and by which calls it came, and no more. What it says, or whoever caused it,
    may quote the peer, who knows secrets."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(sorted({kind_and_place(inner) for inner in error.exceptions}))
    frames = reversed(traceback.extract_tb(error.__traceback__))
    calls = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__} at {calls}"
