"""One connection on a stream that is no socket, in virtual time: what is waited for how long, and what is held."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import repeat
from math import inf

import pytest
import trio
from starlette.types import Message, Receive, Scope, Send
from trio.testing import MockClock

from worker.serving import PeerGone, ServingLimits, serve_connection
from worker.serving.connection import SPOKEN
from worker.serving.wire import LINGER

LIMITS = ServingLimits()
HEADER_TIME = LIMITS.header_time.total_seconds()
IDLE_TIME = LIMITS.idle_time.total_seconds()
PING_INTERVAL = LIMITS.ping_interval.total_seconds()
STALLED_TIME = LIMITS.stalled_time.total_seconds()

GET = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
PING, PONG = b"\x89\x00", b"\x8a\x80\0\0\0\0"

Pieces = Iterable[tuple[float, bytes]]


def post(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"POST %s HTTP/1.1" % path, b"Host: x", *headers, b"", b""])


def handshake(path: bytes) -> bytes:
    return (
        b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % path
    )


def closing(code: int) -> bytes:
    return b"\x88\x82\0\0\0\0" + struct.pack("!H", code)


class Peer(trio.abc.HalfCloseableStream):
    """The stream to a peer that sends `pieces`, each so many seconds after the one before, and an empty one for its
    end. It takes what it is sent in `takes` seconds."""

    def __init__(self, *pieces: tuple[float, bytes], more: Pieces = (), takes: float = 0) -> None:
        self._pieces = self._chain(pieces, more)
        self._takes = takes
        self._ready = b""
        self._next: tuple[float, bytes] | None = None
        self.received = bytearray()
        self.left_at = inf  # when the server told it that nothing more comes, or closed
        self.closed_at = inf

    @staticmethod
    def _chain(*parts: Pieces) -> Iterator[tuple[float, bytes]]:
        for part in parts:
            yield from part

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._ready:
            if self._next is None:
                delay, data = next(self._pieces, (inf, b""))
                self._next = trio.current_time() + delay, data
            # It may be cancelled here, and goes on in the next call.
            await trio.sleep_until(self._next[0])
            self._ready = self._next[1]
            if self._ready:  # the end stays the end
                self._next = None
        size = max_bytes or len(self._ready)
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(self._takes)
        self.received += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.left_at = min(self.left_at, trio.current_time())

    async def aclose(self) -> None:
        self.left_at = min(self.left_at, trio.current_time())
        self.closed_at = min(self.closed_at, trio.current_time())
        await trio.lowlevel.checkpoint()


class Application:
    """Answers by path, and keeps what it got and how its exchange ended."""

    def __init__(self) -> None:
        self.events: list[Message] = []
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await (self._websocket if scope["type"] == "websocket" else self._http)(scope, receive, send)
        except BaseException as error:
            self.failure = error
            raise

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.events.append(await receive())
        await send({"type": "websocket.accept"})
        if scope["path"] == "/deaf":
            await trio.sleep_forever()
        if scope["path"].startswith("/send"):
            for _ in range(int(scope["path"].removeprefix("/send"))):
                await send({"type": "websocket.send", "bytes": bytes(65536)})
        if scope["path"] == "/bye":
            await send({"type": "websocket.close", "code": 4000})
            return
        while self.events[-1]["type"] != "websocket.disconnect":
            self.events.append(await receive())
        if scope["path"] == "/late":
            await send({"type": "websocket.send", "text": "late"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/deaf":
            await trio.sleep_forever()
        size = 0
        while scope["path"] == "/read":
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = f"{scope['scheme']} {scope['client']} {scope['path']} {size}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


async def serve(peer: Peer, app: Application | None = None) -> Application:
    app = app or Application()
    await serve_connection(app, peer, limits=LIMITS, scheme="https", client=("192.0.2.1", 7))
    assert peer.closed_at < inf
    return app


async def test_exchanges_one_after_another_until_the_peer_ends(autojump_clock: MockClock) -> None:
    peer = Peer((0, GET), (1, GET), (1, GET), (0, b""))
    await serve(peer)
    assert peer.received.count(b"https ('192.0.2.1', 7) /a 0") == 3
    assert trio.current_time() == 2


async def test_what_is_sent_ahead_is_answered_in_turn(autojump_clock: MockClock) -> None:
    second = post(b"/read", b"Content-Length: 5") + b"12345"
    peer = Peer((0, GET + second + GET[:9]), (1, GET[9:]), (0, b""))
    await serve(peer)
    answers = [peer.received.find(answer) for answer in (b"/a 0", b"/read 5")]
    assert 0 < answers[0] < answers[1] < peer.received.rfind(b"/a 0")


def drip(data: bytes, every: float = 1) -> Pieces:
    """One byte at a time."""
    return ((every, bytes([byte])) for byte in data)


LONG_HEAD = GET[:-2] + b"A: " + b"a" * 10_000


@pytest.mark.parametrize(
    ("peer", "seconds", "status"),
    [
        (Peer(), HEADER_TIME, b""),
        (Peer((1, GET[:-2])), HEADER_TIME, b"408"),
        (Peer(more=drip(LONG_HEAD)), HEADER_TIME, b"408"),
        (Peer((1, GET)), 1 + IDLE_TIME, b"200"),
        (Peer((0, GET), (30, GET[:-2])), 30 + HEADER_TIME, b"408"),
        (Peer((0, GET), (30, b"G"), more=drip(LONG_HEAD[1:])), 30 + HEADER_TIME, b"408"),
        (Peer((0, post(b"/read", b"Content-Length: 9999"))), HEADER_TIME, b"408"),
    ],
    ids=["nothing", "half a head", "head in drops", "idle", "half a second head", "second head in drops", "no body"],
)
async def test_a_peer_that_is_late_is_not_waited_for(
    peer: Peer, seconds: float, status: bytes, autojump_clock: MockClock
) -> None:
    await serve(peer)
    assert peer.left_at == seconds
    assert status in peer.received
    assert bool(peer.received) == bool(status)
    assert peer.closed_at <= seconds + LINGER


async def test_a_body_in_drops_is_not_waited_for(autojump_clock: MockClock) -> None:
    size = 100_000
    peer = Peer((0, post(b"/read", b"Content-Length: %d" % size)), more=drip(b"x" * size))
    app = await serve(peer)
    assert HEADER_TIME <= peer.left_at < HEADER_TIME + 2
    assert b"408" in peer.received
    assert isinstance(app.failure, PeerGone)


async def shows_log(scope: Scope, receive: Receive, send: Send) -> None:
    """As a log does: until it is told that nobody is there. The path says how many messages come at once."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(int(scope["path"][1:])):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        if scope["query_string"]:
            await trio.sleep_forever()
        await send({"type": "http.response.body", "body": b""})
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("takes", [0, STALLED_TIME / 2])
async def test_a_peer_that_sends_no_more_gets_all_of_an_answer(takes: float, autojump_clock: MockClock) -> None:
    peer = Peer((0, b"GET /20 HTTP/1.0\r\n\r\n"), (0, b""), takes=takes)
    await serve_connection(shows_log, peer, limits=LIMITS, scheme="http", client=None)
    assert peer.received.count(b"x") == 20 * 65536


async def test_an_application_that_waits_is_told_that_its_peer_sends_no_more(autojump_clock: MockClock) -> None:
    peer = Peer((0, b"GET /20?waits HTTP/1.0\r\n\r\n"), (10, b""))
    await serve_connection(shows_log, peer, limits=LIMITS, scheme="http", client=None)
    assert 10 < peer.left_at <= 10 + 2 * SPOKEN


@pytest.mark.parametrize("path", [b"/sends", b"/returns"])
async def test_an_application_that_goes_on_does_not_break_a_refusal(
    path: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It does so while the peer takes the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(HEADER_TIME + 0.5)
        if scope["path"] == "/sends":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    peer = Peer((0, post(path, b"Content-Length: 5")), takes=1)
    await serve_connection(app, peer, limits=LIMITS, scheme="http", client=None)
    assert peer.received.startswith(b"HTTP/1.1 408")
    assert not caplog.records


async def test_a_long_body_may_take_long(autojump_clock: MockClock) -> None:
    """It comes at more than the least rate."""
    size = 1_000_000
    pieces = repeat((4.0, b"x" * 5000), size // 5000)
    peer = Peer((0, post(b"/read", b"Content-Length: %d" % size)), more=pieces)
    await serve(peer)
    assert b"/read 1000000" in peer.received


async def test_a_silent_websocket_is_asked_and_then_ended(autojump_clock: MockClock) -> None:
    peer = Peer((0, handshake(b"/")))
    app = await serve(peer)
    assert peer.left_at == PING_INTERVAL + STALLED_TIME
    assert peer.received.endswith(PING)
    assert app.events[-1] == {"type": "websocket.disconnect", "code": 1006}


async def test_a_websocket_whose_peer_answers_stays(autojump_clock: MockClock) -> None:
    peer = Peer((0, handshake(b"/")), more=repeat((1.5 * PING_INTERVAL, PONG), 100))
    await serve(peer)
    assert peer.left_at == 150 * PING_INTERVAL + PING_INTERVAL + STALLED_TIME
    assert peer.received.count(PING) == 101


class FarAway(Peer):
    """At the end of a way that holds `holds` bytes and carries `rate` a second; it answers each ping that arrives."""

    def __init__(self, holds: int, rate: int, *pieces: tuple[float, bytes]) -> None:
        super().__init__(*pieces)
        self._holds = holds
        self._rate = rate
        self._clear_at = 0.0  # when all that was sent has arrived
        self._pongs, self._arrived = trio.open_memory_channel[float](inf)
        self._pong_at: float | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._clear_at = max(self._clear_at, trio.current_time()) + len(data) / self._rate
        if data == PING:
            self._pongs.send_nowait(self._clear_at)
        await trio.sleep_until(self._clear_at - self._holds / self._rate)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if handshake := next(self._pieces, None):
            return handshake[1]
        self._pong_at = self._pong_at or await self._arrived.receive()
        await trio.sleep_until(self._pong_at)
        self._pong_at = None
        return PONG


@pytest.mark.parametrize(("holds", "rate", "messages"), [(4 * 2**20, 75_000, 64), (256 * 2**10, 5_000, 100)])
async def test_a_websocket_may_take_as_slowly_as_http(
    holds: int, rate: int, messages: int, autojump_clock: MockClock
) -> None:
    """Although pongs come late: the pings are on the way behind megabytes, which nothing may follow."""
    peer = FarAway(holds, rate, (0, handshake(b"/send%d" % messages)))
    with trio.move_on_after(messages * 65536 / rate + 10 * STALLED_TIME) as scope:
        await serve(peer)
    assert scope.cancelled_caught


async def test_a_peer_that_takes_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    app = await serve(Peer((0, GET), takes=STALLED_TIME + 1))
    assert isinstance(app.failure, PeerGone)
    assert trio.current_time() == STALLED_TIME


async def test_a_peer_that_takes_slowly_is_not_cut_off(autojump_clock: MockClock) -> None:
    peer = Peer((0, GET), (0, b""), takes=STALLED_TIME - 1)
    await serve(peer)
    assert b"/a 0" in peer.received


@pytest.mark.parametrize(
    ("last", "code"),
    [(closing(4001), 4001), (b"\x88\x80\0\0\0\0", 1005), (b"", 1006), (b"\xff" * 9, 1002)],
)
async def test_an_application_is_told_how_a_websocket_ended(last: bytes, code: int, autojump_clock: MockClock) -> None:
    app = await serve(Peer((0, handshake(b"/late")), (1, last)))
    assert app.events[-1] == {"type": "websocket.disconnect", "code": code}
    assert isinstance(app.failure, PeerGone)  # what it sends then is not lost in silence


async def test_a_websocket_that_is_closed_waits_for_the_peers_answer(autojump_clock: MockClock) -> None:
    peer = Peer((0, handshake(b"/bye")), (1, closing(4000)))
    await serve(peer)
    assert peer.received.endswith(b"\x88\x02" + struct.pack("!H", 4000))
    assert peer.left_at == 1


async def test_the_answer_to_a_close_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    peer = Peer((0, handshake(b"/bye")))
    await serve(peer)
    assert peer.left_at == LINGER


FLOOD = 50_000_000  # bytes, of which only little may be held


def flood(piece: bytes) -> Pieces:
    return repeat((0.0, piece), FLOOD // len(piece))


def message(size: int, first: int) -> bytes:
    return bytes([first]) + struct.pack("!BH", 0xFE, size) + bytes(4 + size)


@pytest.mark.parametrize(
    "peer",
    [
        Peer(more=flood(b"A: " + b"a" * 5000)),
        Peer((0, GET[:-2]), more=flood(b"A: " + b"a" * 5000)),
        Peer((0, post(b"/deaf", b"Transfer-Encoding: chunked")), more=flood(b"1000\r\n" + b"x" * 4096 + b"\r\n")),
        Peer((0, post(b"/read", b"Transfer-Encoding: chunked")), more=flood(b"1000\r\n" + b"x" * 4096 + b"\r\n")),
        Peer((0, post(b"/read", b"Transfer-Encoding: chunked") + b"5;"), more=flood(b"x" * 4096)),
        Peer((0, post(b"/read", b"Transfer-Encoding: chunked") + b"0\r\n"), more=flood(b"A: b\r\n" * 1000)),
        Peer((0, GET.replace(b"/a", b"/deaf")), more=flood(GET * 100)),
        Peer((0, handshake(b"/deaf")), more=flood(message(60_000, 0x82))),
        Peer((0, handshake(b"/deaf")), more=flood(message(60_000, 0x02))),
        Peer(
            (
                0,
                handshake(b"/"),
            ),
            (0, message(60_000, 0x02)),
            more=flood(message(60_000, 0x00)),
        ),
        Peer(
            (
                0,
                handshake(b"/"),
            ),
            (0, message(60_000, 0x01)),
            more=flood(message(60_000, 0x00)),
        ),
        Peer((0, handshake(b"/")), (0, closing(1000)), more=flood(message(60_000, 0x82))),
        Peer((0, handshake(b"/")), (0, b"\xff" * 9), more=flood(message(60_000, 0x82))),
        Peer((0, handshake(b"/")), more=flood(b"\x89\xfd" + bytes(129)), takes=inf),
        Peer((0, handshake(b"/") + b"x" * 70_000), more=flood(message(60_000, 0x82))),
    ],
    ids=[
        "headers",
        "a head",
        "a body that is not read",
        "a body",
        "a chunk's extension",
        "trailers",
        "requests ahead",
        "messages that are not read",
        "fragments that are not read",
        "fragments",
        "fragments of a text",
        "frames after a close",
        "frames after nonsense",
        "pings whose answers are not taken",
        "frames ahead",
    ],
)
async def test_a_flood_is_not_held(peer: Peer, autojump_clock: MockClock) -> None:
    tracemalloc.start()
    try:
        with trio.move_on_after(3600):
            await serve(peer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


class Broken(Peer):
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise RuntimeError("swordfish")


async def test_a_bug_ends_one_connection_and_is_told_without_what_it_says(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """It may quote what the peer has sent."""
    await serve(Broken())
    assert "RuntimeError at test_serving_streams.py:" in caplog.text
    assert "swordfish" not in caplog.text
