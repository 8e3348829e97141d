"""Uploads to presigned URLs, with retries."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from worker.http import BadStatus, ConnectFailed, ConnectionLost, HttpClient, TimedOut
from worker.ports import Ports
from worker.queue.errors import Unavailable
from worker.queue.retry import RetryPolicy, Transient, is_transient, parse_retry_after, retrying

UPLOAD = "upload"  # its name in messages, where calls of services have theirs


async def upload(
    client: HttpClient,
    ports: Ports,
    url: str,
    open_content: Callable[[], AbstractAsyncContextManager[AsyncIterable[bytes]]],
    *,
    headers: Mapping[str, str],
    length: int,
    policy: RetryPolicy,
) -> None:
    """PUT `length` bytes to a presigned `url`; `open_content` is entered once for every attempt.

    Raises `BadStatus` for a refusal (a URL that expired is one: ask for a fresh one), `Unavailable` when the policy
    gives up, and `HttpError` for a request that cannot be made. What `open_content` raises comes out as it is.
    """

    async def attempt(_number: int) -> Transient | None:
        try:
            async with open_content() as content:
                await client.upload(url, content, headers=headers, length=length)
        except BadStatus as error:
            if not is_transient(error.status):
                raise
            return Transient(str(error), parse_retry_after(error.retry_after, ports.now()))
        except (ConnectFailed, ConnectionLost, TimedOut) as error:
            return Transient(str(error))
        return None

    result, attempts = await retrying(attempt, policy, ports.random)
    if result is not None:
        raise Unavailable(UPLOAD, attempts, result.reason)
