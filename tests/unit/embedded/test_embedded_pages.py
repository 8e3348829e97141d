"""The pages, in virtual time: what they show to whom, and from whom they take orders."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import httpx
import pytest
import trio
from embedded_world import ROOT_URL, Api, virtual_queue
from starlette.requests import Request
from starlette.responses import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.embedded.app import Application
from worker.embedded.page_markup import Markup, tag
from worker.embedded.routing import Router
from worker.embedded.times import to_wire
from worker.ports import Ports

FORM = "application/x-www-form-urlencoded"
Headers: TypeAlias = Mapping[str, str]
NONE: Headers = {}
TYPE = {"Content-Type": "text/html"}


class Browser:
    """Somebody who looks at the pages, with the token unless told otherwise."""

    def __init__(self, api: Api) -> None:
        self.api = api.as_client(None)
        self.token = api.queue.page_url().partition("token=")[2]

    async def get(self, path: str, headers: Headers = NONE, *, token: str | None = None) -> httpx.Response:
        """A page."""
        url = f"{path}{'&' if '?' in path else '?'}token={self.token if token is None else token}"
        return await self.api.send("GET", ROOT_URL + url, b"", **headers)

    async def post(
        self, path: str, headers: Headers = NONE, /, *, token: str | None = None, **fields: str
    ) -> httpx.Response:
        """Send a form, as a browser does from a page of this queue."""
        body = urlencode(fields).encode()
        sent = {"Content-Type": FORM, "Origin": ROOT_URL, "Sec-Fetch-Site": "same-origin", **headers}
        url = f"{ROOT_URL}{path}?token={self.token if token is None else token}"
        return await self.api.send("POST", url, body, **sent)


@asynccontextmanager
async def browsing() -> AsyncGenerator[tuple[Api, Browser], None]:
    """A queue, its root client, and somebody who looks at its pages."""
    async with virtual_queue() as api:
        yield api, Browser(api)


async def count(api: Api) -> int:
    """How many tasks there are."""
    page = await Browser(api).get("/")
    match = re.search(r">all <b>(\d+)</b>", page.text)
    assert match
    return int(match[1])


async def test_tasks_by_state(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        first = await api.create()
        await api.claim()
        await api.call("Queue", "reportFailed", first, 0)
        second = await api.create()
        assert "There are no running tasks" in (await browser.get("/?state=running")).text
        failed = (await browser.get("/?state=failed")).text
        assert first in failed
        assert second not in failed
        assert "failed <b>1</b>" in failed
        assert 'aria-current="page">failed' in failed
        everything = (await browser.get("/?state=nonsense")).text
        assert everything.index(second) < everything.index(first)


async def test_many_tasks_come_in_pages(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        tasks = [await api.create() for _ in range(205)]
        seen, path = [], "/?state=pending"
        while path:
            page = (await browser.get(path)).text
            seen += re.findall(r"<code>([\w-]{22})</code>", page)
            older = re.search(r'<a href="([^"]+)">Older tasks', page)
            path = older[1].replace("&amp;", "&") if older else ""
        assert seen == tasks[::-1]


async def test_who_has_no_token_may_look_but_sees_no_definition(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create(payload={"env": {"KEY": "for-owners"}})
        await api.claim()
        for name in ("public/a", "private/b"):
            body = {"storageType": "reference", "url": "https://e/", "contentType": "a/b", "expires": soon(api)}
            await api.call("Queue", "createArtifact", task_id, 0, name, body)
        missing = {"storageType": "error", "reason": "file-missing-on-worker", "message": "", "expires": soon(api)}
        await api.call("Queue", "createArtifact", task_id, 0, "public/c", missing)
        owners = await browser.get(f"/tasks/{task_id}")
        assert "error: file-missing-on-worker" in owners.text
        assert "for-owners" in owners.text
        assert f"/tasks/{task_id}/cancel" in owners.text
        assert f"/tasks/{task_id}/runs/0/artifacts/private%2Fb?token={browser.token}" in owners.text
        for token in ("", "0" * 64, browser.token[:-1], api.queue.credentials.access_token):
            others = await browser.get(f"/tasks/{task_id}", token=token)
            assert others.status_code == 200
            assert "Run 0: running" in others.text
            assert "private/b" in others.text
            assert f"/api/queue/v1/task/{task_id}/runs/0/artifacts/public%2Fa" in others.text
            hidden = ("for-owners", "<form", "/submit", "artifacts/private", browser.token)
            assert not any(text in others.text for text in hidden)
            assert (await browser.get("/submit", token=token)).status_code == 403
            refused = await browser.get(f"/tasks/{task_id}/runs/0/artifacts/private%2Fb", token=token)
            assert (refused.status_code, "location" in refused.headers) == (403, False)


def soon(api: Api) -> str:
    return to_wire(api.ports.now() + timedelta(minutes=30))


async def test_the_token_of_the_pages_is_not_that_of_the_api(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        assert api.queue.credentials.access_token not in api.queue.page_url()
        stranger = {"clientId": api.queue.credentials.client_id, "accessToken": browser.token}
        answer = await api.as_client(stranger).call("Queue", "status", await api.create())
        assert answer.status_code == 401


async def test_a_task_from_the_form(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        with trio.move_on_after(1):
            await api.claim(pool="local/other")
        form = (await browser.get("/submit")).text
        example = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", form, re.S)
        assert example
        text = example[1].replace("&#x27;", "'").replace("&quot;", '"')
        assert "taskQueueId: local/other" in text
        answer = await browser.post("/submit", task=text.replace("\n", "\r\n"))
        assert answer.status_code == 303
        task_id = re.fullmatch(rf"/tasks/([\w-]{{22}})\?token={browser.token}", answer.headers["location"])
        assert task_id
        created = (await api.call("Queue", "task", task_id[1])).json()
        assert created["taskQueueId"] == "local/other"
        assert created["payload"]["command"][0][2] == 'for i in 1 2 3 4 5; do echo "hello $i"; sleep 1; done'
        assert (await api.status(task_id[1]))["state"] == "pending"


MISTAKES = {
    "payload: {}\nretries: many\nroute: []": ["<code>retries</code>: ", "<code>route</code>: is not a known name"],
    '{"payload": {}, "metadata": {"nam": 1}}': ["<code>metadata.nam</code>: is not a known name; did you mean name"],
    "payload: {}\npayload: {}": ["payload is there twice"],
    "payload: [": ["<code>line "],
    "- a list": ["expected an object"],
    "": ["<code>payload</code>: is required and is missing"],
    "payload: {}\ndeadline: 2000-01-01T00:00:00Z": ["<code>deadline</code>: expected a time from"],
    "payload: {}\ndependencies: [CufX7mTpR1WduEkUVB7eXw]": ["depends on tasks that do not exist"],
    "payload: {}\ntaskQueueId: nonsense": ["<code>taskQueueId</code>: "],
    "payload: {}\nx: </textarea><script>": ["<code>x</code>: is not", "x: &lt;/textarea&gt;&lt;script&gt;"],
}


@pytest.mark.parametrize("text", MISTAKES)
async def test_what_is_wrong_with_a_task_is_told_beside_it(autojump_clock: MockClock, text: str) -> None:
    async with browsing() as (api, browser):
        answer = await browser.post("/submit", task=text)
        assert answer.status_code == 400
        shown = answer.text
        assert all(part in shown for part in MISTAKES[text]), shown
        assert text.split("\n")[0].replace('"', "&quot;") in shown
        assert "</textarea><script>" not in shown
        assert 'aria-describedby="hint problems"' in shown
        assert await count(api) == 0


async def test_cancelling(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create()
        answer = await browser.post(f"/tasks/{task_id}/cancel")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/tasks/{task_id}?token={browser.token}")
        assert (await api.status(task_id))["runs"][0]["reasonResolved"] == "canceled"
        page = (await browser.get(f"/tasks/{task_id}")).text
        assert "Run 0: exception (canceled)" in page
        assert "/cancel" not in page
        failed = await browser.post(f"/tasks/{api.ports.slug()}/cancel")
        assert failed.status_code == 404
        # Who has the token keeps it.
        assert f'href="/?token={browser.token}"' in failed.text
        assert "open the URL with the token" not in failed.text
        assert (await browser.get(f"/tasks/{task_id}/cancel")).status_code == 405


FOREIGN: list[tuple[dict[str, str], dict[str, str], int]] = [
    ({}, {"token": ""}, 403),
    ({}, {"token": "0" * 64}, 403),
    ({"Origin": "https://evil.example"}, {}, 403),
    ({"Origin": "null"}, {}, 403),
    ({"Origin": "http://["}, {}, 403),
    ({"Origin": "http://queue.test:81"}, {}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, {}, 403),
    ({"Sec-Fetch-Site": "same-site"}, {}, 403),
    ({"Host": "evil.example", "Origin": "http://evil.example"}, {}, 421),
]


@pytest.mark.parametrize(("headers", "fields", "status"), FOREIGN)
async def test_forms_of_others_change_nothing(
    autojump_clock: MockClock, headers: dict[str, str], fields: dict[str, str], status: int
) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create()
        for path in ("/submit", f"/tasks/{task_id}/cancel"):
            answer = await browser.post(path, headers, task="payload: {}", **fields)
            assert answer.status_code == status
        assert await count(api) == 1
        assert (await api.status(task_id))["state"] == "pending"


async def test_a_form_that_is_none(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        assert (await browser.post("/submit", NONE, **{f"f{n}": "" for n in range(20)})).status_code == 400
        answer = await browser.api.send("POST", f"{ROOT_URL}/submit?token={browser.token}", b"\xff\xfe=%ff")
        assert answer.status_code == 400
        assert await count(api) == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("queue.test", 200),
        ("queue.test:8080", 200),
        ("localhost:9", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:9", 200),
        ("192.168.1.5", 200),
        ("evil.example", 421),
        ("queue.test.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("[", 421),
        ("[::1", 421),
        ("queue.test]", 421),
    ],
)
async def test_a_name_that_others_have_pointed_here_shows_nothing(
    autojump_clock: MockClock, host: str, status: int
) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create()
        for path in ("/", f"/tasks/{task_id}", "/submit"):
            answer = await browser.get(path, {"Host": host})
            assert answer.status_code == status
            assert (task_id in answer.text) == (status == 200 and path != "/submit")


async def test_a_host_that_is_none_signs_nothing(autojump_clock: MockClock) -> None:
    async with browsing() as (_, browser):
        answer = await browser.api.send("GET", f"{ROOT_URL}/api/queue/v1/ping", b"", Host="[")
        assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")


async def test_an_error_of_ours_ends_one_answer_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_request: Request) -> Response:
        raise RuntimeError("details")

    app = Application(Ports(), Router([]), dict, broken)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        answer = await client.get(f"{ROOT_URL}/tasks/x?token=secret")
    assert answer.status_code == 500
    assert "details" not in answer.text
    assert "GET /tasks/x failed" in caplog.text
    assert "secret" not in caplog.text


async def test_a_browser_that_waits_is_told_of_changes(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        page = await browser.get("/")
        version = page.headers["etag"]
        waiting = {"If-None-Match": version, "Prefer": "respond-async, wait=20"}
        begun = trio.current_time()
        assert (await browser.get("/", waiting)).status_code == 304
        assert trio.current_time() - begun == pytest.approx(20)

        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await browser.get("/", waiting))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            begun = trio.current_time()
            task_id = await api.create()
        assert trio.current_time() - begun < 1
        assert task_id in answers[0].text
        assert answers[0].headers["etag"] != version
        # Who has an old page need not wait.
        assert (await browser.get(f"/tasks/{task_id}", waiting)).status_code == 200


async def test_who_waits_is_answered_when_the_queue_stops(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with browsing() as (_, browser):
            version = (await browser.get("/")).headers["etag"]

            async def wait() -> None:
                assert (await browser.get("/", {"Prefer": "wait=20", "If-None-Match": version})).status_code == 304

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            begun = trio.current_time()
        assert trio.current_time() - begun < 1


async def test_what_a_task_has_made_gets_no_powers(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create()
        (claim,) = await api.claim()
        worker = api.as_client(claim["credentials"])
        body = {"storageType": "s3", "contentType": "text/html", "expires": soon(api)}
        url = (await worker.call("Queue", "createArtifact", task_id, 0, "private/x.html", body)).json()["putUrl"]
        await browser.api.send("PUT", url, b"<script>", **TYPE)

        found = await browser.get(f"/tasks/{task_id}/runs/0/artifacts/{quote('private/x.html', safe='')}")
        assert found.status_code == 303
        shown = await browser.api.send("GET", found.headers["location"])
        assert (shown.status_code, shown.text) == (200, "<script>")
        assert shown.headers["content-security-policy"] == "sandbox"
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert shown.headers["referrer-policy"] == "no-referrer"
        statuses = {"document": 200, "empty": 200, "image": 200}
        for destination in (*statuses, "script", "style", "worker", "serviceworker", "iframe", "object"):
            headers = {"Sec-Fetch-Dest": destination}
            asked = await browser.api.send("GET", found.headers["location"], b"", **headers)
            assert asked.status_code == statuses.get(destination, 403)
        api_answer = await worker.call("Queue", "status", task_id)
        assert api_answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("payload", "artifacts", "name"),
    [
        ({}, [], "public/logs/live.log"),
        ({}, ["public/logs/live_backing.log"], "public/logs/live_backing.log"),
        ({"logs": {"live": "public/x.log"}}, [], "public/x.log"),
        ({"logs": "nonsense"}, [], "public/logs/live.log"),
        ({"logs": {"live": ["public/x.log"]}}, ["public/logs/live.log"], "public/logs/live.log"),
        ({"log": "public/my.log"}, [], "public/my.log"),
        ({"logs": {"live": 'private/<">'}}, [], 'private/<">'),
    ],
)
async def test_the_page_of_a_log(
    autojump_clock: MockClock, payload: dict[str, Any], artifacts: list[str], name: str
) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create(payload=payload)
        assert (await browser.get(f"/tasks/{task_id}/runs/1/log")).status_code == 404
        await api.claim()
        for artifact in artifacts:
            body = {"storageType": "reference", "url": "https://e/", "contentType": "a/b", "expires": soon(api)}
            await api.call("Queue", "createArtifact", task_id, 0, artifact, body)
        page = await browser.get(f"/tasks/{task_id}/runs/0/log")
        path = f"/task{'' if name.startswith('public/') else 's'}/{task_id}/runs/0/artifacts/{quote(name, safe='')}"
        assert re.search(rf'data-artifact="[a-z0-9/]*{re.escape(path)}["?]', page.text)
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        if not name.startswith("public/"):
            assert (await browser.get(f"/tasks/{task_id}/runs/0/log", token="")).status_code == 403


async def test_the_page_of_a_log_knows_when_none_can_come_any_more(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):

        async def until(method: str | None, *body: object) -> timedelta | None:
            task_id = await api.create()
            await api.claim()
            if method is not None:
                await api.call("Queue", method, task_id, 0, *body)
            found = re.search(r'data-until="(.*?)"', (await browser.get(f"/tasks/{task_id}/runs/0/log")).text)
            assert found
            return datetime.fromisoformat(found[1]) - api.ports.now() if found[1] else None

        assert await until(None) is None
        assert await until("reportFailed") == timedelta()
        # Another worker may have taken over, or the same one be late.
        assert await until("reportException", {"reason": "internal-error"}) == timedelta(minutes=25)


async def test_pages_of_others_may_read_what_the_api_tells_anybody_and_no_more(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        task_id = await api.create()
        await api.claim()
        for name in ("public/a", "private/b"):
            body = {"storageType": "reference", "url": "https://e/", "contentType": "a/b", "expires": soon(api)}
            await api.call("Queue", "createArtifact", task_id, 0, name, body)
        artifact = f"/api/queue/v1/task/{task_id}/runs/0/artifacts"
        paths = {
            f"{artifact}/public%2Fa": 303,
            f"{artifact}/public%2Fnothing": 404,
            f"{artifact}/private%2Fb": 403,
            artifact: 403,
            f"/api/queue/v1/task/{task_id}": 403,
            f"/api/queue/v1/task/{task_id}/status": 403,
            "/api/nothing": 404,
            "/": 200,
            f"/tasks/{task_id}": 200,
        }
        for path, status in paths.items():
            answer = await browser.api.send("GET", ROOT_URL + path)
            assert answer.status_code == status
            readable = answer.headers.get("access-control-allow-origin") == "*"
            assert readable == path.startswith("/api/")


async def test_pages_and_their_files_are_told_apart(autojump_clock: MockClock) -> None:
    async with browsing() as (api, browser):
        page = await browser.get("/")
        assert page.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        assert page.headers["referrer-policy"] == "same-origin"
        for path in re.findall(r'(?:src|href)="(/(?:assets|viewer)/[^"]+)"', page.text):
            assert (await browser.get(path)).status_code == 200
        for path in ("/assets/page.html", "/assets/example.yml", "/viewer/view.html", "/assets/", "/tasks/", "/x"):
            assert (await browser.get(path)).status_code == 404
        assert (await api.send("HEAD", f"{ROOT_URL}/")).status_code == 200


def test_text_is_never_markup() -> None:
    made = tag("a", "<b>", tag("i", "&"), Markup("<hr>"), href='"><script>', hidden=True, title=False, aria_label="'")
    assert made == '<a href="&quot;&gt;&lt;script&gt;" hidden aria-label="&#x27;">&lt;b&gt;<i>&amp;</i><hr></a>'
    assert tag("p", name="class", class_="x") == '<p name="class" class="x"></p>'
