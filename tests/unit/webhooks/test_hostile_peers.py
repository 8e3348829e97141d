"""Peers that break the rules of HTTP/1.1 and of websockets, over real sockets, while others look on.

Whatever a peer does: the others' bytes are whole, fresh requests are answered, nothing of the peer remains, and the
server stops in time.
"""

from __future__ import annotations

import logging
import struct
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hostile_world import Do, Step, Until, count_tasks, frame, opened

from worker.testing.certificates import write_certificate

# Short, since many peers are dealt with by waiting; yet long enough for viewers on a machine with much to do.
LIMITS = {
    "headerTime": 1,
    "idleTime": 1,
    "pingInterval": 1,
    "stalledTime": 1,
    "headers": "16 KiB",
    "requestBody": "100 KB",
    "websocketMessage": "64 KB",
}

READ, FIN, RST = Do.READ, Do.FIN, Do.RST
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def get(path: bytes = b"{path}", *headers: bytes, method: bytes = b"GET", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([b"%s %s HTTP/1.1" % (method, path), host, *headers, b"", b""])


def post(*headers: bytes, path: bytes = b"{path}read", body: bytes = b"") -> bytes:
    return get(path, *headers, method=b"POST") + body


def head(line: bytes) -> bytes:
    return line + b"\r\nHost: x\r\n\r\n"


GUESSES = get(b"/guess") * 400
CHUNKED = b"Transfer-Encoding: chunked"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = b"Sec-WebSocket-Version: 13"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")
ECHO = get(b"{path}echo", *UPGRADE, KEY, VERSION)
SHAKEN: list[Step] = [ECHO, Until(b"\r\n\r\n")]


def status(code: int) -> bytes:
    return b"HTTP/1.1 %d " % code


def closed(code: int) -> bytes:
    """The frame by which a server closes."""
    return b"\x88\x02" + struct.pack("!H", code)


@dataclass(frozen=True)
class Peer:
    """What a peer does, and something that it must get for it. Then it reads to the end unless it was rude."""

    script: list[Step]
    gets: bytes = b""
    reads: bool = field(default=True)


HTTP = {
    "binary garbage": Peer([b"\x00\xff\x00\xff\r\n\r\n"], status(400)),
    "empty lines": Peer([b"\r\n" * 10_000], status(400)),
    "no host": Peer([b"GET {path} HTTP/1.1\r\n\r\n"], status(400)),
    "two hosts": Peer([get(b"{path}", b"Host: y")], status(400)),
    "method that is no token": Peer([head(b"G\x01T {path} HTTP/1.1")], status(400)),
    "method without end": Peer([b"G" * 100_000], status(431)),
    "method that connects": Peer([get(b"x:443", method=b"CONNECT")], status(400)),
    "method that nobody knows": Peer([get(method=b"BREW"), FIN], b"hello"),
    "no version": Peer([b"GET {path}\r\n\r\n"], status(400)),
    "version that is to come": Peer([head(b"GET {path} HTTP/9.9")], status(505)),
    "version of two digits": Peer([head(b"GET {path} HTTP/1.10")], status(400)),
    "version of HTTP/2 by its preface": Peer([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense"], status(505)),
    "upgrade to HTTP/2": Peer(
        [get(b"{path}", b"Upgrade: h2c", b"HTTP2-Settings: ?", b"Connection: Upgrade, HTTP2-Settings"), FIN], b"hello"
    ),
    "upgrade to nothing": Peer([get(b"{path}", b"Upgrade: ", b"Connection: Upgrade"), FIN], b"hello"),
    "TLS on a plain port": Peer([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))], status(400)),
    "target that is not ASCII": Peer([head(b"GET {path}\xff HTTP/1.1")], status(400)),
    "target with a space": Peer([head(b"GET {path} x HTTP/1.1")], status(400)),
    "target that is empty": Peer([head(b"GET  HTTP/1.1")], status(400)),
    "target that is a star": Peer([get(b"*", method=b"OPTIONS")], status(400)),
    "target that is a relative path": Peer([get(b"x")], status(400)),
    "target that is a whole URL": Peer([get(b"http://x{path}"), FIN], b"hello"),
    "target that is too long": Peer([get(b"/" + b"a" * 20_000)], status(431)),
    "target that climbs": Peer([get(b"{path}../../../etc/passwd"), FIN], b"hello"),
    "header that is too long": Peer([get(b"{path}", b"A: " + b"a" * 20_000)], status(431)),
    "header that has no end": Peer([get()[:-4] + b"\r\nA: " + b"a" * 200_000], status(431)),
    "headers, many": Peer([get(b"{path}", *[b"A: b"] * 3_000)], status(431)),
    "header without a colon": Peer([get(b"{path}", b"nonsense")], status(400)),
    "header with a space in its name": Peer([get(b"{path}", b"A b: c")], status(400)),
    "header with a space before its colon": Peer([get(b"{path}", b"A : c")], status(400)),
    "header without a name": Peer([get(b"{path}", b": c")], status(400)),
    "header with NUL": Peer([get(b"{path}", b"A: b\0c")], status(400)),
    "header with a bare CR": Peer([get(b"{path}", b"A: b\rc")], status(400)),
    "lines that end with a bare LF": Peer([get().replace(b"\r\n", b"\n"), FIN], b"hello"),
    "lines that end with a bare CR": Peer([get().replace(b"\r\n", b"\r"), FIN], status(400)),
    "header that is folded": Peer([get(b"{path}", b"A: b", b"  c"), FIN], b"hello"),
    "first header that is folded": Peer([b"GET {path} HTTP/1.1\r\n Host: x\r\n\r\n"], status(400)),
    "length that is negative": Peer([post(b"Content-Length: -1")], status(400)),
    "length that is a word": Peer([post(b"Content-Length: many")], status(400)),
    "length with a sign": Peer([post(b"Content-Length: +5", body=b"12345")], status(400)),
    "length of many digits": Peer([post(b"Content-Length: " + b"9" * 5000)], status(400)),
    "lengths that differ": Peer([post(b"Content-Length: 5", b"Content-Length: 6", body=b"123456")], status(400)),
    "lengths in a list": Peer([post(b"Content-Length: 5, 6", body=b"123456")], status(400)),
    "length and chunks": Peer([post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")], status(400)),
    "encoding that nobody knows": Peer([post(b"Transfer-Encoding: gzip")], status(501)),
    "chunked twice": Peer([post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")], status(501)),
    "chunked and more": Peer([post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n")], status(501)),
    "chunk size that is no number": Peer([post(CHUNKED, body=b"zz\r\n")], status(400)),
    "chunk size that is negative": Peer([post(CHUNKED, body=b"-5\r\nhello\r\n")], status(400)),
    "chunk size of many digits": Peer([post(CHUNKED, body=b"f" * 30 + b"\r\n")], status(400)),
    "chunk that is longer than it says": Peer([post(CHUNKED, body=b"3\r\nhello\r\n0\r\n\r\n")], status(400)),
    "chunk extension without end": Peer([post(CHUNKED, body=b"5;" + b"a" * 200_000)], status(431)),
    "trailers without end": Peer([post(CHUNKED, body=b"0\r\n" + b"A: b\r\n" * 40_000)], status(431)),
    "chunks of one byte": Peer([post(CHUNKED, body=b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"), FIN], b"50000 bytes"),
    "body that is too large, as it says": Peer([post(b"Content-Length: 100001")], status(413)),
    "body that is too large, in chunks": Peer(
        [post(CHUNKED, body=b"7530\r\n" + b"x" * 30_000 + b"\r\n" * 9)], status(400)
    ),
    "body that is larger and larger": Peer(
        [post(CHUNKED, body=(b"7530\r\n" + b"x" * 30_000 + b"\r\n") * 9)], status(413)
    ),
    "body of a request that has none": Peer([get(b"{path}", b"Content-Length: 5") + b"12345", FIN], b"hello"),
    "half a body, then FIN": Peer([post(b"Content-Length: 10", body=b"12345"), FIN], status(400)),
    "half a body, then RST": Peer([post(b"Content-Length: 10", body=b"12345"), RST]),
    "half a body, then silence": Peer([post(b"Content-Length: 10", body=b"12345")], status(408)),
    "half a chunk, then FIN": Peer([post(CHUNKED, body=b"5\r\nhel"), FIN], status(400)),
    "an invitation that is not followed": Peer([post(b"Content-Length: 5", b"Expect: 100-continue")], status(408)),
    "an expectation that nobody knows": Peer([get(b"{path}", b"Expect: wonders"), FIN], b"hello"),
    "half a head, then FIN": Peer([get()[:-4], FIN], status(400)),
    "half a head, then RST": Peer([get()[:-4], RST]),
    "half a head, then silence": Peer([get()[:-4]], status(408)),
    "nothing, then FIN": Peer([FIN]),
    "nothing, then RST": Peer([RST]),
    "nothing, then silence": Peer([]),
    "a request, then silence": Peer([get()], b"hello"),
    "a request, then garbage": Peer([get() + b"\0\0\0\0"], b"hello"),
    "a request, then RST": Peer([get(), RST]),
    "a request without keep-alive, then garbage": Peer([get(b"{path}", b"Connection: close") + b"\0\0"], b"hello"),
    "requests ahead": Peer([get() * 100, FIN], b"hello"),
    "requests ahead of a long answer": Peer([get(b"{path}wait"), Until(b"wait"), get() * 1000], b"wait"),
    "requests ahead of a long answer, then RST": Peer([get(b"{path}wait") + get() * 10, RST]),
    "FIN in the middle of a long answer": Peer([get(b"{path}wait"), Until(b"wait"), FIN], b"wait"),
    "RST in the middle of a long answer": Peer([get(b"{path}wait"), Until(b"wait"), RST]),
    "RST in the middle of a flood": Peer([get(b"{path}flood"), Until(b"xxx"), RST]),
    "a flood that is not read": Peer([get(b"{path}flood")], reads=False),
    "answers that are not read": Peer([get() * 100_000], reads=False),
    "answers to guesses that are not read": Peer([GUESSES], reads=False),
    "secrets that are guessed": Peer([get(b"/guess/"), FIN], status(404)),
}

WEBSOCKET = {
    "no version": Peer([get(b"{path}echo", *UPGRADE, KEY)], status(426)),
    "version that is old": Peer([get(b"{path}echo", *UPGRADE, KEY, b"Sec-WebSocket-Version: 8")], status(426)),
    "version that is no number": Peer([get(b"{path}echo", *UPGRADE, KEY, b"Sec-WebSocket-Version: x")], status(426)),
    "no key": Peer([get(b"{path}echo", *UPGRADE, VERSION)], status(400)),
    "two keys": Peer([get(b"{path}echo", *UPGRADE, VERSION, KEY, KEY)], status(400)),
    "key that is too short": Peer([get(b"{path}echo", *UPGRADE, VERSION, b"Sec-WebSocket-Key: YWJj")], status(400)),
    "key that is not base64": Peer([get(b"{path}echo", *UPGRADE, VERSION, b"Sec-WebSocket-Key: \xff?")], status(400)),
    "subprotocol that is not ASCII": Peer(
        [get(b"{path}echo", *UPGRADE, VERSION, KEY, b"Sec-WebSocket-Protocol: \xff")], status(400)
    ),
    "handshake with a body": Peer(
        [get(b"{path}echo", *UPGRADE, VERSION, KEY, b"Content-Length: 2") + b"ab"], status(400)
    ),
    "handshake by HTTP/1.0": Peer([ECHO.replace(b"HTTP/1.1", b"HTTP/1.0")], status(400)),
    "handshake by POST": Peer([ECHO.replace(b"GET", b"POST"), FIN], b"hello"),
    "handshake to a secret that is guessed": Peer([get(b"/guess", *UPGRADE, VERSION, KEY)], status(404)),
    "handshake, then RST": Peer([ECHO, RST]),
    "handshake, then FIN": Peer([ECHO, FIN]),
    "extensions that are nonsense": Peer(
        [
            get(b"{path}echo", *UPGRADE, KEY, VERSION, b"Sec-WebSocket-Extensions: permessage-deflate; =;;,,="),
            Until(b"\r\n\r\n"),
            FIN,
        ],
        status(101),
    ),
    "frames before the answer": Peer([ECHO + frame(TEXT, b"hi"), Until(b"\x81\x02hi"), FIN], status(101)),
    "many frames before the answer": Peer([ECHO + frame(BINARY, b"x" * 100) * 10_000, FIN]),
    "bytes that are no frame": Peer([*SHAKEN, b"\xff" * 64], closed(1002)),
    "frame without mask": Peer([*SHAKEN, frame(TEXT, b"hi", masked=False)], closed(1002)),
    "frame with reserved bit 1": Peer([*SHAKEN, frame(TEXT, b"hi", rsv=4)], closed(1002)),
    "frame with reserved bit 2": Peer([*SHAKEN, frame(TEXT, b"hi", rsv=2)], closed(1002)),
    "frame with reserved bit 3": Peer([*SHAKEN, frame(TEXT, b"hi", rsv=1)], closed(1002)),
    "frame of a kind that is reserved": Peer([*SHAKEN, frame(0x3, b"hi")], closed(1002)),
    "control frame of a kind that is reserved": Peer([*SHAKEN, frame(0xB)], closed(1002)),
    "ping in fragments": Peer([*SHAKEN, frame(PING, b"hi", fin=False)], closed(1002)),
    "ping that is too long": Peer([*SHAKEN, frame(PING, b"x" * 126)], closed(1002)),
    "close that is too long": Peer([*SHAKEN, frame(CLOSE, b"\x03\xe8" + b"x" * 124)], closed(1002)),
    "length in more bytes than needed": Peer([*SHAKEN, b"\x82\xfe\x00\x05\0\0\0\0hello"], closed(1002)),
    "length of 64 bits": Peer([*SHAKEN, b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0hello"], closed(1002)),
    "message that is too large": Peer([*SHAKEN, frame(BINARY, b"x" * 70_000)], closed(1009)),
    "message that goes on when it is too large": Peer([*SHAKEN, frame(BINARY, b"x" * 5_000_000)], closed(1009)),
    "text that is too large": Peer([*SHAKEN, frame(TEXT, b"x" * 70_000)], closed(1009)),
    "fragments without end": Peer(
        [*SHAKEN, frame(BINARY, fin=False), frame(CONTINUATION, b"x" * 999, fin=False) * 99], closed(1009)
    ),
    "fragments that are empty": Peer([*SHAKEN, frame(BINARY, fin=False), frame(CONTINUATION, fin=False) * 20_000, FIN]),
    "fragment of nothing": Peer([*SHAKEN, frame(CONTINUATION, b"hi")], closed(1002)),
    "message inside of a message": Peer([*SHAKEN, frame(TEXT, b"hi", fin=False) + frame(TEXT, b"hi")], closed(1002)),
    "text that is not UTF-8": Peer([*SHAKEN, frame(TEXT, b"\xff\xfe")], closed(1007)),
    "text that ends within a character": Peer([*SHAKEN, frame(TEXT, b"\xe2\x82")], closed(1007)),
    "text with a surrogate": Peer([*SHAKEN, frame(TEXT, b"\xed\xa0\x80")], closed(1007)),
    **{
        f"close with code {code}": Peer([*SHAKEN, frame(CLOSE, struct.pack("!H", code))], closed(1002))
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
    },
    "close with one byte": Peer([*SHAKEN, frame(CLOSE, b"\x03")], closed(1002)),
    "close with a reason that is not UTF-8": Peer([*SHAKEN, frame(CLOSE, b"\x03\xe8\xff")], closed(1007)),
    "close without a code": Peer([*SHAKEN, frame(CLOSE)], b"\x88\x00"),
    "close, then data": Peer([*SHAKEN, frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"hi") * 1000], closed(1000)),
    "close twice": Peer([*SHAKEN, frame(CLOSE, b"\x03\xe8") * 2], closed(1000)),
    "close, then RST": Peer([*SHAKEN, frame(CLOSE, b"\x03\xe8"), RST]),
    "pong that nobody asked for": Peer(
        [*SHAKEN, frame(PONG, b"x") * 1000 + frame(TEXT, b"hi"), Until(b"\x81\x02hi"), FIN]
    ),
    "pings, many": Peer([*SHAKEN, frame(PING, b"x" * 125) * 1000, FIN], b"\x8a\x7dx"),
    "pongs that are not read": Peer([*SHAKEN, frame(PING, b"x" * 125) * 100_000], reads=False),
    "a flood that is not read": Peer([get(b"{path}flood", *UPGRADE, KEY, VERSION)], reads=False),
    "a flood, then RST": Peer([get(b"{path}flood", *UPGRADE, KEY, VERSION), Until(b"xxx"), RST]),
    "echoes that are not read": Peer([*SHAKEN, frame(BINARY, b"x" * 50_000) * 1000], reads=False),
    "half a frame, then FIN": Peer([*SHAKEN, frame(TEXT, b"hello")[:-2], FIN]),
    "half a frame, then RST": Peer([*SHAKEN, frame(TEXT, b"hello")[:-2], RST]),
    "half a frame, then silence": Peer([*SHAKEN, frame(TEXT, b"hello")[:-2]], frame(PING, masked=False)),
    "silence": Peer(SHAKEN, frame(PING, masked=False)),
    "FIN": Peer([*SHAKEN, FIN]),
    "RST": Peer([*SHAKEN, RST]),
}

PEERS = {f"http: {name}": peer for name, peer in HTTP.items()} | {f"ws: {name}": p for name, p in WEBSOCKET.items()}


def test_there_are_enough_of_them() -> None:
    assert len(PEERS) >= 60


# By waiting, by reading nothing, and each other way to end: these are where TLS makes a difference.
STUCK = [name for name, peer in PEERS.items() if not peer.reads] + [
    "http: nothing, then silence",
    "http: half a head, then silence",
    "http: half a body, then silence",
    "http: requests ahead of a long answer",
    "ws: half a frame, then silence",
    "ws: many frames before the answer",
]
WITH_TLS = [
    *STUCK,
    "http: binary garbage",
    "http: body that is larger and larger",
    "http: RST in the middle of a flood",
    "ws: bytes that are no frame",
    "ws: message that goes on when it is too large",
    "ws: close, then data",
    "ws: FIN",
    "ws: RST",
]
CASES = [pytest.param(name, False, id=name) for name in PEERS] + [
    pytest.param(name, True, id=f"{name}, by TLS") for name in WITH_TLS
]
STUCK_CASES = [case for case in CASES if case.values[0] in STUCK]


@pytest.mark.parametrize(("name", "by_tls"), CASES)
async def test_a_peer_touches_nobody_but_itself(
    name: str, by_tls: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.access")
    peer = PEERS[name]
    async with opened(write_certificate(tmp_path) if by_tls else None, **LIMITS) as world:
        tasks = count_tasks()
        stream = await world.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.viewers.keep_looking)
            script = [*peer.script, READ] if peer.reads else peer.script
            received = await world.play(stream, script)
            await world.check_alive()
            world.viewers.stop()
            if not peer.reads:
                await world.wait_gone(tasks + 1)  # and the one that looks
        await trio.aclose_forcefully(stream)
        assert peer.gets in received
        await world.wait_gone(tasks)
        assert world.viewers.rounds > 1
    # Nor does it fill the log.
    assert {record.name for record in caplog.records} <= {"worker.access"}
    assert len(caplog.records) < 1500


@pytest.mark.parametrize(("name", "by_tls"), STUCK_CASES)
async def test_nobody_holds_up_the_end(name: str, by_tls: bool, tmp_path: Path) -> None:
    """`opened` says how long it may take."""
    async with opened(write_certificate(tmp_path) if by_tls else None) as world:
        stream = await world.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.play, stream, PEERS[name].script)
            await world.wait_stuck()
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("sockets", [300, pytest.param(2000, marks=pytest.mark.full)])
async def test_idle_sockets_hold_up_neither_viewers_nor_the_end(sockets: int) -> None:
    """More than there are places for. Those who look already are not touched, and others get in."""
    async with opened(connections=sockets // 3) as world, AsyncExitStack() as idle:
        for _ in range(sockets):
            await idle.enter_async_context(await world.connect())
        await world.viewers.look()
        await world.check_alive()
        await world.viewers.look()


async def test_peers_without_a_secret_that_do_not_read_keep_nobody_out() -> None:
    """As many as there are places beside the viewers', each with requests that can be answered at once."""
    places = 20
    async with opened(connections=places + 2) as world, AsyncExitStack() as peers:
        for _ in range(places):
            peer = await peers.enter_async_context(await world.connect())
            await peer.send_all(GUESSES)
        await world.wait_stuck()
        await world.check_alive()
