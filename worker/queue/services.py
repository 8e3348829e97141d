"""The calls that the worker makes, with types. Errors, retries and cancellation are those of `Deployment.perform`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeAlias, overload

from worker.model import ExceptionReason, RunKey
from worker.queue.client import service
from worker.queue.credentials import CredentialsProvider
from worker.queue.deployment import Deployment
from worker.queue.models import (
    ArtifactResponse,
    ClaimWorkRequest,
    ClaimWorkResponse,
    CreateTaskRequest,
    CreateUploadRequest,
    CreateUploadResponse,
    ErrorArtifactRequest,
    ErrorArtifactResponse,
    FinishArtifactRequest,
    FinishUploadRequest,
    GetArtifactResponse,
    LinkArtifactRequest,
    LinkArtifactResponse,
    ListArtifactsResponse,
    ObjectArtifactRequest,
    ObjectArtifactResponse,
    PostArtifactResponse,
    PurgeCacheRequestList,
    ReferenceArtifactRequest,
    ReferenceArtifactResponse,
    S3ArtifactRequest,
    S3ArtifactResponse,
    Secret,
    TaskDefinition,
    TaskExceptionRequest,
    TaskReclaimResponse,
    TasksRequest,
    TasksStatusesResponse,
    TaskStatus,
    TaskStatusResponse,
    TaskStatusWithId,
    WebsocktunnelTokenResponse,
)
from worker.queue.retry import RetryPolicy
from worker.queue.wire import Response, format_time

ArtifactRequest: TypeAlias = (
    S3ArtifactRequest | ObjectArtifactRequest | ReferenceArtifactRequest | LinkArtifactRequest | ErrorArtifactRequest
)
ArtifactAnswer: TypeAlias = (
    S3ArtifactResponse
    | ObjectArtifactResponse
    | ReferenceArtifactResponse
    | LinkArtifactResponse
    | ErrorArtifactResponse
)

STATUSES_A_CALL = 1000  # the queue pages its answers by as many


class Queue:
    """The queue, with the credentials of a worker or of one run."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "queue", credentials)

    async def claim_work(self, task_queue_id: str, worker_group: str, worker_id: str, tasks: int) -> ClaimWorkResponse:
        """Claim 1 to 32 tasks; waits up to 20 s for the first. One attempt only: it is not idempotent."""
        request = ClaimWorkRequest(tasks=tasks, worker_group=worker_group, worker_id=worker_id)
        return await self.client.call("claimWork", task_queue_id, request, parse=ClaimWorkResponse.model_validate)

    async def reclaim(self, key: RunKey) -> TaskReclaimResponse:
        """Prolong a claim; raises `Conflict` where the run is resolved or no longer ours."""
        return await self.client.call(
            "reclaimTask", key.task_id, str(key.run_id), parse=TaskReclaimResponse.model_validate
        )

    async def report_completed(self, key: RunKey) -> TaskStatus:
        """Resolve a run as completed. Repeating it is fine; another resolution is a `Conflict`."""
        return await self._report("reportCompleted", key)

    async def report_failed(self, key: RunKey) -> TaskStatus:
        """Resolve a run as failed, as `report_completed`."""
        return await self._report("reportFailed", key)

    async def report_exception(self, key: RunKey, reason: ExceptionReason) -> TaskStatus:
        """Resolve a run as exception, as `report_completed`; some reasons make the queue run the task again."""
        return await self._report("reportException", key, TaskExceptionRequest(reason=reason))

    async def _report(self, method: str, key: RunKey, *payload: TaskExceptionRequest) -> TaskStatus:
        answer = await self.client.call(
            method, key.task_id, str(key.run_id), *payload, parse=TaskStatusResponse.model_validate
        )
        return answer.status

    @overload
    async def create_artifact(self, key: RunKey, name: str, request: S3ArtifactRequest) -> S3ArtifactResponse: ...
    @overload
    async def create_artifact(
        self, key: RunKey, name: str, request: ObjectArtifactRequest
    ) -> ObjectArtifactResponse: ...
    @overload
    async def create_artifact(self, key: RunKey, name: str, request: ArtifactRequest) -> ArtifactAnswer: ...
    async def create_artifact(self, key: RunKey, name: str, request: ArtifactRequest) -> ArtifactAnswer:
        """Announce an artifact; the answer is of the request's storage type. Raises `Conflict` when it is too late."""

        def parse(document: object) -> ArtifactAnswer:
            answer = PostArtifactResponse.model_validate(document).root
            if answer.storage_type != request.storage_type:
                raise ValueError(f"storage type {answer.storage_type} instead of {request.storage_type}")
            return answer

        return await self.client.call("createArtifact", key.task_id, str(key.run_id), name, request, parse=parse)

    async def finish_artifact(self, key: RunKey, name: str, upload_id: str) -> None:
        """Say that an `object` artifact was uploaded."""
        request = FinishArtifactRequest(upload_id=upload_id)
        await self.client.call("finishArtifact", key.task_id, str(key.run_id), name, request, parse=_nothing)

    async def list_artifacts(self, key: RunKey) -> list[ArtifactResponse]:
        """The artifacts of a run."""
        pages = await self.client.pages(
            "listArtifacts", key.task_id, str(key.run_id), parse=ListArtifactsResponse.model_validate
        )
        return [artifact for page in pages for artifact in page.artifacts]

    async def get_artifact(self, key: RunKey, name: str) -> GetArtifactResponse:
        """Where an artifact can be had. An error artifact is an `ApiError` with status 424."""
        return await self.client.call(
            "getArtifact", key.task_id, str(key.run_id), name, parse=GetArtifactResponse.model_validate
        )

    async def latest_artifact(self, task_id: str, name: str) -> GetArtifactResponse:
        """As `get_artifact`, of a task's latest run."""
        return await self.client.call("getLatestArtifact", task_id, name, parse=GetArtifactResponse.model_validate)

    async def task(self, task_id: str) -> TaskDefinition:
        """The definition of a task."""
        return await self.client.call("task", task_id, parse=TaskDefinition.model_validate)

    async def status(self, task_id: str, *, policy: RetryPolicy | None = None) -> TaskStatus:
        """The state of a task and of its runs."""
        answer = await self.client.call("status", task_id, parse=TaskStatusResponse.model_validate, policy=policy)
        return answer.status

    async def statuses(self, task_ids: Iterable[str], *, policy: RetryPolicy | None = None) -> list[TaskStatusWithId]:
        """The states of many tasks, in one call where they are at most 1000. Unknown ids are left out."""
        ids = list(task_ids)
        result: list[TaskStatusWithId] = []
        for start in range(0, len(ids), STATUSES_A_CALL):
            request = TasksRequest(task_ids=ids[start : start + STATUSES_A_CALL])
            pages = await self.client.pages(
                "statuses", request, parse=TasksStatusesResponse.model_validate, policy=policy
            )
            result += [status for page in pages for status in page.statuses]
        return result

    async def create_task(self, task_id: str, request: CreateTaskRequest) -> TaskStatus:
        """Create a task; the same again is fine, another definition under the same id is a `Conflict`."""
        answer = await self.client.call("createTask", task_id, request, parse=TaskStatusResponse.model_validate)
        return answer.status

    async def cancel_task(self, task_id: str) -> TaskStatus:
        """Cancel a task; one that is resolved stays as it is."""
        return (await self.client.call("cancelTask", task_id, parse=TaskStatusResponse.model_validate)).status


class ObjectService:
    """The object service, with the credentials that came with an `object` artifact."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "object", credentials)

    async def create_upload(self, name: str, request: CreateUploadRequest) -> CreateUploadResponse:
        """Begin an upload; the answer says which of the proposed methods to use."""
        return await self.client.call("createUpload", name, request, parse=CreateUploadResponse.model_validate)

    async def finish_upload(self, name: str, request: FinishUploadRequest) -> None:
        """Say that the data are there, and their hashes."""
        await self.client.call("finishUpload", name, request, parse=_nothing)


class PurgeCache:
    """The purge-cache service."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "purge-cache", credentials)

    async def requests(
        self, task_queue_id: str, since: datetime | None = None, *, policy: RetryPolicy | None = None
    ) -> PurgeCacheRequestList:
        """The purge requests for a task queue, newer than `since`."""
        query: Mapping[str, str] = {} if since is None else {"since": format_time(since)}
        return await self.client.call(
            "purgeRequests", task_queue_id, query=query, parse=PurgeCacheRequestList.model_validate, policy=policy
        )


class Secrets:
    """The secrets service."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "secrets", credentials)

    async def get(self, name: str) -> Secret:
        """A secret; raises `NotFound`."""
        return await self.client.call("get", name, parse=Secret.model_validate)


class ScopeSet(Response):
    """A list of scopes."""

    scopes: list[str]


class Auth:
    """The auth service."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "auth", credentials)

    async def expand_scopes(self, scopes: Iterable[str]) -> list[str]:
        """`scopes` with those of the roles that they name."""
        answer = await self.client.call("expandScopes", {"scopes": list(scopes)}, parse=ScopeSet.model_validate)
        return answer.scopes

    async def websocktunnel_token(self, audience: str, client: str) -> WebsocktunnelTokenResponse:
        """A token for connecting to a websocktunnel server as `client`."""
        return await self.client.call(
            "websocktunnelToken", audience, client, parse=WebsocktunnelTokenResponse.model_validate
        )


class IndexedTask(Response):
    """What the index says of a namespace; `schemas/index` has more."""

    task_id: str


class Index:
    """The index service, which knows tasks by names."""

    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.client = service(deployment, "index", credentials)

    async def find_task(self, namespace: str) -> IndexedTask:
        """The task of that name; raises `NotFound`."""
        return await self.client.call("findTask", namespace, parse=IndexedTask.model_validate)


def _nothing(_document: object) -> None:
    # These answer with an empty body, or with one that says nothing.
    return None
