"""Streams a file as an HTTP response, whole or by range."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Protocol

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from worker.ports import Ports

READ_SIZE = 256 * 1024
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Content(Protocol):
    """What the headers say of the bytes."""

    @property
    def content_type(self) -> str:
        """`Content-Type`."""

    @property
    def content_encoding(self) -> str | None:
        """`Content-Encoding`."""

    @property
    def length(self) -> int:
        """Bytes in the file."""

    @property
    def sha256(self) -> str:
        """Of the bytes; it tells one upload from another."""


class BlobResponse(Response):
    """Streams a file, or one range of it, without ever holding more than a piece."""

    def __init__(self, ports: Ports, content: Content, path: Path, request: Request) -> None:
        self._ports = ports
        self._path = path
        self._head = request.method == "HEAD"
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{content.sha256}"', "Content-Type": content.content_type}
        if content.content_encoding:
            headers["Content-Encoding"] = content.content_encoding
        wanted = _range(request.headers.get("range"), content.length)
        status = 200
        if wanted is None:
            self._start, self._length = 0, content.length
        elif wanted:
            status, self._start, self._length = 206, wanted.start, len(wanted)
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{content.length}"
        else:
            status, self._start, self._length = 416, 0, 0
            headers["Content-Range"] = f"bytes */{content.length}"
        headers["Content-Length"] = str(self._length)
        super().__init__(status_code=status, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # ASGI
        """Send the headers and the bytes."""
        file = await self._ports.run_sync(lambda: self._path.open("rb"))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if not self._head:
                await self._send_pieces(file, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            with trio.CancelScope(shield=True):
                await self._ports.run_sync(file.close)

    async def _send_pieces(self, file: BinaryIO, send: Send) -> None:
        rest = self._length
        await self._ports.run_sync(file.seek, self._start)
        while rest:
            piece = await self._ports.run_sync(file.read, min(READ_SIZE, rest))
            if not piece:
                raise OSError(f"{self._path.name} is shorter than it was")
            rest -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})


def _range(header: str | None, length: int) -> range | None:
    """The bytes that a `Range` header asks for; None for all of them; empty where there are none of these."""
    match = RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(0, length - int(match[2])), length)
    last = min(int(match[2]), length - 1) if match[2] else length - 1
    return range(int(match[1]), last + 1)
