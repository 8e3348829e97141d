"""One request at the queue: the ASGI application on one side, a client that may go away on the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from email.utils import format_datetime
from urllib.parse import unquote

import httpx
import trio
from starlette.types import ASGIApp, Message, Scope

from worker.ports import Ports
from worker.serving import PeerGone

Headers = list[tuple[bytes, bytes]]

PIECES = 16  # of a request's body, that are on their way at once


class Exchange:
    """A request on its way: pieces of its body in, the head of the answer and pieces of its body out.

    `heard` is called with the answer that the application gave, whether or not anybody gets it.
    """

    def __init__(self, request: httpx.Request, heard: Callable[[int, bytes], None]) -> None:
        self.scope = scope_of(request)
        self._heard = heard
        self._gone = trio.Event()
        self.body_in, self._body = trio.open_memory_channel[bytes](PIECES)
        self._head_in, self.head = trio.open_memory_channel[tuple[int, Headers]](1)
        self._answer_in, self.answer = trio.open_memory_channel[bytes](0)

    def hang_up(self) -> None:
        """The client has gone: the application is told."""
        self._gone.set()
        self.body_in.close()
        self.head.close()
        self.answer.close()

    async def serve(self, app: ASGIApp, clock: Ports) -> None:
        """Let the application answer. Raises what it raises, except that nobody was there to listen."""
        status, heard = 0, bytearray()

        async def receive() -> Message:
            try:
                return {"type": "http.request", "body": await self._body.receive(), "more_body": True}
            except trio.EndOfChannel:
                if self._gone.is_set():
                    return {"type": "http.disconnect"}
            except trio.ClosedResourceError:
                await self._gone.wait()
                return {"type": "http.disconnect"}
            self._body.close()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                date = format_datetime(clock.now(), usegmt=True).encode()
                head = (status, [*message["headers"], (b"date", date)])
                await self._to_client(self._head_in.send(head), last=False)
                return
            heard.extend(message["body"])
            more = message.get("more_body", False)
            if not more:
                self._heard(status, bytes(heard))
            if message["body"] or not more:
                await self._to_client(self._answer_in.send(message["body"]), last=True)
            if not more:
                self._answer_in.close()

        try:
            await app(self.scope, receive, send)
        except PeerGone:
            pass
        finally:
            for channel in (self._head_in, self._answer_in, self._body):
                channel.close()

    async def _to_client(self, sending: Awaitable[None], *, last: bool) -> None:
        try:
            await sending
        except trio.BrokenResourceError:
            # What was answered is still to be heard, although nobody gets it.
            if last:
                raise PeerGone("the client has gone") from None


def scope_of(request: httpx.Request) -> Scope:
    """The ASGI scope of a request."""
    raw_path, _, query = request.url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": unquote(raw_path.decode()),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("192.0.2.1", 1),
        "server": (request.url.host, request.url.port or 80),
    }
