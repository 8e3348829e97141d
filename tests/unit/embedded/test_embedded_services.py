"""Errors, signatures on the wire, secrets, purge-cache, auth and the page, in virtual time."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from typing import Any

import pytest
import taskcluster
import trio
from embedded_world import POOL, ROOT_URL, Api, definition, virtual_queue
from trio.testing import MockClock

from worker.embedded.times import to_wire
from worker.testing.tunnel import read_jwt

QUEUE = f"{ROOT_URL}/api/queue/v1"


async def test_unknown_routes_have_no_code(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        for url in (f"{QUEUE}/nowhere", f"{ROOT_URL}/api/no-service/v1/ping", f"{ROOT_URL}/nowhere"):
            answer = await api.send("GET", url)
            assert answer.status_code == 404
            assert "code" not in answer.json()


async def test_a_body_that_is_not_json_is_said_before_authentication(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        bad = api.as_client({"clientId": "nobody", "accessToken": "wrong"})
        url = f"{QUEUE}/claim-work/p%2Fw"
        for content in (b"{", b'{"tasks": NaN}', b'{"tasks": -1e999}', b'"text"', b"[" * 100_000):
            assert (await bad.send("POST", url, content)).status_code == 400
        answer = await bad.send("POST", url, b"{}")
        assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")
        assert (await api.send("POST", url, b" " * (10 * 1024 * 1024 + 1))).status_code == 413


@pytest.mark.parametrize("minutes", [-16, 16])
async def test_clocks_may_differ_by_15_minutes(autojump_clock: MockClock, minutes: int) -> None:
    async with virtual_queue() as api:
        url = f"{ROOT_URL}/api/auth/v1/scopes/current"

        class Elsewhere:
            def __init__(self, offset: timedelta) -> None:
                self.offset = offset

            def now(self) -> object:
                return api.ports.now() + self.offset

        for offset, expected in ((minutes, 401), (minutes * 14 / 16, 200)):
            other = Api(api.queue, Elsewhere(timedelta(minutes=offset)), api.credentials)  # type: ignore[arg-type]  # a clock is all it needs
            answer = await other.send("GET", url)
            assert answer.status_code == expected
            assert expected == 200 or answer.json()["message"] == "Stale timestamp"


async def test_a_body_other_than_the_signed_one_is_refused(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        url = f"{QUEUE}/task/{api.ports.slug()}"
        header = api.sign("PUT", url, b'{"a": 1}', "application/json")
        answer = await api.as_client(None).send(
            "PUT", url, b'{"a": 2}', **{"Authorization": header, "Content-Type": "application/json"}
        )
        assert answer.status_code == 401


async def test_nobody_in_particular_may_do_next_to_nothing(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        nobody = api.as_client(None)
        answer = await nobody.call("Queue", "status", task_id)
        assert (answer.status_code, answer.json()["code"]) == (403, "InsufficientScopes")
        assert f"queue:status:{task_id}" in answer.json()["message"]
        assert (await nobody.call("Queue", "ping")).json()["alive"] is True


async def test_a_bewit_is_good_for_one_url_and_a_while(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        assert api.credentials is not None
        client = taskcluster.Queue({"rootUrl": ROOT_URL, "credentials": dict(api.credentials)})
        # The official client knows only the machine's clock, which is ahead of the test's.
        real = client.buildSignedUrl("status", task_id)
        nobody = api.as_client(None)
        assert (await nobody.send("GET", real)).status_code == 200
        assert (await nobody.send("GET", real.replace("/status", ""))).status_code == 401
        assert (await nobody.send("POST", real)).status_code == 404
        past = client.buildSignedUrl("status", task_id, expiration=-(10**9))
        assert (await nobody.send("GET", past)).status_code == 401


async def test_errors_repeat_what_was_asked_but_no_secret(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        answer = await api.call("Secrets", "set", "a/b", {"secret": {"password": "hunter2"}, "expires": "later"})
        assert answer.status_code == 400
        assert "hunter2" not in answer.text
        body = definition(api.ports.now(), retries=-1)
        answer = await api.call("Queue", "createTask", api.ports.slug(), body)
        assert answer.json()["requestInfo"]["payload"] == json.loads(json.dumps(body))


async def test_secrets(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        secret = {"secret": {"a": 1}, "expires": to_wire(api.ports.now() + timedelta(minutes=5))}
        assert (await api.call("Secrets", "get", "a/b")).status_code == 404
        assert (await api.call("Secrets", "set", "a/b", secret)).status_code == 200
        assert (await api.call("Secrets", "get", "a/b")).json() == secret
        assert (await api.call("Secrets", "list")).json() == {"secrets": ["a/b"]}
        await trio.sleep(301)
        assert (await api.call("Secrets", "get", "a/b")).status_code in {404, 410}
        await api.call("Secrets", "set", "c", {**secret, "expires": to_wire(api.ports.now() + timedelta(hours=1))})
        for _ in range(2):
            assert (await api.call("Secrets", "remove", "c")).status_code == 200
        assert (await api.call("Secrets", "get", "c")).status_code == 404


async def test_purge_requests(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        for name in ("one", "two"):
            assert (await api.call("PurgeCache", "purgeCache", POOL, {"cacheName": name})).status_code == 204
            await trio.sleep(60)
        requests = (await api.call("PurgeCache", "purgeRequests", POOL)).json()["requests"]
        assert [request["cacheName"] for request in requests] == ["one", "two"]
        url = f"{ROOT_URL}/api/purge-cache/v1/purge-cache/{POOL.replace('/', '%2F')}?since={requests[0]['before']}"
        assert (await api.send("GET", url)).json()["requests"] == requests[1:]
        assert len((await api.call("PurgeCache", "allPurgeRequests")).json()["requests"]) == 2
        await trio.sleep(24 * 3600)
        assert (await api.call("PurgeCache", "purgeRequests", POOL)).json()["requests"] == []


async def test_authenticate_hawk_tells_who_signed(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        header = api.sign("GET", "http://elsewhere:81/x", b"", "")
        asked = {"method": "get", "resource": "/x", "host": "elsewhere", "port": 81}
        answer = (await api.call("Auth", "authenticateHawk", {**asked, "authorization": header})).json()
        assert (answer["status"], answer["clientId"]) == ("auth-success", api.queue.credentials.client_id)
        wrong = {**asked, "port": 80, "authorization": header}
        assert (await api.call("Auth", "authenticateHawk", wrong)).json()["status"] == "auth-failed"
        assert (await api.call("Auth", "authenticateHawk", asked)).json()["status"] == "no-auth"


async def test_a_token_for_a_tunnel_says_who_may_use_it_where_and_how_long(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        answer = (await api.call("Auth", "websocktunnelToken", "audience", "group.w1.x~%")).json()
        assert (answer["wstAudience"], answer["wstClient"]) == ("audience", "group.w1.x~%")
        now = api.ports.now().timestamp()
        assert read_jwt(api.queue.tunnel_secret, answer["token"]) == {
            "tid": "group.w1.x~%",
            "aud": "audience",
            "sub": api.queue.credentials.client_id,
            "iss": "taskcluster-auth",
            "iat": now,
            "nbf": now - 900,
            "exp": now + 96 * 3600,
        }
        assert answer["expires"] == to_wire(api.ports.now() + timedelta(hours=96))
        with pytest.raises(ValueError, match="signature"):
            read_jwt("another", answer["token"])
        limited = Api(
            api.queue, api.ports, api.credentials, {"authorizedScopes": ["auth:websocktunnel-token:audience/a.*"]}
        )
        assert (await limited.call("Auth", "websocktunnelToken", "audience", "a.1")).status_code == 200
        for audience, client in (("audience", "b.1"), ("other", "a.1")):
            assert (await limited.call("Auth", "websocktunnelToken", audience, client)).status_code == 403
        assert (await api.call("Auth", "websocktunnelToken", "x" * 39, "a.1")).status_code == 400


async def test_the_page_shows_tasks_and_escapes(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        metadata = {**definition(api.ports.now())["metadata"], "name": "<script>alert(1)</script>"}
        task_id = await api.create(metadata=metadata)
        page = (await api.as_client(None).send("GET", ROOT_URL + "/")).text
        assert task_id in page
        assert "<script>" not in page
        assert "development" in page
        await api.claim()
        body = {
            "storageType": "reference",
            "url": "https://e/",
            "contentType": "a/b",
            "expires": to_wire(api.ports.now()),
        }
        await api.call("Queue", "createArtifact", task_id, 0, "public/<b>", body)
        page = (await api.as_client(None).send("GET", f"{ROOT_URL}/tasks/{task_id}")).text
        assert "Run 0: running" in page
        assert "<b>" not in page
        assert (await api.send("GET", f"{ROOT_URL}/tasks/{api.ports.slug()}")).status_code == 404


async def test_a_client_that_hangs_up_in_the_middle_of_a_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    path = "/api/queue/v1/tasks/status"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "scheme": "http"}
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b'{"task', "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return next(messages)

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError(f"there is nobody to tell {message}")

    async with virtual_queue() as api:
        await api.queue.app(scope, receive, send)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
