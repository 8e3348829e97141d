"""Calls of S3 by boto3, in threads.

A call in a thread cannot be cut. What it sends is read from a body that can: a cancelled call ends at its next read,
and where the service is silent, after `stall`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import trio

from plugins.artifacts.bucketconfig import BucketConfig
from worker.ports import Ports
from worker.queue.errors import QueueError, Unavailable
from worker.queue.retry import RetryPolicy, Transient, is_transient, parse_retry_after, retrying

Answer = Mapping[str, Any]

CALL_POLICY = RetryPolicy(total=600.0)
CONNECT_LIMIT = 10.0  # seconds, where `stall` is not shorter

# Below it there is nothing to cut.
_SENT_AT_ONCE = 64 * 1024

# Refusals of S3 that another attempt may not get: it has fresh credentials, a fresh time and the data once more.
_PASSING = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "ExpiredToken",
        "OperationAborted",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "SlowDown",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)

log = logging.getLogger(__name__)


class _Cut(Exception):
    """The call was cancelled."""


class Body:
    """A file of bytes in memory, for botocore to read; not a copy of them. Read in a thread, cut from another."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._view = memoryview(data)
        self._position = 0
        self._cut = False

    def cut(self) -> None:
        """Give no more."""
        self._cut = True

    def read(self, size: int | None = -1) -> bytes:
        """As of a file."""
        if self._cut:
            raise _Cut
        end = len(self._view) if size is None or size < 0 else self._position + size
        part = self._view[self._position : end]
        self._position += len(part)
        return bytes(part)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        self._position = offset + (0, self._position, len(self._view))[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position


class S3:
    """The service of one bucket, with a client for all runs."""

    def __init__(self, ports: Ports, client: Any, bucket: str, policy: RetryPolicy = CALL_POLICY) -> None:
        self._ports = ports
        # No more than the client has connections: a service that is silent must not take all of the worker's threads.
        self._calls = trio.CapacityLimiter(client.meta.config.max_pool_connections)
        self._client = client
        self._bucket = bucket
        self._policy = policy

    async def call(self, method: str, data: bytes | bytearray | None = None, **parameters: Any) -> Answer:
        """Make a call until it is answered; `data` becomes its `Body`.

        Raises `Unavailable` when the policy gives up and `QueueError` for a refusal. Neither text has a secret.
        Cancellation ends it at the body's next read, else when the service answers or stalls.
        """

        async def attempt(_number: int) -> Answer | Transient:
            return await self.attempt(method, data, **parameters)

        return await self.repeated(method, parameters["Key"], attempt)

    async def repeated(self, method: str, key: str, attempt: Callable[[int], Awaitable[Answer | Transient]]) -> Answer:
        """What `attempt` gives, which is called with its number from 1; each that fails is told in the worker's log.

        Raises as `call` does.
        """

        async def told(number: int) -> Answer | Transient:
            result = await attempt(number)
            if isinstance(result, Transient):
                log.warning("%s: attempt %d of s3.%s: %s", key, number, method, result.reason)
            return result

        result, attempts = await retrying(told, self._policy, self._ports.random)
        if isinstance(result, Transient):
            raise Unavailable(f"s3.{method}", attempts, result.reason)
        return result

    async def attempt(
        self, method: str, data: bytes | bytearray | None = None, **parameters: Any
    ) -> Answer | Transient:
        """Make a call once. Raises as `call` does."""
        parameters["Bucket"] = self._bucket
        if data is None:
            return await self._attempt(method, parameters)
        if len(data) <= _SENT_AT_ONCE:
            return await self._attempt(method, {**parameters, "Body": bytes(data)})
        body = Body(data)
        failure: QueueError | None = None
        result: Answer | Transient = Transient("not sent")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cut_when_cancelled, body)
            try:
                result = await self._attempt(method, {**parameters, "Body": body})
            except QueueError as error:
                failure = error  # raised below, where no nursery wraps it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _attempt(self, method: str, parameters: Mapping[str, Any]) -> Answer | Transient:
        from botocore import exceptions  # it takes long

        call = partial(getattr(self._client, method), **parameters)
        try:
            async with self._calls:
                answer: Answer = await self._ports.run_sync(call)
        except exceptions.ClientError as error:
            return self._refused(method, error.response)
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
        ) as error:
            raise QueueError(f"s3.{method}", str(error)) from error  # it says what is missing
        # Of all others never the text: it may have the object's URL, which is not to be guessed.
        except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError, _Cut) as error:
            return Transient(f"s3.{method}: {type(error).__name__}")
        except exceptions.BotoCoreError as error:
            raise QueueError(f"s3.{method}", type(error).__name__) from None
        return answer

    def _refused(self, method: str, response: Mapping[str, Any]) -> Transient:
        # Never the message: that of a signature that does not match quotes what was signed.
        code, metadata = str(response.get("Error", {}).get("Code", "unknown")), response.get("ResponseMetadata", {})
        status = int(metadata.get("HTTPStatusCode", 0))
        if not (is_transient(status) or code in _PASSING):
            raise Refused(f"s3.{method}", status, code)
        retry_after = metadata.get("HTTPHeaders", {}).get("retry-after")
        return Transient(f"{status} {code}", parse_retry_after(retry_after, self._ports.now()))


class Refused(QueueError):
    """S3 refused, with `code` (`AccessDenied`)."""

    def __init__(self, method: str, status: int, code: str) -> None:
        super().__init__(method, f"{status} {code}")
        self.code = code


def member(method: str, answer: Answer, name: str) -> Any:
    """What S3 always says; raises `QueueError` where a service does not."""
    try:
        return answer[name]
    except KeyError:
        raise QueueError(f"s3.{method}", f"the service's answer has no {name}") from None


def etag(method: str, answer: Answer, sums: Mapping[str, str]) -> str:
    """The ETag of bytes that were sent with `sums`; raises `QueueError` where there is none, or others are stored.

    What is between us and the service may answer 200 by itself before it has read anything, and then nothing is stored.
    """
    name = "ChecksumSHA256"
    if name in sums and answer.get(name, sums[name]) != sums[name]:
        raise QueueError(f"s3.{method}", "the service has stored other bytes than were sent, by their SHA-256")
    return str(member(method, answer, "ETag"))


async def _cut_when_cancelled(body: Body) -> None:
    try:
        await trio.sleep_forever()
    finally:
        body.cut()


def make_client(config: BucketConfig) -> Any:
    """A client of boto3, which may be used in many threads. Blocks; importing boto3 takes half a second."""
    import boto3
    from botocore.config import Config

    stall = config.stall.total_seconds()
    return boto3.client(
        "s3",
        region_name=config.region,
        endpoint_url=config.endpoint,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        aws_session_token=config.session_token,
        config=Config(
            signature_version="s3v4",
            connect_timeout=min(CONNECT_LIMIT, stall),
            read_timeout=stall,
            max_pool_connections=config.parts_at_once + 2,
            retries={"total_max_attempts": 1},  # `S3.call` does it, and says why
            s3={"addressing_style": "path" if config.by_path else "virtual"},
            # The worker's own checksums are sent, which every service knows or ignores.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def base_url_of(client: Any, bucket: str) -> str:
    """What the URLs of the bucket's objects begin with, for this client, without a slash. Blocks; sends nothing."""
    event = "before-call.s3.HeadObject"

    def answer(params: Mapping[str, Any], **_: object) -> tuple[Any, Answer]:
        return SimpleNamespace(status_code=200), {"url": params["url"]}

    # What a handler gives is taken for the service's answer, before anything is signed: no keys are needed.
    client.meta.events.register(event, answer)
    try:
        url: str = client.head_object(Bucket=bucket, Key="x")["url"]
    finally:
        client.meta.events.unregister(event, answer)
    return url.removesuffix("/x")


def checksums(data: bytes | bytearray, kind: str) -> dict[str, str]:
    """What goes along with `data`, for the service to compare. Blocks."""
    if kind == "sha256":
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
    return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}
