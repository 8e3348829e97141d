"""The typed calls: what they make of the answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from queue_world import CREDENTIALS, NOW, answers, scripted
from trio.testing import MockClock

from worker.model import RunKey
from worker.queue.errors import Conflict, NotFound, Unavailable
from worker.queue.models import LinkArtifactRequest, S3ArtifactRequest
from worker.queue.retry import RetryPolicy
from worker.queue.services import ObjectService, Queue
from worker.queue.wire import format_time

KEY = RunKey("KTBKfEgxR5GdfIIREQIvFQ", 2)
WHEN = format_time(NOW)


def status(**more: Any) -> dict[str, Any]:
    shared = {"provisionerId": "p", "workerType": "w", "taskQueueId": "p/w", "schedulerId": "-", "projectId": "none"}
    ids = {"taskId": KEY.task_id, "taskGroupId": KEY.task_id}
    return {
        **shared,
        **ids,
        "deadline": WHEN,
        "expires": WHEN,
        "retriesLeft": 5,
        "state": "running",
        "runs": [],
        **more,
    }


def credentials() -> Any:
    return CREDENTIALS


async def test_report_gives_the_status() -> None:
    handle, seen = answers(httpx.Response(200, json={"status": status(state="completed")}))
    async with scripted(handle) as deployment:
        assert (await Queue(deployment, credentials).report_completed(KEY)).state == "completed"
    assert seen[0].url.path == f"/api/queue/v1/task/{KEY.task_id}/runs/2/completed"


async def test_reclaim_of_a_run_that_is_gone_is_a_conflict() -> None:
    handle, _ = answers(httpx.Response(409, json={"code": "RequestConflict", "message": "gone"}))
    async with scripted(handle) as deployment:
        with pytest.raises(Conflict, match=r"queue\.reclaimTask: 409 RequestConflict: gone"):
            await Queue(deployment, credentials).reclaim(KEY)


async def test_claim_goes_to_the_long_poll_and_gives_no_tasks() -> None:
    handle, seen = answers(httpx.Response(200, json={"tasks": []}))
    async with scripted(handle) as deployment:
        assert (await Queue(deployment, credentials).claim_work("p/w", "g", "i", 4)).tasks == []
    assert json.loads(seen[0].content) == {"tasks": 4, "workerGroup": "g", "workerId": "i"}
    assert seen[0].extensions["timeout"]["read"] > 20


async def test_statuses_are_asked_in_batches_and_pages() -> None:
    one = {"taskId": KEY.task_id, "status": status()}
    handle, seen = answers(
        httpx.Response(200, json={"statuses": [one], "continuationToken": "more"}),
        httpx.Response(200, json={"statuses": [one]}),
        httpx.Response(200, json={"statuses": []}),
    )
    async with scripted(handle) as deployment:
        got = await Queue(deployment, credentials).statuses([KEY.task_id] * 1001)
    assert [entry.status.state for entry in got] == ["running", "running"]
    assert [len(json.loads(request.content)["taskIds"]) for request in seen] == [1000, 1000, 1]
    assert seen[1].url.params["continuationToken"] == "more"


async def test_no_ids_need_no_call() -> None:
    handle, seen = answers(httpx.Response(500))
    async with scripted(handle) as deployment:
        assert await Queue(deployment, credentials).statuses([]) == []
    assert seen == []


async def test_artifact_answer_is_of_the_storage_type_asked_for(autojump_clock: MockClock) -> None:
    put = {"storageType": "s3", "putUrl": "https://s3/x?y", "expires": WHEN, "contentType": "text/plain"}
    handle, _ = answers(httpx.Response(200, json=put))
    async with scripted(handle, RetryPolicy(attempts=2)) as deployment:
        queue = Queue(deployment, credentials)
        answer = await queue.create_artifact(KEY, "a", S3ArtifactRequest(expires=NOW, content_type="text/plain"))
        assert answer.put_url == "https://s3/x?y"
        with pytest.raises(Unavailable, match="storage type s3 instead of link"):
            await queue.create_artifact(KEY, "a", LinkArtifactRequest(expires=NOW, artifact="b"))


@pytest.mark.parametrize("response", [httpx.Response(204), httpx.Response(200, json={})])
async def test_calls_without_an_answer_take_any_success(response: httpx.Response) -> None:
    handle, seen = answers(response)
    async with scripted(handle) as deployment:
        await Queue(deployment, credentials).finish_artifact(KEY, "a", KEY.task_id)
    assert seen[0].method == "PUT"


async def test_services_have_their_own_addresses() -> None:
    handle, seen = answers(httpx.Response(404))
    async with scripted(handle) as deployment:
        client = ObjectService(deployment, credentials).client
        with pytest.raises(NotFound, match=r"object\.ping"):
            await client.ping()
    assert seen[0].url.path == "/api/object/v1/ping"
