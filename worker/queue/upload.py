"""An artifact from announcement to the last byte, with retries: what every plugin that uploads uses."""

from __future__ import annotations

import logging
from typing import Literal

from worker.http import HttpClients
from worker.ports import Ports
from worker.queue.errors import ApiError
from worker.queue.models import S3ArtifactRequest
from worker.queue.objects import upload_object
from worker.queue.retry import RetryPolicy, Transient
from worker.queue.transfer import UPLOAD_POLICY, NewArtifact, Stored, put, repeated

StorageType = Literal["s3", "object"]

# What a queue answers to a request that its schema does not have, such as one for a storage type that it lacks.
_NOT_IN_THE_SCHEMA = "InputValidationError"

log = logging.getLogger(__name__)


class DeploymentStorage:
    """By which of the queue's storage types a worker uploads: a fixed one, or what the queue turns out to take.

    One object for a worker, since what was found out for one artifact holds for all.
    """

    def __init__(
        self,
        http: HttpClients,
        ports: Ports,
        choice: StorageType | Literal["auto"] = "auto",
        policy: RetryPolicy = UPLOAD_POLICY,
    ) -> None:
        self._http = http
        self._ports = ports
        self._policy = policy
        self._known: StorageType | None = None if choice == "auto" else choice

    @property
    def encodes(self) -> bool:
        """Whether content may have an encoding, as far as is known. By the object service none has."""
        return self._known != "object"

    async def upload(self, artifact: NewArtifact) -> Stored:
        """Create the artifact and store its content; returns when the storage has all of it.

        A `Content` is opened once for every attempt, and each attempt has a presigned URL of its own.

        Raises `QueueError`: `Conflict` where the queue does not take the artifact, since it has another of that name or
        it is too late for the run, `Unavailable` when the policy gives up; and `HttpError`: `WrongLength` where the
        content is not as long as announced, `BadStatus` where the storage refuses. What opening raises comes out as it
        is. Cancellation ends an attempt at once; the artifact may then be there without its content.
        """
        stored = await self._upload(artifact)
        log.info("%s: %s is stored: %d bytes, SHA-256 %s", artifact.key, artifact.name, stored.length, stored.sha256)
        return stored

    async def _upload(self, artifact: NewArtifact) -> Stored:
        refusal: ApiError | None = None
        if self._known != "object":
            try:
                stored = await self._upload_s3(artifact)
            except ApiError as error:
                if self._known is not None or error.code != _NOT_IN_THE_SCHEMA:
                    raise
                refusal = error
            else:
                self._learn("s3")
                return stored
        try:
            stored = await upload_object(self._http, self._ports, artifact, self._policy)
        except ApiError as error:
            if refusal is not None and error.code == _NOT_IN_THE_SCHEMA:
                raise refusal from None  # it was not for the storage type
            raise
        self._learn("object")
        return stored

    def _learn(self, kind: StorageType) -> None:
        if self._known is None:
            log.info("the deployment takes artifacts of storage type %s", kind)
            self._known = kind

    async def _upload_s3(self, artifact: NewArtifact) -> Stored:
        content = artifact.content
        request = S3ArtifactRequest(content_type=artifact.content_type, expires=artifact.expires)

        async def attempt(_number: int) -> Stored | Transient:
            answer = await artifact.queue.create_artifact(artifact.key, artifact.name, request)
            headers = {"Content-Type": answer.content_type}
            if content.encoding is not None:
                headers["Content-Encoding"] = content.encoding
            return await put(self._http, self._ports, answer.put_url, headers, content)

        return await repeated(self._ports, artifact, self._policy, attempt)
