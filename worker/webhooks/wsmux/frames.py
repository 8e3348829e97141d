"""The wire: one binary websocket message is one frame (taskcluster websocktunnel, wsmux).

[type u8][stream id u32 little-endian][payload]

0 DAT  bytes of the stream          2 ACK  u32 little-endian: so many more bytes may be sent
1 SYN  empty: opens the stream      3 FIN  empty: no more bytes from here
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_HEADER = struct.Struct("<BI")
_ACK = struct.Struct("<BII")
_AMOUNT = struct.Struct("<I")

HEADER: Final = _HEADER.size
MAX_U32: Final = 2**32 - 1
CLOSE_CODE: Final = 1008  # RFC 6455, 7.4.1: a message that violates the policy
DAT, SYN, ACK, FIN = range(4)


class ProtocolError(Exception):
    """The peer broke the protocol: the websocket is to be closed with `CLOSE_CODE`. The message says what was wrong."""


@dataclass(frozen=True, slots=True)
class Dat:
    """Bytes of a stream."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Syn:
    """Opens a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Accepts a stream, and later says what was consumed: the receiver of this may send `amount` more bytes."""

    stream_id: int
    amount: int


@dataclass(frozen=True, slots=True)
class Fin:
    """The sender sends no more on this stream."""

    stream_id: int


Frame = Dat | Syn | Ack | Fin


def encode(frame: Frame) -> bytes:
    """The frame as a binary websocket message."""
    match frame:
        case Dat(stream_id, data):
            return _HEADER.pack(DAT, stream_id) + data
        case Ack(stream_id, amount):
            return _ACK.pack(ACK, stream_id, amount)
        case Syn(stream_id):
            return _HEADER.pack(SYN, stream_id)
        case Fin(stream_id):
            return _HEADER.pack(FIN, stream_id)


def decode(message: bytes | str, max_frame: int) -> Frame:
    """The frame in a websocket message; a text message comes as str. Raises `ProtocolError`."""
    if isinstance(message, str):
        raise ProtocolError("a text message, where frames are binary")
    if len(message) > max_frame:
        raise ProtocolError(f"a frame of {len(message)} bytes, where {max_frame} are the limit")
    if len(message) < HEADER:
        raise ProtocolError(f"a frame of {len(message)} bytes, which is less than its header of {HEADER}")
    kind, stream_id = _HEADER.unpack_from(message)
    if kind == DAT:
        return Dat(stream_id, message[HEADER:])
    if kind > FIN:
        raise ProtocolError(f"a frame of the unknown type {kind}")
    expected = _AMOUNT.size if kind == ACK else 0
    if len(message) - HEADER != expected:
        raise ProtocolError(f"a frame of type {kind} with {len(message) - HEADER} bytes of payload, not {expected}")
    if kind == ACK:
        return Ack(stream_id, _AMOUNT.unpack_from(message, HEADER)[0])
    return Syn(stream_id) if kind == SYN else Fin(stream_id)


def describe(beginning: bytes, size: int) -> str:
    """A frame in a few words, for a log; `beginning` is what `encode` gave, or its first bytes, `size` its length."""
    if len(beginning) < HEADER or beginning[0] > FIN:
        return f"malformed, {size} bytes"
    kind, stream_id = _HEADER.unpack_from(beginning)
    name = ("DAT", "SYN", "ACK", "FIN")[kind]
    if kind == ACK and size == _ACK.size:
        return f"{name} {stream_id}: {_AMOUNT.unpack_from(beginning, HEADER)[0]}"
    return f"{name} {stream_id}" + (f", {size - HEADER} bytes" if size > HEADER else "")
