"""The pages for people: tasks by state, each task, its logs, and a form to submit one. They need no script.

Other paths than `/`, `/submit` and those below `/tasks/` are the pages' files: `/assets/` and `/viewer/`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from html import escape
from typing import TypeAlias
from urllib.parse import parse_qs

import trio
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from worker.documents import BadDocument, parse_document
from worker.embedded import page_data
from worker.embedded.api_artifacts import last_upload
from worker.embedded.call import read_body
from worker.embedded.errors import ApiError, InputError
from worker.embedded.page_guard import TOKEN, Guard, Visitor
from worker.embedded.page_markup import Markup, tag
from worker.embedded.page_views import artifact_url, submit_view, task_name, task_view, tasks_view
from worker.embedded.routing import SLUG, Reply
from worker.embedded.store import Store
from worker.embedded.times import to_wire
from worker.embedded.waiting import Waiting
from worker.errors import Problem
from worker.ports import Ports
from worker.queue.models import CreateTaskRequest
from worker.taskfile import complete_task
from worker.viewer import Assets, Viewer, page_headers

LONGEST_WAIT = 25.0  # seconds for which an answer is held back, where the browser prefers to wait for a change
WAIT = re.compile(r"(?:^|[,;])\s*wait=(\d{1,4})\s*(?:$|[,;])")  # RFC 7240, 4.3

Act: TypeAlias = Callable[[Request, str, Mapping[str, str], object], Awaitable[Reply]]
View: TypeAlias = Callable[[Request, Visitor, Mapping[str, str]], Awaitable[Response]]


class Page:
    """Answers what is not the API's.

    `act` calls a method of the queue, by its name, with its parameters and its body, as the client who may do
    everything; it is called for visitors who have the token, and for them alone.
    """

    def __init__(self, ports: Ports, store: Store, waiting: Waiting, guard: Guard, act: Act) -> None:
        self._ports = ports
        self._store = store
        self._waiting = waiting
        self._guard = guard
        self._act = act
        self._assets = Assets("worker.embedded")
        self._viewer = Viewer()
        self._begun = ""
        task = f"/tasks/(?P<taskId>{SLUG})"
        run = f"{task}/runs/(?P<runId>0|[1-9][0-9]{{0,3}})"
        self._views: list[tuple[re.Pattern[str], dict[str, View]]] = [
            (re.compile("/"), {"GET": self._tasks}),
            (re.compile("/submit"), {"GET": self._form, "POST": self._submit}),
            (re.compile(task), {"GET": self._task}),
            (re.compile(f"{task}/cancel"), {"POST": self._cancel}),
            (re.compile(f"{run}/log"), {"GET": self._log}),
            (re.compile(f"{run}/artifacts/(?P<name>.+)"), {"GET": self._artifact}),
        ]

    def begin(self) -> None:
        """The queue answers from now on: a browser that has pages of an earlier process must take them for old."""
        self._begun = to_wire(self._ports.now())

    async def respond(self, request: Request) -> Response | None:
        """The page, or None for a path that is none."""
        path = request.scope["path"]
        for prefix, answer in (("/assets/", self._assets.respond), ("/viewer/", self._viewer.asset)):
            if path.startswith(prefix):
                return answer(path.removeprefix(prefix), request)
        for pattern, views in self._views:
            if match := pattern.fullmatch(path):
                return await self._show(request, views, match.groupdict())
        return None

    async def _show(self, request: Request, views: Mapping[str, View], params: Mapping[str, str]) -> Response:
        view = views.get(request.method.replace("HEAD", "GET"))
        visitor = self._guard.visitor(request.query_params.get(TOKEN, ""))
        try:
            self._guard.check_host(request)
            if view is None:
                return PlainTextResponse("Method not allowed", 405, {"Allow": ", ".join(views)})
            return await view(request, visitor, params)
        except ApiError as error:
            return self._html(visitor, "This cannot be done", tag("p", error.message), status=error.status)

    def _html(self, visitor: Visitor, title: str, body: Markup, *, status: int = 200, version: str = "") -> Response:
        # Forms tell where they come from only where some referrer is sent; other hosts get none.
        headers = page_headers(form="'self'", referrer="same-origin")
        if version:
            headers["ETag"] = version
        html = self._assets.fill(
            "page.html",
            title=escape(title),
            version=escape(version),
            home=escape(visitor.url("/")),
            root_url=escape(self._guard.root_url),
            submit=tag("a", "Submit a task", href=visitor.url("/submit"), class_="button") if visitor.may_act else "",
            body=body,
            read_only="" if visitor.may_act else READ_ONLY,
        )
        return HTMLResponse(html, status, headers)

    async def _changed(self, request: Request) -> str | None:
        """The version of what is to be shown; None where the browser has it, also after the wait that it prefers."""
        known = request.headers.get("if-none-match")
        wait = WAIT.search(request.headers.get("prefer", ""))
        if wait and known == self._version():
            with trio.move_on_after(min(float(wait[1]), LONGEST_WAIT)):
                await self._waiting.until_changed(self._waiting.version)
        return None if known == self._version() else self._version()

    def _version(self) -> str:
        return f'"{self._begun}/{self._waiting.version}"'

    async def _tasks(self, request: Request, visitor: Visitor, _params: Mapping[str, str]) -> Response:
        version = await self._changed(request)
        if version is None:
            return Response(status_code=304)
        state = request.query_params.get("state")
        state = state if state in page_data.STATES else None
        before = request.query_params.get("before", "")
        start = int(before) if before.isdecimal() and len(before) < 16 else None
        found = await self._store.transact(lambda tx: page_data.listing(tx, state, start))
        return self._html(visitor, "Tasks", tasks_view(found, state, visitor), version=version)

    async def _task(self, request: Request, visitor: Visitor, params: Mapping[str, str]) -> Response:
        version = await self._changed(request)
        if version is None:
            return Response(status_code=304)
        sheet = await self._sheet(params["taskId"])
        return self._html(visitor, task_name(sheet.task), task_view(sheet, visitor), version=version)

    async def _sheet(self, task_id: str) -> page_data.Sheet:
        now = to_wire(self._ports.now())
        return await self._store.transact(lambda tx: page_data.sheet(tx, task_id, now))

    async def _form(self, _request: Request, visitor: Visitor, _params: Mapping[str, str]) -> Response:
        if not visitor.may_act:
            return self._html(visitor, "Submit a task", Markup(""), status=403)
        queue = await self._store.transact(page_data.task_queue)
        return self._filled(visitor, self._assets.fill("example.yml", queue=queue), [])

    def _filled(self, visitor: Visitor, text: str, problems: list[Problem]) -> Response:
        status = 400 if problems else 200
        return self._html(visitor, "Submit a task", submit_view(text, problems, visitor), status=status)

    async def _submit(self, request: Request, visitor: Visitor, _params: Mapping[str, str]) -> Response:
        self._guard.check_action(request, visitor)
        form = await _read_form(request)
        text = form.get("task", "").replace("\r\n", "\n")
        queue = await self._store.transact(page_data.task_queue)
        task_id = self._ports.slug()
        try:
            task = await self._ports.run_sync(_read_task, text, queue, self._ports.now())
            await self._act(request, "createTask", {"taskId": task_id}, task.to_wire())
        except BadDocument as error:
            return self._filled(visitor, text, list(error.problems))
        except ApiError as error:
            return self._filled(visitor, text, [Problem("", error.message)])
        return RedirectResponse(visitor.url(f"/tasks/{task_id}"), 303)

    async def _cancel(self, request: Request, visitor: Visitor, params: Mapping[str, str]) -> Response:
        self._guard.check_action(request, visitor)
        await self._act(request, "cancelTask", params, None)
        return RedirectResponse(visitor.url(f"/tasks/{params['taskId']}"), 303)

    async def _log(self, _request: Request, visitor: Visitor, params: Mapping[str, str]) -> Response:
        task_id, run_id = params["taskId"], int(params["runId"])
        sheet = await self._sheet(task_id)
        run = sheet.task.run(run_id)
        name = task_name(sheet.task)
        url = artifact_url(task_id, run_id, sheet.log_name(run_id), visitor)
        if url is None:
            return self._html(visitor, name, tag("p", "The log of this task is not public."), status=403)
        back = visitor.url(f"/tasks/{task_id}")
        until = last_upload(run) if run.resolved else None
        title = f"{name}, run {run_id}"
        return self._viewer.page(title=title, assets="/viewer/", artifact=url, until=until, back=back)

    async def _artifact(self, request: Request, visitor: Visitor, params: Mapping[str, str]) -> Response:
        if not visitor.may_act:
            return self._html(visitor, params["name"], tag("p", "This artifact is not public."), status=403)
        reply = await self._act(request, "getArtifact", params, None)
        return JSONResponse(reply.document, reply.status, {**reply.headers, "Referrer-Policy": "no-referrer"})


READ_ONLY = tag(
    "p",
    "To submit and to cancel tasks, open the URL with the token that the queue printed when it began.",
    class_="note",
)


async def _read_form(request: Request) -> dict[str, str]:
    body = await read_body(request)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise InputError("This is not what the form sends") from None
    return {name: values[-1] for name, values in fields.items()}


def _read_task(text: str, task_queue_id: str, now: datetime) -> CreateTaskRequest:
    return complete_task(parse_document(text, "task"), "task", task_queue_id, now)
