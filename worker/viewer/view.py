"""The log viewer's page."""

from __future__ import annotations

from datetime import datetime
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.viewer.assets import Assets
from worker.viewer.headers import page_headers

# A queue redirects to wherever a log is: another port, a store of objects.
ANYWHERE = "'self' http: https: ws: wss:"


class Viewer:
    """Makes the pages and has their files. One is enough for all logs; to make it blocks."""

    def __init__(self) -> None:
        self._assets = Assets("worker.viewer")

    def page(
        self,
        *,
        title: str,
        assets: str,
        live: str | None = None,
        artifact: str | None = None,
        until: datetime | None = None,
        back: str | None = None,
    ) -> Response:
        """The page of a log.

        URLs may be relative to the page's own. `live` serves the log while it is written; `artifact` is where the queue
        leads to the log, live or stored, and where none appears after `until`; one of them must be there. `assets` ends
        in `/` and is where the files are (`asset`). `back` is a page about what the log belongs to.
        """
        raw = artifact or live
        assert raw is not None, "a page without a log"
        heading = f'<a href="{escape(back)}">{escape(title)}</a>' if back else escape(title)
        html = self._assets.fill(
            "view.html",
            title=escape(title),
            heading=heading,
            assets=escape(assets),
            live=escape(live or ""),
            artifact=escape(artifact or ""),
            until=until.isoformat() if until else "",
            raw=f'<a href="{escape(raw)}">The log as it is</a>',
        )
        return HTMLResponse(html, headers=page_headers(connect=ANYWHERE if artifact else "'self'"))

    def asset(self, name: str, request: Request) -> Response:
        """The answer to a request for one of the files."""
        return self._assets.respond(name, request)


class LogView:
    """An ASGI application for `<U>view` and what is below it, where `<U>` is the URL of a live log (ending in `/`).

    The scope's path begins below `<U>`: `/view`, `/view/main.js`. `artifact` is the URL at which the queue leads to the
    log when it is live no longer.
    """

    def __init__(self, viewer: Viewer, *, title: str, artifact: str | None = None) -> None:
        self._viewer = viewer
        self._title = title
        self._artifact = artifact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; websockets are refused."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        response: ASGIApp = self._respond(Request(scope))
        await response(scope, receive, send)

    def _respond(self, request: Request) -> Response:
        name = request.scope["path"].removeprefix("/view")
        if name.startswith("/"):
            return self._viewer.asset(name[1:], request)
        if name:
            return PlainTextResponse("Not found", 404)
        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("Method not allowed", 405, {"Allow": "GET, HEAD"})
        return self._viewer.page(title=self._title, assets="view/", live="./", artifact=self._artifact)
