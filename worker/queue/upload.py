"""An artifact from announcement to the last byte, with retries: what every plugin that uploads uses."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from worker.http import BadStatus, ConnectFailed, ConnectionLost, HttpClients, TimedOut
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import Unavailable
from worker.queue.models import S3ArtifactRequest
from worker.queue.retry import RetryPolicy, Transient, is_transient, parse_retry_after, retrying
from worker.queue.services import Queue

OpenContent = Callable[[], AbstractAsyncContextManager[AsyncIterable[bytes]]]

# An attempt may take as long as the data do, so what counts is the number of attempts rather than the time.
UPLOAD_POLICY = RetryPolicy(total=1800.0)

# What storages answer for a URL that expired, or for a body that stalled: a fresh URL may do.
_FRESH_URL_MAY_HELP = frozenset({400, 401, 403})


async def upload_artifact(
    queue: Queue,
    http: HttpClients,
    ports: Ports,
    key: RunKey,
    name: str,
    *,
    content_type: str,
    content_encoding: str | None = None,
    expires: datetime,
    open_content: OpenContent,
    length: int,
    policy: RetryPolicy = UPLOAD_POLICY,
) -> None:
    """Create the `s3` artifact `name` and PUT its `length` bytes; returns when the storage has them all.

    `open_content` is entered once for every attempt, and each attempt has a presigned URL of its own. `length` and the
    bytes are of the encoded content where there is a `content_encoding` (`gzip`).

    Raises `QueueError`: `Conflict` where it is too late for the run, `Unavailable` when the policy gives up; and
    `HttpError`: `WrongLength` where the content is not as long as announced, `BadStatus` where the storage refuses.
    What `open_content` raises comes out as it is. Cancellation ends an attempt at once; the artifact may then be there
    without its content.
    """
    request = S3ArtifactRequest(content_type=content_type, expires=expires)

    async def attempt(_number: int) -> Transient | None:
        answer = await queue.create_artifact(key, name, request)
        headers = {"Content-Type": answer.content_type}
        if content_encoding is not None:
            headers["Content-Encoding"] = content_encoding
        try:
            async with open_content() as content:
                await http.bulk.upload(answer.put_url, content, headers=headers, length=length)
        except BadStatus as error:
            if not is_transient(error.status) and error.status not in _FRESH_URL_MAY_HELP:
                raise
            return Transient(str(error), parse_retry_after(error.retry_after, ports.now()))
        except (ConnectFailed, ConnectionLost, TimedOut) as error:
            return Transient(str(error))
        return None

    result, attempts = await retrying(attempt, policy, ports.random)
    if result is not None:
        raise Unavailable(f"upload of {name}", attempts, result.reason)
