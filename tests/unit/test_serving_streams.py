"""One connection on streams that are no sockets, in virtual time."""

from __future__ import annotations

import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from worker.serving import ServingLimits, serve_connection

REQUEST = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = ServingLimits()


async def shows(scope: Scope, receive: Receive, send: Send) -> None:
    body = f"{scope['scheme']} {scope['client']} {scope['path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def test_exchanges_one_after_another_until_the_peer_ends(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_connection(shows, theirs, limits=LIMITS, scheme="https", client=("192.0.2.1", 7))

        nursery.start_soon(serve)
        for _ in range(3):
            await ours.send_all(REQUEST)
            answer = b""
            while not answer.endswith(b"https ('192.0.2.1', 7) /a"):
                answer += await ours.receive_some()
            assert answer.startswith(b"HTTP/1.1 200")
        await ours.send_eof()
        assert await ours.receive_some() == b""
