"""Bytes of artifacts, as files: written and read through presigned URLs, streamed both ways.

A URL names a blob, holds an expiry and is signed with a key of the queue's own, as an object store does it. An upload
is written to a file of its own and takes its place in one transaction: readers of an earlier upload keep what they
have, and a queue that is killed leaves either upload whole.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode

import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from worker.embedded.store import Store, Transaction
from worker.embedded.streaming import BlobResponse
from worker.ports import Ports

URL_LIFETIME = timedelta(minutes=45)
WRITE_SIZE = 1024 * 1024
PATH = re.compile(r"/blobs/([A-Za-z0-9_-]+)")
# What a task has made is shown to people from the address that the queue's own pages have. So it gets no script and no
# origin there, and no page takes it for a part of itself. Whoever knows the URL may read it.
HEADERS = {
    "Content-Security-Policy": "sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Access-Control-Allow-Origin": "*",
}
DESTINATIONS = frozenset({None, "document", "empty", "image", "audio", "video"})


@dataclass(frozen=True)
class Blob:
    """Bytes that were uploaded, and the headers that they were uploaded with. `file` is a name in the folder."""

    blob_id: str
    file: str
    content_type: str
    content_encoding: str | None
    length: int
    sha256: str
    sha512: str


class Blobs:
    """The folder of blobs, their URLs, and what answers these.

    `sign_with` is asked for the key when one is needed: the store that keeps it is opened later.
    """

    def __init__(self, ports: Ports, store: Store, root_url: Callable[[], str], sign_with: Callable[[], str]) -> None:
        self._ports = ports
        self._store = store
        self._root_url = root_url
        self._sign_with = sign_with
        self._folder: Path | None = None
        self._temporary = False

    async def open(self, data: Path | None) -> None:
        """Make the folder, in `data` or a temporary one, and remove what no blob needs, such as broken uploads."""
        known = await self._store.transact(lambda tx: {row["file"] for row in tx.all("SELECT file FROM blobs")})
        self._temporary = data is None
        self._folder = await self._ports.run_sync(_open_folder, data, known)

    async def close(self) -> None:
        """Remove the folder if it was a temporary one."""
        folder, self._folder = self._folder, None
        if folder is not None and self._temporary:
            await self._ports.run_sync(shutil.rmtree, folder)

    def put_url(self, blob_id: str, content_type: str, now: datetime) -> str:
        """A URL that takes one PUT after another of the blob, sent with `content_type`, for 45 minutes."""
        return self._url("PUT", blob_id, now, content_type)

    def get_url(self, blob_id: str, now: datetime) -> str:
        """A URL that gives the blob for 45 minutes; 404 as long as nothing was uploaded."""
        return self._url("GET", blob_id, now, "")

    def _url(self, method: str, blob_id: str, now: datetime, content_type: str) -> str:
        expires = int((now + URL_LIFETIME).timestamp())
        signature = self._signature(method, blob_id, str(expires), content_type)
        return f"{self._root_url()}/blobs/{blob_id}?{urlencode({'expires': expires, 'signature': signature})}"

    def _signature(self, method: str, blob_id: str, expires: str, content_type: str) -> str:
        text = f"{method}\n{blob_id}\n{expires}\n{content_type}"
        return hmac.new(self._sign_with().encode(), text.encode(), hashlib.sha256).hexdigest()

    async def respond(self, request: Request) -> Response | None:
        """The answer to a request for a blob; None for any other path."""
        match = PATH.fullmatch(request.scope["path"])
        if match is None:
            return None
        if request.method not in {"GET", "HEAD", "PUT"}:
            return PlainTextResponse("Method not allowed", 405)
        refusal = self._refuse(request, match[1])
        if refusal is not None:
            return PlainTextResponse(refusal, 403)
        if request.method == "PUT":
            blob = await self._receive(request, match[1])
            return Response(status_code=200, headers={"ETag": f'"{blob.sha256}"'})
        blob_or_none = await self._store.transact(lambda tx: find(tx, match[1]))
        if blob_or_none is None:
            return PlainTextResponse("Nothing was uploaded", 404)
        etag = f'"{blob_or_none.sha256}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag, **HEADERS})
        response = BlobResponse(self._ports, blob_or_none, self.path(blob_or_none.file), request)
        response.headers.update(HEADERS)
        return response

    def _refuse(self, request: Request, blob_id: str) -> str | None:
        method = "PUT" if request.method == "PUT" else "GET"
        content_type = request.headers.get("content-type", "") if method == "PUT" else ""
        expires = request.query_params.get("expires", "")
        expected = self._signature(method, blob_id, expires, content_type)
        if not hmac.compare_digest(expected.encode(), request.query_params.get("signature", "").encode()):
            return "The signature does not match: the URL is good for one method, one name and one content type"
        if not expires.isdecimal() or int(expires) < self._ports.now().timestamp():
            return "Request has expired"
        if request.headers.get("sec-fetch-dest") not in DESTINATIONS:
            return "What a task has made is no part of a page"
        return None

    async def _receive(self, request: Request, blob_id: str) -> Blob:
        upload = await self._ports.run_sync(Upload, self.path(f"{blob_id}.{self._ports.slug()}"))
        try:
            buffered = bytearray()
            async with aclosing(request.stream()) as stream:
                async for part in stream:
                    buffered += part
                    if len(buffered) >= WRITE_SIZE:
                        await self._ports.run_sync(upload.write, bytes(buffered))
                        buffered.clear()
            await self._ports.run_sync(upload.write, bytes(buffered))
            await self._ports.run_sync(upload.finish)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._ports.run_sync(upload.discard)
            raise
        headers = request.headers
        return await self.keep(upload, blob_id, headers.get("content-type", ""), headers.get("content-encoding"))

    async def write(self, blob_id: str, content: bytes, content_type: str) -> Blob:
        """Make `content`, which is small, the blob's content."""

        def work() -> Upload:
            upload = Upload(self.path(f"{blob_id}.{self._ports.slug()}"))
            upload.write(content)
            upload.finish()
            return upload

        return await self.keep(await self._ports.run_sync(work), blob_id, content_type, None)

    async def keep(self, upload: Upload, blob_id: str, content_type: str, content_encoding: str | None) -> Blob:
        """Make a finished upload the blob's content."""
        blob = Blob(
            blob_id=blob_id,
            file=upload.path.name,
            content_type=content_type,
            content_encoding=content_encoding,
            length=upload.length,
            sha256=upload.sha256.hexdigest(),
            sha512=upload.sha512.hexdigest(),
        )
        # An upload that arrived is kept, whoever waits for the answer.
        with trio.CancelScope(shield=True):
            replaced = await self._store.transact(lambda tx: _replace(tx, blob))
            await self.remove(replaced)
        return blob

    async def remove(self, files: list[str]) -> None:
        """Remove files that no blob needs any more."""
        for name in files:
            path = self.path(name)
            await self._ports.run_sync(lambda path=path: path.unlink(missing_ok=True))

    def path(self, name: str) -> Path:
        """Where the file `name` is."""
        assert self._folder is not None, "the folder is open as long as the store is"
        return self._folder / name


@dataclass
class Upload:
    """A file that is being written; all methods block."""

    path: Path
    length: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    sha512: hashlib._Hash = field(default_factory=hashlib.sha512)

    def __post_init__(self) -> None:
        # Beside the whole name: one blob may be uploaded twice at once, when a first attempt hangs.
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._file: BinaryIO = self._partial.open("xb")

    def write(self, content: bytes) -> None:
        """Append `content`."""
        self._file.write(content)
        self.length += len(content)
        self.sha256.update(content)
        self.sha512.update(content)

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._partial.rename(self.path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def find(tx: Transaction, blob_id: str) -> Blob | None:
    """The blob, if something was uploaded."""
    row = tx.one("SELECT * FROM blobs WHERE blob_id = ?", blob_id)
    return None if row is None else Blob(**dict(row))


def blob_id_of(object_name: str) -> str:
    """The blob that holds an object's data: who makes the artifact and who uploads must find the same one."""
    return hashlib.sha256(object_name.encode()).hexdigest()


def forget(tx: Transaction, blob_id: str) -> list[str]:
    """Remove the blob, and return the files to be removed after the commit."""
    blob = find(tx, blob_id)
    tx.run("DELETE FROM blobs WHERE blob_id = ?", blob_id)
    return [] if blob is None else [blob.file]


def _replace(tx: Transaction, blob: Blob) -> list[str]:
    before = find(tx, blob.blob_id)
    tx.run(
        "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)",
        blob.blob_id,
        blob.file,
        blob.content_type,
        blob.content_encoding,
        blob.length,
        blob.sha256,
        blob.sha512,
    )
    return [] if before is None else [before.file]


def _open_folder(data: Path | None, known: set[str]) -> Path:
    if data is None:
        return Path(tempfile.mkdtemp(prefix="embedded-queue-"))
    folder = data / "artifacts"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink()
    return folder
