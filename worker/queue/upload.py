"""An artifact from announcement to the last byte, with retries: what every plugin that uploads uses."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Literal

from worker.http import HttpClients
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import ApiError, Unavailable
from worker.queue.models import S3ArtifactRequest
from worker.queue.objects import upload_object
from worker.queue.retry import RetryPolicy, Transient, retrying
from worker.queue.services import Queue
from worker.queue.transfer import UPLOAD_POLICY, Content, Stored, put

StorageType = Literal["s3", "object"]

# What a queue answers to a request that its schema does not have, such as one for a storage type that it lacks.
_NOT_IN_THE_SCHEMA = "InputValidationError"

log = logging.getLogger(__name__)


class DeploymentStorage:
    """By which of the queue's storage types a worker uploads: a fixed one, or what the queue turns out to take.

    One object for a worker, since what was found out for one artifact holds for all.
    """

    def __init__(self, choice: StorageType | Literal["auto"] = "auto", policy: RetryPolicy = UPLOAD_POLICY) -> None:
        self._policy = policy
        self._known: StorageType | None = None if choice == "auto" else choice

    @property
    def encodes(self) -> bool:
        """Whether content may have an encoding, as far as is known. By the object service none has."""
        return self._known != "object"

    async def upload(
        self,
        queue: Queue,
        http: HttpClients,
        ports: Ports,
        key: RunKey,
        name: str,
        *,
        content_type: str,
        expires: datetime,
        content: Content,
        plain: Content,
        policy: RetryPolicy | None = None,
    ) -> Stored:
        """Create the artifact `name` and store its content; returns when the storage has all of it.

        `content` may have an encoding, `plain` is the same without; it is opened where the storage takes no encoding.
        A `Content` is opened once for every attempt, and each attempt has a presigned URL of its own.

        Raises `QueueError`: `Conflict` where it is too late for the run, `Unavailable` when the policy gives up; and
        `HttpError`: `WrongLength` where the content is not as long as announced, `BadStatus` where the storage refuses.
        What opening raises comes out as it is. Cancellation ends an attempt at once; the artifact may then be there
        without its content.
        """
        policy = policy or self._policy
        refusal: ApiError | None = None
        if self._known != "object":
            try:
                stored = await _upload_s3(queue, http, ports, key, name, content_type, expires, content, policy)
            except ApiError as error:
                if self._known is not None or error.code != _NOT_IN_THE_SCHEMA:
                    raise
                refusal = error
            else:
                self._learn("s3")
                return _told(key, name, stored)
        try:
            stored = await upload_object(
                queue,
                http,
                ports,
                key,
                name,
                content_type=content_type,
                expires=expires,
                content=plain,
                policy=policy,
            )
        except ApiError as error:
            if refusal is not None and error.code == _NOT_IN_THE_SCHEMA:
                raise refusal from None  # it was not for the storage type
            raise
        self._learn("object")
        return _told(key, name, stored)

    def _learn(self, kind: StorageType) -> None:
        if self._known is None:
            log.info("the deployment takes artifacts of storage type %s", kind)
            self._known = kind


async def _upload_s3(
    queue: Queue,
    http: HttpClients,
    ports: Ports,
    key: RunKey,
    name: str,
    content_type: str,
    expires: datetime,
    content: Content,
    policy: RetryPolicy,
) -> Stored:
    request = S3ArtifactRequest(content_type=content_type, expires=expires)

    async def attempt(_number: int) -> Stored | Transient:
        answer = await queue.create_artifact(key, name, request)
        headers = {"Content-Type": answer.content_type}
        if content.encoding is not None:
            headers["Content-Encoding"] = content.encoding
        return await put(http, ports, answer.put_url, headers, content)

    result, attempts = await retrying(attempt, policy, ports.random)
    if isinstance(result, Transient):
        raise Unavailable(f"upload of {name}", attempts, result.reason)
    return result


def _told(key: RunKey, name: str, stored: Stored) -> Stored:
    log.info("%s: %s is stored: %d bytes, SHA-256 %s", key, name, stored.length, stored.sha256)
    return stored
