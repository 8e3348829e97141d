"""The page at `/`: what this is, and the latest tasks. Read-only, without scripts and foreign hosts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from html import escape
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from worker.embedded import artifact_table, task_table
from worker.embedded.routing import PATTERNS
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Task
from worker.embedded.times import to_wire

LATEST = 100
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-store"}
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid #ddd }}
code {{ font-size: 13px }}
</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""
ABOUT = """<p>This queue is for development, tests and one machine. Production is a Taskcluster deployment, which a
worker reaches by its <code>rootUrl</code>. The <code>rootUrl</code> of this one is <code>{root_url}</code>.</p>"""


class Page:
    """Answers `/` and `/tasks/<taskId>`."""

    def __init__(self, store: Store, root_url: Callable[[], str], now: Callable[[], datetime]) -> None:
        self._store = store
        self._root_url = root_url
        self._now = now

    async def respond(self, request: Request) -> Response | None:
        """The page, or None for any other path."""
        if request.method not in {"GET", "HEAD"}:
            return None
        path = request.url.path
        if path == "/":
            html = await self._store.transact(_latest)
            return _html("Embedded Taskcluster queue", ABOUT.format(root_url=escape(self._root_url())) + html)
        task_id = path.removeprefix("/tasks/")
        if task_id != path and PATTERNS["taskId"].fullmatch(task_id):
            now = to_wire(self._now())
            html = await self._store.transact(lambda tx: _task(tx, task_id, now))
            return _html(f"Task {task_id}", html)
        return None


def _html(title: str, body: str) -> Response:
    return HTMLResponse(TEMPLATE.format(title=escape(title), body=body), headers=HEADERS)


def _latest(tx: Transaction) -> str:
    rows = [task_table.from_row(row) for row in task_table.select(tx, "TRUE ORDER BY seq DESC LIMIT ?", LATEST)]
    if not rows:
        return "<p>There are no tasks yet.</p>"
    lines = [
        f"<tr><td>{_link(f'/tasks/{task.task_id}', task.task_id)}</td><td>{escape(_name(task))}</td>"
        f"<td>{escape(task.definition['taskQueueId'])}</td><td>{task.state}</td>"
        f"<td>{_link(_artifact_url(task.task_id, None, 'public/logs/live.log'), 'log')}</td></tr>"
        for task in rows
    ]
    return _table(["Task", "Name", "Task queue", "State", "Log"], lines)


def _task(tx: Transaction, task_id: str, now: str) -> str:
    task = task_table.get(tx, task_id)
    parts = [f"<p>{escape(_name(task))}: {task.state}</p>", '<p><a href="/">All tasks</a></p>']
    for run_id, run in enumerate(task.runs):
        rows = tx.all(
            "SELECT * FROM artifacts WHERE task_id = ? AND run_id = ? AND present AND expires > ? ORDER BY name",
            task_id,
            run_id,
            now,
        )
        lines = [
            f"<tr><td>{_link(_artifact_url(task_id, run_id, artifact.name), artifact.name)}</td>"
            f"<td>{escape(artifact.storage_type)}</td><td>{escape(artifact.content_type)}</td></tr>"
            for artifact in map(artifact_table.from_row, rows)
        ]
        reason = f" ({run.reason_resolved})" if run.reason_resolved else ""
        parts.append(f"<h2>Run {run_id}: {run.state}{escape(reason)}</h2>")
        parts.append(_table(["Artifact", "Storage", "Content type"], lines))
    return "\n".join(parts)


def _artifact_url(task_id: str, run_id: int | None, name: str) -> str:
    of_run = "" if run_id is None else f"/runs/{run_id}"
    return f"/api/queue/v1/task/{task_id}{of_run}/artifacts/{quote(name, safe='')}"


def _name(task: Task) -> str:
    return str(task.definition["metadata"]["name"])


def _link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}">{escape(text)}</a>'


def _table(heads: list[str], lines: list[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>"
