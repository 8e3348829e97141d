"""hypercorn's websocket with the checks, limits and ends that RFC 6455 asks for and it lacks."""

from __future__ import annotations

import trio
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError, WSStream
from hypercorn.typing import ASGISendEvent
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from worker.serving.applications import PeerGone
from worker.serving.wire import LINGER


class WebSocket(WSStream):
    """One websocket. It has no compression: a small message could become a large one."""

    _peer_code: int | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._over = trio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and frames may come."""
        return self.handshake.accepted and not self.closed

    async def handle(self, event: Event) -> None:
        if not isinstance(event, StreamClosed):
            await super().handle(event)
        elif not self.closed:
            self._over.set()
            if self._peer_code is None:
                await super().handle(event)
            elif self.app_put is not None:
                self.closed = True
                await self.app_put({"type": "websocket.disconnect", "code": self._peer_code})

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if message is not None and self.closed:
            raise PeerGone
        if message is None and self.is_open and self.connection.state is ConnectionState.LOCAL_CLOSING:
            # The peer's answer ends the closing; without it a browser would take the end for a failure.
            with trio.move_on_after(LINGER):
                await self._over.wait()
        await super().app_send(message)

    async def ping(self) -> None:
        """Ask the peer whether it is there."""
        await self._send_wsproto_event(Ping())

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            # Frames may be as small as six bytes, and many.
            await trio.lowlevel.checkpoint()
            if isinstance(event, BytesMessage | TextMessage):
                await self._add(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._end(event.code)
            if self.closed:
                return

    async def _add(self, event: BytesMessage | TextMessage) -> None:
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            await self._end(CloseReason.MESSAGE_TOO_BIG)
            return
        if event.message_finished:
            message = self.buffer.to_message()
            self.buffer.clear()
            if self.app_put is not None:
                await self.app_put(message)

    async def _end(self, code: int) -> None:
        """The peer closes the websocket, or broke its rules: it gets its answer, and the application the code."""
        if self._peer_code is None:
            self._peer_code = code
        await self._send_wsproto_event(CloseConnection(code=code))
        await self.send(StreamClosed(stream_id=self.stream_id))
