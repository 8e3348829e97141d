"""The operator's own bucket: objects of S3, which the queue knows as references.

    up to `threshold`   PUT ─────────────────────────────────────────▸ reference
    beyond it           create ─▸ parts, several at once ─▸ complete ─▸ reference
                                  each by itself until it is there

The reference comes after the last byte: an artifact that the queue knows can be fetched.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import trio

from plugins.artifacts.bucketconfig import BucketConfig
from plugins.artifacts.s3 import S3, Answer, Refused, base_url_of, checksums, etag, make_client, member
from plugins.artifacts.stores import Store
from worker.http import WrongLength
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import QueueError
from worker.queue.models import ReferenceArtifactRequest
from worker.queue.retry import Transient
from worker.queue.transfer import Content, Digests, NewArtifact, Stored
from worker.queue.wire import format_time

ABORT_LIMIT = 10.0  # seconds until an upload that was given up is being taken back, by a call that `stall` ends

log = logging.getLogger(__name__)


class BucketStore(Store):
    """A bucket. `pieces` bounds what is in memory of all uploads."""

    encodes = True
    announces = False

    def __init__(self, ports: Ports, config: BucketConfig, s3: S3, base_url: str) -> None:
        self._ports = ports
        self._config = config
        self._s3 = s3
        self._base_url = base_url
        self._pieces = trio.CapacityLimiter(config.parts_at_once)

    async def keep(self, artifact: NewArtifact) -> Stored:
        """As the interface says."""
        key = self._key(artifact.key, artifact.name)
        options = self._options(artifact)
        if artifact.content.length <= self._config.threshold:
            stored = await self._put(key, artifact, options)
        else:
            upload = _Multipart(self._ports, self._config, self._s3, self._pieces, key, artifact.content)
            stored = await upload.run(options)
        url = f"{self._base_url}/{quote(key)}"
        request = ReferenceArtifactRequest(content_type=artifact.content_type, expires=artifact.expires, url=url)
        try:
            await artifact.queue.create_artifact(artifact.key, artifact.name, request)
        except QueueError as error:
            # Removing it would need one more permission, and the reference may be there though its answer was lost.
            log.warning(
                "%s: %s has no reference and stays in the bucket as %s: %s", artifact.key, artifact.name, key, error
            )
            raise
        log.info("%s: %s is stored: %d bytes, SHA-256 %s", artifact.key, artifact.name, stored.length, stored.sha256)
        return stored

    def _key(self, key: RunKey, name: str) -> str:
        """Whoever may not read a private artifact from the queue must not be able to guess where it is."""
        guard = "" if name.startswith("public/") else f"{self._ports.token(16)}/"
        return f"{self._config.prefix}{key.task_id}/{key.run_id}/{guard}{name}"

    def _options(self, artifact: NewArtifact) -> dict[str, Any]:
        config = self._config
        options = {
            "ContentType": artifact.content_type,
            "ContentEncoding": artifact.content.encoding,
            "StorageClass": config.storage_class,
            "ServerSideEncryption": config.server_side_encryption,
            "SSEKMSKeyId": config.kms_key_id,
            "Metadata": {"task-id": artifact.key.task_id, "expires": format_time(artifact.expires)},
        }
        return {name: value for name, value in options.items() if value is not None}

    async def _put(self, key: str, artifact: NewArtifact, options: dict[str, Any]) -> Stored:
        async with self._piece(), artifact.content.open() as source:
            pieces = _Pieces(source, artifact.content.length, artifact.content.length or 1)
            data = await anext(pieces, bytearray())
            await pieces.end()
            digests = Digests(self._ports, "sha256")
            await digests.update(data)
            sums = await self._ports.run_sync(checksums, data, self._config.checksum)
            options["Metadata"]["sha256"] = digests.stored(len(data)).sha256
            method = "put_object"
            etag(method, await self._s3.call(method, data, Key=key, **options, **sums), sums)
        return digests.stored(len(data))

    @asynccontextmanager
    async def _piece(self) -> AsyncGenerator[None, None]:
        # The borrower is the call, not the task.
        borrower = object()
        await self._pieces.acquire_on_behalf_of(borrower)
        try:
            yield
        finally:
            self._pieces.release_on_behalf_of(borrower)


class _Pieces(AsyncIterator[bytearray]):
    """The content in pieces of `size` bytes, the last one shorter. Raises `WrongLength` as soon as it is another."""

    def __init__(self, source: AsyncIterable[bytes], length: int, size: int) -> None:
        self._source = aiter(source)
        self._left = length
        self._size = size
        self._over = b""

    async def __anext__(self) -> bytearray:
        wanted = min(self._size, self._left)
        if not wanted:
            raise StopAsyncIteration
        piece = bytearray(self._over[:wanted])
        self._over = self._over[wanted:]
        while len(piece) < wanted:
            chunk = await anext(self._source, b"")
            if not chunk:
                raise WrongLength(f"{self._left - len(piece)} bytes fewer than announced")
            missing = wanted - len(piece)
            piece += chunk[:missing]
            self._over = chunk[missing:]
        self._left -= wanted
        return piece

    async def end(self) -> None:
        """See that nothing follows."""
        if self._over or await anext(self._source, b""):
            raise WrongLength("more bytes than announced")


class _Multipart:
    """One upload in parts."""

    def __init__(
        self, ports: Ports, config: BucketConfig, s3: S3, pieces: trio.CapacityLimiter, key: str, content: Content
    ) -> None:
        self._ports = ports
        self._config = config
        self._s3 = s3
        self._limiter = pieces
        self._key = key
        self._content = content
        self._digests = Digests(ports, "sha256")
        self._parts: list[dict[str, Any]] = []
        self._failure: Exception | None = None

    async def run(self, options: dict[str, Any]) -> Stored:
        """Upload all of it, or leave nothing."""
        if self._config.checksum == "sha256":
            options = {**options, "ChecksumAlgorithm": "SHA256"}
        method = "create_multipart_upload"
        upload_id = member(method, await self._s3.call(method, Key=self._key, **options), "UploadId")
        try:
            await self._send(upload_id)
            await self._complete(upload_id)
        except BaseException:
            with trio.move_on_after(ABORT_LIMIT, shield=True) as limit:
                await self._abort(upload_id)
            if limit.cancelled_caught:
                self._left(f"no connection was free for {ABORT_LIMIT:.0f} s")
            raise
        return self._digests.stored(self._content.length)

    async def _send(self, upload_id: str) -> None:
        async with trio.open_nursery() as nursery:
            try:
                await self._read(upload_id, nursery)
            except Exception as error:  # noqa: BLE001  # raised below, where no nursery wraps it
                self._fail(error, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _read(self, upload_id: str, nursery: trio.Nursery) -> None:
        """Read one part after the other and send each from a task of `nursery`, as soon as there is room for it."""
        async with self._content.open() as source:
            length = self._content.length
            pieces = _Pieces(source, length, self._config.part_size_for(length))
            for number in range(1, -(-length // self._config.part_size_for(length)) + 1):
                borrower = object()
                await self._limiter.acquire_on_behalf_of(borrower)
                try:
                    data = await anext(pieces)
                    await self._digests.update(data)
                except BaseException:
                    self._limiter.release_on_behalf_of(borrower)
                    raise
                nursery.start_soon(self._part, upload_id, number, data, borrower, nursery.cancel_scope)
            await pieces.end()

    def _fail(self, error: Exception, scope: trio.CancelScope) -> None:
        self._failure = self._failure or error
        scope.cancel()

    async def _part(
        self, upload_id: str, number: int, data: bytearray, borrower: object, scope: trio.CancelScope
    ) -> None:
        try:
            sums = await self._ports.run_sync(checksums, data, self._config.checksum)
            method = "upload_part"
            answer = await self._s3.call(method, data, Key=self._key, UploadId=upload_id, PartNumber=number, **sums)
            part = {"PartNumber": number, "ETag": etag(method, answer, sums), **sums}
            part.pop("ContentMD5", None)
            self._parts.append(part)
        except QueueError as error:
            self._fail(error, scope)
        finally:
            self._limiter.release_on_behalf_of(borrower)

    async def _complete(self, upload_id: str) -> None:
        method, parts = "complete_multipart_upload", sorted(self._parts, key=lambda part: int(part["PartNumber"]))

        async def attempt(number: int) -> Answer | Transient:
            # What an attempt did whose answer was lost cannot be done again. Nobody else writes to this key.
            if number > 1 and (there := await self._find()):
                return there
            try:
                return await self._s3.attempt(
                    method, Key=self._key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except Refused as error:
                if error.code != "NoSuchUpload":
                    raise
                refusal = error
            # The attempt before may have been slower than our look.
            if there := await self._find():
                return there
            raise refusal

        await self._s3.repeated(method, self._key, attempt)

    async def _find(self) -> Answer | Transient | None:
        """The object, if all of it is there; a `Transient` where that is not known."""
        method = "head_object"
        try:
            answer = await self._s3.attempt(method, Key=self._key)
        except Refused:
            return None
        if isinstance(answer, Transient):
            return answer
        return answer if member(method, answer, "ContentLength") == self._content.length else None

    async def _abort(self, upload_id: str) -> None:
        """One attempt: whoever is cancelled waits for it, and the bucket's rules remove what is left."""
        try:
            answer = await self._s3.attempt("abort_multipart_upload", Key=self._key, UploadId=upload_id)
        except QueueError as error:
            self._left(str(error))
            return
        if isinstance(answer, Transient):
            self._left(answer.reason)

    def _left(self, reason: str) -> None:
        log.warning("parts of %s may be left in the bucket: %s", self._key, reason)


@asynccontextmanager
async def open_bucket(ports: Ports, config: BucketConfig) -> AsyncGenerator[BucketStore, None]:
    """The store of a bucket, for as long as the block lasts."""
    client = await ports.run_sync(make_client, config)
    try:
        base_url = config.public_url
        if base_url is None:
            base_url = await ports.run_sync(base_url_of, client, config.bucket)
        yield BucketStore(ports, config, S3(ports, client, config.bucket), base_url)
    finally:
        client.close()
