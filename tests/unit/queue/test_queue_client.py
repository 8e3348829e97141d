"""Calls of services: what is sent, what is retried, what comes out, and that nothing secret does."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import httpx
import mohawk
import pytest
import taskcluster
import trio
import trio.testing
from queue_world import CREDENTIALS, NOW, ROOT_URL, answers, date_header, scripted
from taskcluster.exceptions import TaskclusterFailure
from trio.testing import MockClock

from worker.http import ConnectFailed
from worker.queue.client import SERVICES, service
from worker.queue.credentials import Credentials
from worker.queue.errors import ApiError, Conflict, Forbidden, NotFound, QueueError, Unauthorized, Unavailable
from worker.queue.models import ClaimWorkResponse
from worker.queue.retry import RetryPolicy

TASK_ID = "KTBKfEgxR5GdfIIREQIvFQ"
PONG = httpx.Response(200, json={"alive": True})
BUSY = httpx.Response(503, json={"code": "Busy", "message": "come back"})


def anything(document: Any) -> Any:
    return document


def refusal(status: int, code: str = "SomeCode", message: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": message, "requestInfo": {"payload": "topsecret"}})


PACKAGE: dict[str, Any] = {
    client.serviceName: client
    for client in vars(taskcluster).values()
    if hasattr(client, "funcinfo") and any("route" in entry for entry in client.funcinfo.values())
}


def test_every_service_of_the_package_is_there() -> None:
    assert set(SERVICES) == set(PACKAGE)


@pytest.mark.parametrize("name", sorted(PACKAGE))
async def test_every_method_asks_the_url_of_the_package(name: str) -> None:
    handle, seen = answers(httpx.Response(200, json={}))
    async with scripted(handle) as deployment:
        client = service(deployment, name, lambda: CREDENTIALS)
        original = PACKAGE[name]({"rootUrl": ROOT_URL})
        for method, entry in original.funcinfo.items():
            route_args = [f"{index}/ä %" for index, _ in enumerate(entry["args"])]
            payload = [{"some": "thing"}] if "input" in entry else []
            await getattr(client, method)(*route_args, *payload)
            assert str(seen[-1].url) == original.buildUrl(method, *route_args, *payload).rstrip("/")
            assert seen[-1].method == entry["method"].upper()
            assert seen[-1].content == (b'{"some":"thing"}' if payload else b"")


async def test_request_is_signed_as_hawk_wants() -> None:
    handle, seen = answers(PONG)
    signer = Credentials("c/1", "token", '{"a":1}', ("scope:*",))
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: signer).ping()
    (request,) = seen
    mohawk.Receiver(
        lambda _id: {"id": "c/1", "key": "token", "algorithm": "sha256"},
        request.headers["Authorization"],
        str(request.url),
        "GET",
        accept_untrusted_content=True,
        timestamp_skew_in_seconds=2**40,
    )
    assert f'ts="{int(NOW.timestamp())}"' in request.headers["Authorization"]
    assert request.headers["User-Agent"].startswith("tc-worker/")


async def test_without_credentials_nothing_is_signed() -> None:
    handle, seen = answers(PONG)
    async with scripted(handle) as deployment:
        assert await service(deployment, "queue", lambda: None).ping() == {"alive": True}
    assert "Authorization" not in seen[0].headers


@pytest.mark.parametrize(
    "first",
    [
        BUSY,
        httpx.Response(500, text="<html>"),
        httpx.Response(429),
        httpx.Response(200, text="<html>no JSON</html>"),
        httpx.Response(200, content=b"\xff\xfe"),
        httpx.Response(200, content=b"[" * 100_000),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout(""),
        httpx.ReadTimeout(""),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("nonsense"),
    ],
)
async def test_what_may_pass_is_tried_again(first: httpx.Response | Exception, autojump_clock: MockClock) -> None:
    handle, seen = answers(first, first, PONG)
    async with scripted(handle) as deployment:
        assert await service(deployment, "queue", lambda: CREDENTIALS).ping() == {"alive": True}
    assert len(seen) == 3


async def test_answer_without_the_body_that_the_method_has_is_tried_again(autojump_clock: MockClock) -> None:
    handle, seen = answers(httpx.Response(200), httpx.Response(200, json={"status": {}}))
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).status(TASK_ID)
    assert len(seen) == 2


async def test_each_attempt_has_its_own_nonce(autojump_clock: MockClock) -> None:
    handle, seen = answers(BUSY, PONG)
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert seen[0].headers["Authorization"] != seen[1].headers["Authorization"]


@pytest.mark.parametrize(
    "wait",
    [{"Retry-After": "17"}, date_header(timedelta(0)) | {"Retry-After": date_header(timedelta(seconds=17))["Date"]}],
)
async def test_retry_after_is_honoured(wait: dict[str, str], autojump_clock: MockClock) -> None:
    handle, _ = answers(httpx.Response(503, headers=wait), PONG)
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert trio.current_time() == pytest.approx(17)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 424])
async def test_refusal_is_final(status: int) -> None:
    handle, seen = answers(refusal(status))
    async with scripted(handle) as deployment:
        with pytest.raises(ApiError) as caught:
            await service(deployment, "queue", lambda: CREDENTIALS).status(TASK_ID)
    assert len(seen) == 1
    assert type(caught.value) is {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict}.get(status, ApiError)
    assert (caught.value.status, caught.value.code, caught.value.message) == (status, "SomeCode", "no")
    assert str(caught.value) == f"queue.status: {status} SomeCode: no"


@pytest.mark.parametrize("body", [b"", b"Cannot GET /", b"[]", b"null", b'{"error": "Not found"}', b"[" * 100_000])
async def test_refusal_need_not_be_json(body: bytes) -> None:
    handle, _ = answers(httpx.Response(404, content=body))
    async with scripted(handle) as deployment:
        with pytest.raises(NotFound, match=r"queue\.ping: 404 unknown"):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()


async def test_gives_up_with_the_last_reason(autojump_clock: MockClock) -> None:
    handle, seen = answers(BUSY)
    async with scripted(handle, RetryPolicy(attempts=4)) as deployment:
        with pytest.raises(Unavailable, match=r"queue\.ping: no usable answer in 4 attempts: 503 Busy: come back"):
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert len(seen) == 4


async def test_claim_work_is_not_repeated_on_its_own() -> None:
    handle, seen = answers(BUSY)
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        with pytest.raises(Unavailable, match="in 1 attempt:"):
            await client.call("claimWork", "proj-x/native", {"tasks": 1}, parse=ClaimWorkResponse.model_validate)
        with pytest.raises(Unavailable, match="in 1 attempt:"):
            await client.claimWork("proj-x/native", {"tasks": 1})
    assert len(seen) == 2


async def test_retries_use_the_credentials_of_the_moment(autojump_clock: MockClock) -> None:
    current = Credentials("old", "old-token")
    seen: list[str] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal current
        seen.append(request.headers["Authorization"])
        current = Credentials("new", "new-token")
        return BUSY if len(seen) == 1 else PONG

    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: current).ping()
    assert ['id="old"' in seen[0], 'id="new"' in seen[1]] == [True, True]


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_no_error_and_no_log_line_holds_a_secret(
    status: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"bad {CREDENTIALS.access_token} and {CREDENTIALS.certificate}\n---\n* payload: topsecret" + "x" * 10_000
    handle, _ = answers(refusal(status, message=echo))
    async with scripted(handle, RetryPolicy(attempts=2)) as deployment:
        with pytest.raises(QueueError) as caught:
            await service(deployment, "secrets", lambda: CREDENTIALS).set("name", {"secret": "topsecret"})
    text = str(caught.value) + repr(caught.value) + caplog.text
    assert "bad *** and ***" in text
    assert "topsecret" not in text
    assert len(str(caught.value)) < 2000


async def test_validation_errors_do_not_quote_the_answer() -> None:
    handle, _ = answers(httpx.Response(200, json={"tasks": [{"credentials": {"accessToken": ["topsecret"]}}]}))
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        with pytest.raises(Unavailable, match=r"nonsense: tasks\.0") as caught:
            await client.call("claimWork", "p/w", {}, parse=ClaimWorkResponse.model_validate)
    assert "topsecret" not in str(caught.value)


async def test_certificate_that_is_no_json_is_named_but_not_shown() -> None:
    handle, seen = answers(PONG)
    async with scripted(handle) as deployment:
        with pytest.raises(QueueError, match="the credentials of 'c' cannot sign") as caught:
            await service(deployment, "queue", lambda: Credentials("c", "t", "topsecret")).ping()
    assert "topsecret" not in repr(caught.value)
    assert seen == []


async def test_outage_is_told_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="worker.queue")
    handle, _ = answers(BUSY, BUSY, httpx.ConnectError("refused"), PONG)
    async with scripted(handle) as deployment:
        await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_redirect_of_get_artifact_is_its_answer() -> None:
    document = {"storageType": "s3", "url": "https://s3.example.com/x?signature=y"}
    handle, _ = answers(httpx.Response(303, json=document, headers={"Location": document["url"]}))
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        assert await client.getArtifact(TASK_ID, "0", "public/a") == document


@pytest.mark.parametrize("name", ["..", ".", "../../x/.."])
async def test_name_never_leads_to_another_route(name: str) -> None:
    handle, seen = answers(PONG)
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        if name.count("/"):
            await client.getArtifact(TASK_ID, "0", name)
            assert seen[0].url.raw_path.endswith(b"/artifacts/..%2F..%2Fx%2F..")
        else:
            with pytest.raises(QueueError, match="cannot be part of a URL"):
                await client.getArtifact(TASK_ID, "0", name)
            assert seen == []


async def test_pages_are_followed() -> None:
    pages = [{"artifacts": [1], "continuationToken": "a/b"}, {"artifacts": [2]}]
    handle, seen = answers(*(httpx.Response(200, json=page) for page in pages))
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        assert await client.pages("listArtifacts", TASK_ID, "0", parse=anything) == pages
    assert [request.url.query for request in seen] == [b"", b"continuationToken=a%2Fb"]


async def test_pagination_handler_of_the_package_works() -> None:
    pages = [{"secrets": ["a"], "continuationToken": "t"}, {"secrets": ["b"]}]
    handle, seen = answers(*(httpx.Response(200, json=page) for page in pages))
    got: list[Any] = []
    async with scripted(handle) as deployment:
        client = service(deployment, "secrets", lambda: CREDENTIALS)
        await client.list(paginationHandler=got.append, paginationLimit=1)
    assert got == pages
    assert [request.url.query for request in seen] == [b"limit=1", b"limit=1&continuationToken=t"]


async def test_wrong_arguments_are_the_callers_mistake() -> None:
    handle, seen = answers(PONG)
    async with scripted(handle) as deployment:
        with pytest.raises(TaskclusterFailure):
            await service(deployment, "queue", lambda: CREDENTIALS).status()
    assert seen == []


async def test_signed_url_is_what_the_package_signs() -> None:
    handle, _ = answers(PONG)
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        url = httpx.URL(client.buildSignedUrl("getArtifact", TASK_ID, "0", "private/a b", expiration=60))
    assert url.path.endswith("/artifacts/private/a b")
    mohawk.bewit.check_bewit(
        f"{url}==",  # mohawk wants the padding
        lambda _id: {"id": CREDENTIALS.client_id, "key": CREDENTIALS.access_token, "algorithm": "sha256"},
        now=int(NOW.timestamp()) + 59,
    )


async def test_dates_are_sent_with_milliseconds() -> None:
    handle, seen = answers(httpx.Response(200, json={}))
    async with scripted(handle) as deployment:
        client = service(deployment, "secrets", lambda: CREDENTIALS)
        await client.set("n", {"expires": NOW, "secret": {}})
    assert json.loads(seen[0].content)["expires"] == "2026-01-31T12:00:00.000Z"


async def test_cancelled_call_ends_at_once(autojump_clock: MockClock) -> None:
    async def handle(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with scripted(handle) as deployment:
        with trio.move_on_after(5) as scope:
            await service(deployment, "queue", lambda: CREDENTIALS).ping()
    assert scope.cancelled_caught


def test_errors_of_the_border_are_ours() -> None:
    assert not issubclass(ConnectFailed, QueueError | httpx.HTTPError)


async def test_pages_without_end_are_an_error() -> None:
    handle, _ = answers(httpx.Response(200, json={"artifacts": [], "continuationToken": "again"}))
    async with scripted(handle) as deployment:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        with pytest.raises(QueueError, match=r"queue\.listLatestArtifacts: an answer of more than 1000 pages"):
            await client.pages("listLatestArtifacts", TASK_ID, parse=lambda document: document)


async def test_what_keeps_and_ends_a_run_waits_for_no_other_call(autojump_clock: MockClock) -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        if "artifacts" in request.url.path:
            await trio.sleep_forever()
        return httpx.Response(409, json={"code": "RequestConflict", "message": "gone"})

    async with scripted(handle) as deployment, trio.open_nursery() as nursery:
        client = service(deployment, "queue", lambda: CREDENTIALS)
        for number in range(100):
            nursery.start_soon(client.listArtifacts, TASK_ID, str(number))
        await trio.testing.wait_all_tasks_blocked()
        for method in ("reclaimTask", "reportCompleted", "reportFailed"):
            with trio.fail_after(1), pytest.raises(Conflict):
                await getattr(client, method)(TASK_ID, "0")
        nursery.cancel_scope.cancel()
