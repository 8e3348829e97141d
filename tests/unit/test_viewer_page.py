"""The log viewer's page and files, as browsers are answered. What the page does, tests/browser shows."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from worker.viewer import LogView, Viewer

PAGE = "/secret/view"


def client(**options: Any) -> httpx.AsyncClient:
    """Asks for what is below `/secret`, as a live log has it."""
    view = LogView(Viewer(), **{"title": "A log", **options})

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await view({**scope, "path": scope["path"].removeprefix("/secret")}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=mounted), base_url="http://worker.test")


async def test_the_page_is_told_to_trust_nobody() -> None:
    async with client() as http:
        page = await http.get(PAGE)
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    assert "<script>" not in page.text
    assert 'data-live="./" data-artifact=""' in page.text


async def test_a_log_that_the_queue_leads_to_may_be_anywhere() -> None:
    async with client(artifact="https://queue.test/a?b&c") as http:
        page = await http.get(PAGE)
    assert "connect-src 'self' http: https: ws: wss:;" in page.headers["content-security-policy"]
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert 'data-artifact="https://queue.test/a?b&amp;c"' in page.text


async def test_names_do_not_become_markup() -> None:
    async with client(title="</title><script>", artifact='https://queue.test/"><script>') as http:
        page = await http.get(PAGE)
    assert page.text.count("<script") == 1
    assert "&lt;/title&gt;&lt;script&gt;" in page.text


async def test_files_are_sent_once_and_by_their_name_alone() -> None:
    async with client() as http:
        script = await http.get(f"{PAGE}/main.js")
        assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        assert script.headers["x-content-type-options"] == "nosniff"
        again = await http.get(f"{PAGE}/main.js", headers={"If-None-Match": script.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for path in ("/nothing.js", "/view.html", "/%2e%2e/view.py", "/..%2fview.py", "/", "er"):
            assert (await http.get(PAGE + path)).status_code == 404


@pytest.mark.parametrize("path", ["", "/main.js"])
async def test_nobody_can_send_anything(path: str) -> None:
    async with client() as http:
        answer = await http.post(PAGE + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await http.head(PAGE + path)).status_code == 200


async def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody listens")

    await LogView(Viewer(), title="A log")({"type": "websocket", "path": "/view"}, receive, send)
    assert sent == [{"type": "websocket.close"}]
