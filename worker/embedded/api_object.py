"""The object service, as far as artifacts need it: uploading by either method, and downloading."""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from worker.embedded import blobs
from worker.embedded.blobs import Blobs
from worker.embedded.call import Call
from worker.embedded.errors import InputError, NoAcceptableMethod, RequestConflict, ResourceNotFound
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import to_wire
from worker.queue.models import CreateUploadRequest, DownloadObjectRequest, FinishUploadRequest, ProposedUploadMethods

MAX_INLINE = 8192
"""Bytes of data that may come with createUpload itself."""


@dataclass(frozen=True)
class ObjectMethods:
    """The methods, on a store and its blobs."""

    store: Store
    blobs: Blobs

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        upload, download = "object:upload:<projectId>:<name>", "object:download:<name>"
        table: list[tuple[str, Expression, Handler]] = [
            ("createUpload", upload, self.create_upload),
            ("finishUpload", upload, self.finish_upload),
            ("startDownload", download, self.start_download),
            ("object", download, self.object),
            ("download", download, self.download),
        ]
        return [Endpoint("object", *row) for row in table]

    async def create_upload(self, call: Call) -> Reply:
        """Agree on a method of upload; small data may come along."""
        request = call.read(CreateUploadRequest)
        call.authorize(projectId=request.project_id)
        name, expires = call.params["name"], to_wire(request.expires)
        proposed = request.proposed_upload_methods
        content_type = _content_type(proposed)
        new = (name, request.project_id, request.upload_id, expires)

        def work(tx: Transaction) -> str:
            row = _find(tx, name)
            if row is None:
                blob_id = blobs.blob_id_of(name)
                hashes = json.dumps(_hashes(call.document))
                tx.run("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, 0)", *new, hashes, blob_id, content_type)
                return blob_id
            if new != (name, row["project_id"], row["upload_id"], row["expires"]) or row["finished"]:
                raise RequestConflict(f"Object {name!r} was already created by another upload, or is finished")
            hashes = json.dumps(_merged(json.loads(row["hashes"]), _hashes(call.document)))
            tx.run("UPDATE objects SET hashes = ?, content_type = ? WHERE name = ?", hashes, content_type, name)
            return str(row["blob_id"])

        inline = _inline_data(proposed)
        blob_id = await self.store.transact(work)
        method: Json = {}
        if inline is not None:
            await self.blobs.write(blob_id, inline, content_type)
            method = {"dataInline": True}
        elif proposed.put_url is not None:
            method = {"putUrl": self._put_url(call, blob_id, content_type, proposed.put_url.content_length)}
        answer = {"projectId": request.project_id, "uploadId": request.upload_id, "expires": expires}
        return Reply({**answer, "uploadMethod": method})

    def _put_url(self, call: Call, blob_id: str, content_type: str, length: int) -> Json:
        return {
            "url": self.blobs.put_url(blob_id, content_type, call.moment),
            "expires": to_wire(call.moment + blobs.URL_LIFETIME),
            "headers": {"Content-Type": content_type, "Content-Length": str(length)},
        }

    async def finish_upload(self, call: Call) -> Reply:
        """Make the object readable and final, if its data are what the hashes say."""
        request = call.read(FinishUploadRequest)
        call.authorize(projectId=request.project_id)
        name = call.params["name"]

        def work(tx: Transaction) -> None:
            row = _get(tx, name, finished=False)
            if (row["project_id"], row["upload_id"]) != (request.project_id, request.upload_id):
                raise RequestConflict(f"Object {name!r} was created by another upload")
            hashes = _merged(json.loads(row["hashes"]), _hashes(call.document))
            blob = blobs.find(tx, row["blob_id"])
            if blob is None:
                raise InputError(f"The data of object {name!r} were not uploaded")
            actual = {"sha256": blob.sha256, "sha512": blob.sha512}
            wrong = sorted(kind for kind, value in hashes.items() if actual.get(kind, value) != value)
            if wrong:
                raise InputError(f"The data of object {name!r} have another {' and '.join(wrong)}")
            tx.run("UPDATE objects SET finished = 1, hashes = ? WHERE name = ?", json.dumps(hashes), name)

        await self.store.transact(work)
        return Reply()

    async def start_download(self, call: Call) -> Reply:
        """Agree on a method of download."""
        accepted = call.read(DownloadObjectRequest).accept_download_methods
        row = await self.store.transact(lambda tx: _get(tx, call.params["name"]))
        url = self.blobs.get_url(row["blob_id"], call.moment)
        if accepted.get_url:
            expires = to_wire(call.moment + blobs.URL_LIFETIME)
            return Reply({"method": "getUrl", "url": url, "expires": expires, "hashes": json.loads(row["hashes"])})
        if accepted.simple:
            return Reply({"method": "simple", "url": url})
        raise NoAcceptableMethod("The object can be had by getUrl and simple")

    async def object(self, call: Call) -> Reply:
        """What is known of the object."""
        row = await self.store.transact(lambda tx: _get(tx, call.params["name"]))
        hashes = json.loads(row["hashes"])
        return Reply({"projectId": row["project_id"], "expires": row["expires"], "hashes": hashes})

    async def download(self, call: Call) -> Reply:
        """A redirect to the data."""
        row = await self.store.transact(lambda tx: _get(tx, call.params["name"]))
        url = self.blobs.get_url(row["blob_id"], call.moment)
        return Reply({"url": url}, 303, {"location": url})


def _find(tx: Transaction, name: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM objects WHERE name = ?", name)


def _get(tx: Transaction, name: str, *, finished: bool = True) -> sqlite3.Row:
    row = _find(tx, name)
    if row is None or (finished and not row["finished"]):
        raise ResourceNotFound(f"Object {name!r} does not exist")
    return row


def _content_type(proposed: ProposedUploadMethods) -> str:
    method = proposed.data_inline or proposed.put_url
    content_type = "" if method is None else method.content_type
    if not (content_type.isascii() and content_type.isprintable()):
        raise InputError("contentType must be printable ASCII: it goes into a header")
    return content_type


def _inline_data(proposed: ProposedUploadMethods) -> bytes | None:
    if proposed.data_inline is None:
        return None
    try:
        content = base64.b64decode(proposed.data_inline.object_data, validate=True)
    except binascii.Error:
        raise InputError("proposedUploadMethods.dataInline.objectData is not base64") from None
    if len(content) > MAX_INLINE:
        raise InputError(f"dataInline takes up to {MAX_INLINE} bytes")
    return content


def _hashes(document: Mapping[str, Json]) -> dict[str, str]:
    return dict(document.get("hashes", {}))


def _merged(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    changed = sorted(kind for kind, value in new.items() if old.get(kind, value) != value)
    if changed:
        raise RequestConflict(f"{' and '.join(changed)} cannot be changed")
    return {**old, **new}
