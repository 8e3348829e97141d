"""hypercorn's HTTP/1.1, fed and limited by us.

idle ─ head ─ body ─ answer ─▸ idle       one exchange after another
          └─────── answer ─ websocket     after a handshake
any ─▸ over
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody, Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup

from worker.serving.limits import ServingLimits
from worker.serving.requests import origin_form, refusal, wants_websocket
from worker.serving.websocket import WebSocket
from worker.serving.wire import Wire

log = logging.getLogger(__name__)


class Stage(Enum):
    """What the peer is to do next."""

    IDLE = auto()  # to begin a request
    HEAD = auto()  # to finish its headers
    BODY = auto()  # to send its body
    ANSWER = auto()  # to wait for the answer
    WEBSOCKET = auto()  # to send and to take frames
    OVER = auto()  # nothing


class Http1(H11Protocol):
    """The protocol of one connection. One task calls its methods. Applications change `stage` as well: then `changed`
    is set, the wire is woken, and that task is to call `resume`.

    HTTP/2 is not offered: on plain sockets nobody needs it.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        limits: ServingLimits,
        applications: TaskGroup,
        wire: Wire,
        *,
        tls: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> None:
        state = ConnectionState({})
        super().__init__(app, config, WorkerContext(None), applications, state, tls, client, server, self._out)
        self.stage = Stage.IDLE
        self.changed = False
        self._limits = limits
        self._wire = wire
        self._ahead = bytearray()  # what came before its time
        self._body_size = 0

    async def receive(self, data: bytes) -> None:
        """The peer has sent `data`."""
        match self.stage:
            case Stage.ANSWER:
                self._ahead += data
                if len(self._ahead) > self._limits.headers:
                    await self.end()
            case Stage.WEBSOCKET:
                await self._frames(data)
            case Stage.IDLE | Stage.HEAD | Stage.BODY if isinstance(self.connection, h11.Connection):
                self.connection.receive_data(data)
                await self._parse(self.connection)

    async def resume(self) -> None:
        """Go on with what the peer has sent ahead."""
        self.changed = False
        ahead = bytes(self._ahead)
        self._ahead.clear()
        if self.stage is Stage.WEBSOCKET:
            await self._frames(ahead)
        elif self.stage is Stage.IDLE and isinstance(self.connection, h11.Connection):
            if ahead:
                self.connection.receive_data(ahead)
            await self._parse(self.connection)

    async def hang_up(self) -> None:
        """The peer will send no more, and has most likely gone: an application is told, and may finish its answer."""
        match self.stage:
            case Stage.HEAD | Stage.BODY:
                await self.refuse(400)
            case Stage.ANSWER if isinstance(self.stream, HTTPStream) and self.stream.app_put is not None:
                await self.stream.app_put({"type": "http.disconnect"})
            case _:
                await self.end()

    async def refuse(self, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Answer with an error where nothing was answered yet, and end the connection."""
        log.debug("a request is refused: %d", status)
        unanswered = self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}
        # First, since the application may send, or end, while the answer waits for the peer.
        await self.end()
        if unanswered:
            lines = [(b"content-length", b"0"), (b"connection", b"close"), *(headers or [])]
            lines += self.config.response_headers("h11")
            await self._send_h11_event(h11.Response(status_code=status, headers=lines))
            await self._send_h11_event(h11.EndOfMessage())

    async def end(self) -> None:
        """Break off what is under way, and end the connection."""
        self._wire.abandoned, self.stage = True, Stage.OVER
        await self._close_stream()

    async def ping(self) -> None:
        """Ask a websocket's peer whether it is there."""
        if isinstance(self.stream, WebSocket):
            await self.stream.ping()

    async def _out(self, event: Event) -> None:
        """What hypercorn wants done."""
        if isinstance(event, RawData):
            await self._wire.send(event.data)
            if self.stage is Stage.ANSWER and isinstance(self.stream, WebSocket) and self.stream.is_open:
                self._move(Stage.WEBSOCKET)
        elif isinstance(event, Closed):
            self._move(Stage.OVER)
        elif isinstance(event, Updated) and event.idle:
            self._move(Stage.IDLE)

    def _move(self, stage: Stage) -> None:
        if self.stage is not Stage.OVER:
            self.stage, self.changed = stage, True
            self._wire.wake()

    async def _frames(self, data: bytes) -> None:
        if self.stream is not None:
            await self.stream.handle(Data(stream_id=STREAM_ID, data=data))

    async def _parse(self, connection: h11.Connection) -> None:
        body = bytearray()
        complete = False
        while self.stage in {Stage.IDLE, Stage.HEAD, Stage.BODY}:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(error.error_status_hint)
                return
            if isinstance(event, h11.Request):
                await self._begin(event)
            elif isinstance(event, h11.Data):
                body += event.data
                await trio.lowlevel.checkpoint()  # chunks may be as small as six bytes, and many
            elif isinstance(event, h11.EndOfMessage):
                self.stage = Stage.ANSWER
                complete = True
            else:
                if self.stage is Stage.IDLE and connection.trailing_data[0]:
                    self.stage = Stage.HEAD
                break
        self._body_size += len(body)
        if self._body_size > self._limits.request_body:
            await self.refuse(413)
        elif body and self.stream is not None:
            await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(body)))
        if complete and self.stream is not None:
            await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _begin(self, request: h11.Request) -> None:
        self.stage = Stage.BODY
        self._body_size = 0
        if refused := refusal(request, self._limits):
            await self.refuse(*refused)
            return
        headers = list(request.headers)
        if wants_websocket(request):
            # Without its offers there is no compression, by which a small message could become a large one.
            headers = [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]
            self.stage = Stage.ANSWER
            self._ahead += self.connection.trailing_data[0]
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
            kind: type[HTTPStream | WebSocket] = WebSocket
        else:
            await self._invite_body()
            kind = HTTPStream
        self.keep_alive_requests += 1
        self.stream = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=origin_form(request.target),
                state=self.connection_state,
            )
        )

    async def _invite_body(self) -> None:
        if self.connection.they_are_waiting_for_100_continue:
            headers = self.config.response_headers("h11")
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))
