"""Artifacts by way of the object service.

    createArtifact ─▸ [ createUpload ─▸ PUT ─▸ finishUpload ] ─▸ finishArtifact
                      once again for a fresh URL

Small content goes along with `createUpload`. The service has no content encoding: content is stored as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import TypeVar

from worker.http import HttpClients, WrongLength
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.errors import ApiError, Conflict, Forbidden, QueueError, Unauthorized
from worker.queue.models import (
    CreateUploadRequest,
    CreateUploadResponse,
    DataInlineUploadRequest,
    FinishUploadRequest,
    ObjectArtifactRequest,
    ObjectArtifactResponse,
    ProposedUploadMethods,
    PutUrlUploadRequest,
    UploadHashes,
)
from worker.queue.retry import RetryPolicy, Transient
from worker.queue.services import ObjectService
from worker.queue.transfer import Digests, NewArtifact, Stored, put, read_all, repeated

T = TypeVar("T")

MAX_INLINE = 8192  # bytes (facts page, and schemas/object/v1/upload-method-data-inline.json)

_BAD_REQUEST = 400


async def upload_object(http: HttpClients, ports: Ports, artifact: NewArtifact, policy: RetryPolicy) -> Stored:
    """Create an `object` artifact of the content without encoding; returns when all of it is finished.

    Every step is repeated by itself where it fails; the data are sent again, to a fresh URL, where only that helps.
    Raises what `DeploymentStorage.upload` does.
    """
    upload = _ObjectUpload(http, ports, artifact)
    try:
        await upload.create()
        result = await repeated(ports, artifact, policy, upload.attempt)
        await artifact.queue.finish_artifact(artifact.key, artifact.name, upload.created.upload_id)
    except Conflict as error:
        if error.method == "queue.createArtifact" and error.attempts == 1:
            raise
        # From its creation on the artifact is ours, even if that was not heard of: the task has no part in this.
        text = f"{error.status} {error.code} in attempt {error.attempts}: {error.message}"
        raise QueueError(error.method, text) from error
    return result


class _ObjectUpload:
    """One artifact. `created` is what the queue has said last; its credentials are good for that object alone."""

    created: ObjectArtifactResponse

    def __init__(self, http: HttpClients, ports: Ports, artifact: NewArtifact) -> None:
        self._http = http
        self._ports = ports
        self._artifact = artifact
        self._content = artifact.plain
        deployment = artifact.queue.client.deployment
        self._service = ObjectService(deployment, lambda: Credentials.from_wire(self.created.credentials))

    async def create(self) -> None:
        """Announce the artifact; again, it gives fresh credentials."""
        # Taskcluster's queue takes it once, and answers 500 or 409 when it is repeated: its credentials last a day.
        artifact = self._artifact
        request = ObjectArtifactRequest(
            content_length=self._content.length, content_type=artifact.content_type, expires=artifact.expires
        )
        self.created = await artifact.queue.create_artifact(artifact.key, artifact.name, request)

    async def attempt(self, _number: int) -> Stored | Transient:
        """Send the data, and make the object final."""
        proposed, inline = await self._propose()
        agreed = (await self._authorized(lambda: self._create_upload(proposed))).upload_method
        if agreed.put_url is not None:
            # Exactly these headers: they are part of the signature.
            url, headers = agreed.put_url.url, agreed.put_url.headers
            sent = await put(self._http, self._ports, url, headers, self._content, "sha512")
            if isinstance(sent, Transient):
                return sent
        elif agreed.data_inline and inline is not None:
            sent = inline
        else:
            raise QueueError("object.createUpload", "none of the upload methods that this worker knows was chosen")
        return await self._finish(sent)

    async def _finish(self, sent: Stored) -> Stored | Transient:
        try:
            await self._authorized(lambda: self._finish_upload(sent))
        except ApiError as error:
            if error.status != _BAD_REQUEST:
                raise
            return Transient(str(error))  # the data are not there, or are others: sent once more they may be right
        return sent

    async def _propose(self) -> tuple[ProposedUploadMethods, Stored | None]:
        """The methods to choose from; and what was sent, if the service chooses `dataInline`."""
        content, content_type = self._content, self._artifact.content_type
        put_url = PutUrlUploadRequest(content_length=content.length, content_type=content_type)
        if content.length > MAX_INLINE:
            return ProposedUploadMethods(put_url=put_url), None
        data = await read_all(content)
        if len(data) != content.length:
            raise WrongLength(f"upload of {self._artifact.name}: not {content.length} bytes, as announced")
        inline = DataInlineUploadRequest(content_type=content_type, object_data=base64.b64encode(data).decode())
        digests = Digests(self._ports, "sha256", "sha512")
        await digests.update(data)
        return ProposedUploadMethods(data_inline=inline, put_url=put_url), digests.stored(len(data))

    async def _create_upload(self, proposed: ProposedUploadMethods) -> CreateUploadResponse:
        created = self.created
        request = CreateUploadRequest(
            expires=created.expires,
            project_id=created.project_id,
            proposed_upload_methods=proposed,
            upload_id=created.upload_id,
        )
        return await self._service.create_upload(created.name, request)

    async def _finish_upload(self, sent: Stored) -> None:
        created = self.created
        hashes = UploadHashes(sha256=sent.sha256, sha512=sent.sha512)
        request = FinishUploadRequest(hashes=hashes, project_id=created.project_id, upload_id=created.upload_id)
        await self._service.finish_upload(created.name, request)

    async def _authorized(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, which is made anew with fresh credentials where those it had are not good any more."""
        try:
            return await call()
        except (Unauthorized, Forbidden) as error:
            try:
                await self.create()
            except QueueError:
                raise error from None  # it is what was wrong; that the queue takes no repetition is not
            return await call()
