"""The embedded queue's pages in Chromium, with the queue as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio
from chromium import Page
from log_server import LogServer, Proxy, serve_log
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send
from viewing import in_sight, status, worst_contrast

from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.http import open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.models import (
    CreateTaskRequest,
    LinkArtifactRequest,
    ReferenceArtifactRequest,
    S3ArtifactRequest,
)
from worker.queue.retry import RetryPolicy
from worker.queue.services import Queue
from worker.serving import listen, port_of, serve
from worker.taskfile import complete_task
from worker.viewer import Viewer

TEXT = "text/plain; charset=utf-8"
POOL = "local/native"


class World:
    """A queue on a socket, and its client, who may do everything."""

    def __init__(self, embedded: EmbeddedQueue, queue: Queue) -> None:
        self.embedded = embedded
        self.queue = queue
        self.ports = Ports()

    async def create(self, name: str = "a task") -> str:
        """A task that is pending."""
        task_id = self.ports.slug()
        await self.queue.create_task(task_id, self.task(name))
        return task_id

    def task(self, name: str) -> CreateTaskRequest:
        """A task that has little to do."""
        return complete_task({"payload": {}, "metadata": {"name": name}}, "task", POOL, datetime.now(UTC))

    async def claim(self) -> RunKey:
        """The run of the next task, which is running from now on."""
        (claim,) = (await self.queue.claim_work(POOL, "local", "w1", tasks=1)).tasks
        return RunKey(claim.status.task_id, claim.run_id)

    async def upload(self, run: RunKey, name: str, content: bytes, content_type: str = TEXT) -> None:
        """An artifact that is stored."""
        request = S3ArtifactRequest(content_type=content_type, expires=self.soon)
        created: Any = await self.queue.create_artifact(run, name, request)
        async with httpx.AsyncClient() as client:
            answer = await client.put(created.put_url, content=content, headers={"Content-Type": content_type})
            answer.raise_for_status()

    @property
    def soon(self) -> datetime:
        """When artifacts expire."""
        return datetime.now(UTC) + timedelta(hours=1)


@asynccontextmanager
async def world() -> AsyncGenerator[World, None]:
    """A queue on a socket, in real time."""
    async with open_embedded_queue(Ports()) as embedded, open_http(Ports()) as http:
        credentials = Credentials(embedded.credentials.client_id, embedded.credentials.access_token)
        deployment = Deployment(embedded.root_url, http, Ports(), RetryPolicy(attempts=1, total=10))
        yield World(embedded, Queue(deployment, lambda: credentials))


async def shows(page: Page, text: str) -> None:
    """Wait until the page says so."""
    await page.wait(f"document.body?.innerText.includes({json.dumps(text)})")


async def test_from_the_form_to_the_end_without_loading_the_list_again(page: Page) -> None:
    async with world() as here:
        await page.goto(here.embedded.page_url())
        await shows(page, "There are no tasks yet.")
        await page.evaluate("window.same = true")
        task_id = await here.create("first")
        await shows(page, task_id)
        await here.claim()
        await shows(page, "running 1")
        assert await page.evaluate("window.same")

        await page.click("header .button")
        await page.wait("document.querySelector('textarea')?.value.includes('payload')")
        await page.click("textarea")
        await page.press("End", "x")
        await page.click("form .primary")
        await shows(page, "1 problem")
        assert await page.evaluate("document.querySelector('#problems').role") == "alert"
        await page.evaluate("document.querySelector('textarea').value = 'metadata: {name: second}\\npayload: {}'")
        await page.click("form .primary")
        await shows(page, "Run 0: pending")
        assert await page.text("h1") == "second"
        await page.click("#definition summary")
        await shows(page, '"name": "second"')

        await page.click("#cancel summary")
        await page.click("#cancel .danger")
        await shows(page, "Run 0: exception (canceled)")
        assert not await page.evaluate("document.querySelector('#cancel')")
        await page.click("header a")
        await shows(page, "exception 1")


async def test_what_somebody_has_open_stays_open(page: Page) -> None:
    async with world() as here:
        task_id = await here.create()
        await page.goto(here.embedded.page_url(f"/tasks/{task_id}"))
        await page.click("#definition summary")
        await page.evaluate("document.querySelector('#cancel summary').focus()")
        await here.claim()
        await shows(page, "Run 0: running")
        assert await page.evaluate("document.querySelector('#definition').open")
        assert await page.evaluate("document.activeElement.innerText") == "Cancel the task …"


async def test_without_scripts_all_can_be_done(page: Page) -> None:
    await page.disable_scripts()
    async with world() as here:
        await page.goto(here.embedded.page_url())
        await page.click("header .button")
        await page.wait("document.querySelector('textarea')")
        await page.click("form .primary")
        await shows(page, "Run 0: pending")
        await page.click("#cancel summary")
        await page.click("#cancel .danger")
        await shows(page, "Run 0: exception (canceled)")
        await page.click("header a")
        await page.click('.filters a[href*="state=exception"]')
        await shows(page, "hello")
        assert await page.evaluate("document.querySelector('[aria-current]').innerText") == "exception 1"
        await page.click(".tasks a")
        await shows(page, "Counts to five")


async def test_a_queue_that_is_gone_is_told_of(page: Page) -> None:
    async with world() as here:
        await page.goto(here.embedded.page_url())
        await shows(page, "There are no tasks yet.")
    await shows(page, "The queue does not answer")


async def test_a_queue_that_knows_the_task_no_longer_is_told_of(page: Page) -> None:
    """It keeps nothing over a restart."""
    async with world() as here:
        await page.goto(here.embedded.page_url(f"/tasks/{await here.create()}"))
        await shows(page, "Run 0: pending")
        address = urlsplit(here.embedded.root_url)
    async with open_embedded_queue(Ports(), port=address.port or 0):
        await shows(page, "The queue answers with status 404; this is how it was.")


async def test_an_answer_that_is_cut_is_asked_for_again(page: Page) -> None:
    async with world() as here:
        proxy = Proxy(urlsplit(here.embedded.root_url).port or 0)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, proxy.handle, listeners)
            await page.goto(f"http://127.0.0.1:{port_of(listeners)}/")
            await shows(page, "There are no tasks yet.")
            proxy.cut_after(1500)  # in the middle of the page
            task_id = await here.create()
            await shows(page, task_id)
            nursery.cancel_scope.cancel()


ATTACK = """<!doctype html><title>elsewhere</title><form method="post" action="{action}">
<input name="task" value="payload: {{}}"></form>"""


async def test_a_page_from_elsewhere_cannot_send_the_form(page: Page) -> None:
    """Even if it knew the token."""
    async with world() as here:
        task_id = await here.create()
        forms = [here.embedded.page_url(path) for path in ("/submit", f"/tasks/{task_id}/cancel")]

        async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
            form = ATTACK.format(action=forms[int(scope["path"][1:])])
            await HTMLResponse(form)(scope, receive, send)

        listeners = await listen("127.0.0.1", 0)
        async with serving(elsewhere, listeners):
            for number in range(2):
                await page.goto(f"http://127.0.0.1:{port_of(listeners)}/{number}")
                await page.wait("document.title === 'elsewhere'")
                await page.evaluate("document.forms[0].submit()")
                await shows(page, "The form is not one of this queue's pages")
        await page.goto(here.embedded.page_url())
        await shows(page, "all 1")
        assert (await here.queue.status(task_id)).state == "pending"


HOSTILE = b"""<!doctype html><title>quiet</title><p>A report</p><img src=x onerror="document.title = 'ran'">
<script>document.title = 'ran'</script><form method=post action=/submit><button>press</button></form>"""


async def test_a_report_that_a_task_has_made_is_shown_and_does_nothing(page: Page) -> None:
    async with world() as here:
        await here.create()
        run = await here.claim()
        await here.upload(run, "public/report.html", HOSTILE, "text/html")
        await here.upload(run, "public/script.js", b"window.hacked = 1", "text/javascript")
        await here.upload(run, "private/result.txt", b"for owners")
        task = here.embedded.page_url(f"/tasks/{run.task_id}")
        await page.goto(task)
        await page.click('.artifacts a[href*="report.html"]')
        await shows(page, "A report")
        assert await page.evaluate("[document.title, origin]") == ["quiet", "null"]
        await page.click("button")
        assert await page.evaluate("document.title") == "quiet"

        await page.goto(task)
        assert page.complaints
        page.complaints.clear()
        await page.click('.artifacts a[href*="private"]')
        await shows(page, "for owners")
        await page.goto(task)
        url = await page.evaluate("fetch(document.querySelector('a[href*=\"script.js\"]').href).then((a) => a.url)")
        loaded = f"import({json.dumps(url)}).then(() => 'loaded', () => 'refused')"
        assert await page.evaluate(loaded) == "refused"
        assert await page.evaluate("typeof hacked") == "undefined"


async def test_a_log_from_the_worker_to_the_store(page: Page, tmp_path: Path) -> None:
    """As the viewer finds it by the queue alone: before it is there, live at another address, cut, and stored."""
    log = LogServer(Viewer())
    async with world() as here, serve_log(log) as proxy:
        await here.create("the <task>")
        run = await here.claim()
        await page.goto(here.embedded.page_url(f"/tasks/{run.task_id}"))
        await page.click(".log-line a")
        await status(page, "waiting: there is no log yet")
        assert await page.text("h1") == "the <task>, run 0"

        log.write(b"live from the worker\n" * 1000)
        reference = ReferenceArtifactRequest(content_type=TEXT, expires=here.soon, url=f"{log.url}log/")
        await here.queue.create_artifact(run, "public/logs/live.log", reference)
        await status(page, "live")
        await in_sight(page, 1000)
        proxy.cut()
        log.write(b"and on\n" * 1000)
        await in_sight(page, 2000)

        log.detach()
        log.write(b"[taskcluster:error] the end\n")
        await here.upload(run, "public/logs/live_backing.log", bytes(log.content))
        link = LinkArtifactRequest(artifact="public/logs/live_backing.log", content_type=TEXT, expires=here.soon)
        await here.queue.create_artifact(run, "public/logs/live.log", link)
        await status(page, "ended")
        received = await page.download("#save", tmp_path)
        assert hashlib.sha256(received).digest() == hashlib.sha256(log.content).digest()
        assert [kind for kind, _ in log.asked] == ["http", "websocket", "websocket"]
        await page.click("h1 a")
        await shows(page, "Run 0: running")
        assert await page.evaluate("!!document.querySelector('#cancel')")

        # By another name of this machine the log is at another origin.
        other = here.embedded.root_url.replace("127.0.0.1", "localhost")
        await page.goto(f"{other}/tasks/{run.task_id}/runs/0/log")
        await status(page, "ended")
        await in_sight(page, 2001)


async def test_a_run_that_ended_without_a_log_promises_none(page: Page) -> None:
    async with world() as here:
        await here.create()
        run = await here.claim()
        await here.queue.report_failed(run)
        await page.goto(here.embedded.page_url(f"/tasks/{run.task_id}/runs/0/log"))
        await status(page, "cut off: reload (this run has no log)")


async def test_the_workers_page_of_a_log_goes_on_in_what_the_queue_has_stored(page: Page, tmp_path: Path) -> None:
    """The page and the queue are at two origins."""
    async with world() as here:
        await here.create()
        run = await here.claim()
        path = f"/api/queue/v1/task/{run.task_id}/runs/0/artifacts/public%2Flogs%2Flive.log"
        log = LogServer(Viewer(), artifact=here.embedded.root_url + path)
        log.write(b"live\n")
        async with serve_log(log):
            await page.goto(f"{log.url}log/view")
            await in_sight(page, 1)
            log.detach()
            await status(page, "reconnecting")
            log.write(b"and stored\n")
            await here.upload(run, "public/logs/live.log", bytes(log.content))
            await status(page, "ended")
            received = await page.download("#save", tmp_path)
            assert received == log.content


async def test_pages_by_ear_and_by_keyboard(page: Page) -> None:
    async with world() as here:
        await here.create("one")
        task_id = await here.create("two")
        for dark in (False, True):
            await page.look(width=320, dark=dark)
            await page.goto(here.embedded.page_url())
            await shows(page, "all 2")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320
            assert (await worst_contrast(page))[0] >= 4.5
        heard = [(role, name) for role, name, _ in await page.accessible()]
        for expected in [
            ("banner", ""),
            ("main", ""),
            ("navigation", "Tasks by state"),
            ("heading", "Tasks"),
            ("link", "pending 2"),
            ("columnheader", "State"),
            ("link", "two"),
            ("contentinfo", ""),
        ]:
            assert expected in heard, f"{expected} is not among {heard}"
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.innerText") == "Skip to the content"
        await page.press("Enter")
        await page.press(*["Tab"] * 8)
        assert await page.evaluate("document.activeElement.innerText") == "two"
        await page.press("Enter")
        await shows(page, "Run 0: pending")

        await page.goto(here.embedded.page_url("/submit"))
        await page.wait("document.querySelector('textarea')")
        heard = [(role, name) for role, name, _ in await page.accessible()]
        assert ("textbox", "Task definition") in heard
        assert ("button", "Submit") in heard
        for dark in (False, True):
            await page.look(dark=dark)
            for path in ("/submit", f"/tasks/{task_id}", f"/tasks/{here.ports.slug()}"):
                await page.goto(here.embedded.page_url(path))
                await page.wait("document.querySelector('footer')")
                assert (await worst_contrast(page))[0] >= 4.5


@asynccontextmanager
async def serving(app: Any, listeners: list[Any]) -> AsyncGenerator[None, None]:
    """Serve `app` for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, app, listeners)
        yield
        nursery.cancel_scope.cancel()
