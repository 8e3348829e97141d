"""The bodies of the pages, as functions of what they show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import quote

from worker.embedded.artifact_table import Artifact
from worker.embedded.page_data import STATES, Listing, Sheet
from worker.embedded.page_guard import Visitor
from worker.embedded.page_markup import Markup, join, tag
from worker.embedded.tasks import RESOLVED, Run, Task
from worker.embedded.times import from_wire
from worker.errors import Problem

PUBLIC = "public/"


def tasks_view(listing: Listing, state: str | None, visitor: Visitor) -> Markup:
    """The list of tasks, with a filter by state."""
    filters = [_filter("all", None, sum(listing.counts.values()), state, visitor)]
    filters += [_filter(each, each, listing.counts.get(each, 0), state, visitor) for each in STATES]
    parts = [tag("nav", tag("ul", *filters), aria_label="Tasks by state", class_="filters")]
    if listing.tasks:
        lines = [_task_line(task, visitor) for task in listing.tasks]
        parts.append(_table(["State", "Task", "Task queue", "Created", "Log"], lines, "tasks"))
    else:
        parts.append(tag("p", f"There are no {state} tasks." if state else "There are no tasks yet.", class_="empty"))
    if listing.older is not None:
        query = {"before": str(listing.older), **({"state": state} if state else {})}
        parts.append(tag("p", _link(visitor.url("/", **query), "Older tasks")))
    return join(parts)


def _filter(name: str, state: str | None, count: int, current: str | None, visitor: Visitor) -> Markup:
    url = visitor.url("/", state=state) if state else visitor.url("/")
    here = "page" if state == current else False
    return tag("li", tag("a", name, " ", tag("b", f"{count:,}"), href=url, aria_current=here))


def _task_line(task: Task, visitor: Visitor) -> Markup:
    path = f"/tasks/{task.task_id}"
    run = task.runs[-1] if task.runs else None
    log = _log_link(task, len(task.runs) - 1, visitor) if run and run.started else ""
    return tag(
        "tr",
        tag("td", _state(task.state, run)),
        tag("td", _link(visitor.url(path), task_name(task)), " ", tag("code", task.task_id)),
        tag("td", task.definition["taskQueueId"]),
        tag("td", _moment(task.definition["created"])),
        tag("td", log),
    )


def task_view(sheet: Sheet, visitor: Visitor) -> Markup:
    """One task: what it is, its runs and what they have made."""
    task = sheet.task
    facts = [("Task", tag("code", task.task_id)), ("Task queue", task.definition["taskQueueId"])]
    facts.append(("Created", _moment(task.definition["created"])))
    facts.append(("Deadline", _moment(task.definition["deadline"])))
    if visitor.may_act:
        facts += _private_facts(task, visitor)
    latest = task.runs[-1] if task.runs else None
    parts = [tag("p", _state(task.state, latest), class_="state-line"), _facts(facts)]
    if visitor.may_act and task.state not in RESOLVED:
        parts.append(_cancel_form(task, visitor))
    parts += [_run(sheet, run_id, visitor) for run_id in reversed(range(len(task.runs)))]
    if visitor.may_act:
        definition = tag("pre", json.dumps(task.definition, indent=2, ensure_ascii=False), tabindex="0")
        parts.append(tag("details", tag("summary", "Definition"), definition, id="definition"))
    return join(parts)


def _private_facts(task: Task, visitor: Visitor) -> list[tuple[str, str]]:
    metadata = task.definition["metadata"]
    dependencies = [_link(visitor.url(f"/tasks/{each}"), each) for each in task.definition["dependencies"]]
    separated = [part for each in dependencies for part in (each, " ")]
    facts: list[tuple[str, str]] = [
        ("Description", metadata["description"]),
        ("Owner", metadata["owner"]),
        ("Source", metadata["source"]),
        ("Group", tag("code", task.definition["taskGroupId"])),
        ("Priority", task.priority),
        ("Retries left", str(task.retries_left)),
        ("Depends on", join(separated)),
    ]
    return [(name, value) for name, value in facts if value]


def _cancel_form(task: Task, visitor: Visitor) -> Markup:
    form = tag(
        "form",
        tag("p", "The task is resolved as an exception, and what runs of it is ended."),
        tag("button", "Yes, cancel it", class_="danger"),
        method="post",
        action=visitor.url(f"/tasks/{task.task_id}/cancel"),
    )
    return tag("details", tag("summary", "Cancel the task …"), form, id="cancel", class_="cancel")


def _run(sheet: Sheet, run_id: int, visitor: Visitor) -> Markup:
    run = sheet.task.runs[run_id]
    facts: list[tuple[str, str]] = [("Created as", run.reason_created)]
    if run.worker_id:
        facts.append(("Worker", f"{run.worker_group}/{run.worker_id}"))
    facts.append(("Scheduled", _moment(run.scheduled)))
    if run.started:
        facts.append(("Started", _moment(run.started)))
    if run.resolved:
        lasted = f" ({_lasted(run.started, run.resolved)})" if run.started else ""
        facts.append(("Resolved", join([_moment(run.resolved), lasted])))
    artifacts = sheet.artifacts[run_id]
    lines = [_artifact_line(sheet.task.task_id, run_id, artifact, visitor) for artifact in artifacts]
    reason = f" ({run.reason_resolved})" if run.reason_resolved not in {None, run.state} else ""
    parts = [tag("h2", f"Run {run_id}: {run.state}{reason}")]
    if run.started:
        parts.append(tag("p", _log_link(sheet.task, run_id, visitor, f"Log of run {run_id}"), class_="log-line"))
    parts.append(_facts(facts))
    if lines:
        parts.append(_table(["Artifact", "Storage", "Content type"], lines, "artifacts"))
    return tag("section", *parts)


def _artifact_line(task_id: str, run_id: int, artifact: Artifact, visitor: Visitor) -> Markup:
    url = artifact_url(task_id, run_id, artifact.name, visitor)
    name = tag("a", artifact.name, href=url, rel="noreferrer") if url else artifact.name
    reason = artifact.details.get("reason")
    storage = f"{artifact.storage_type}: {reason}" if reason else artifact.storage_type
    return tag("tr", tag("td", name), tag("td", storage), tag("td", artifact.content_type))


def artifact_url(task_id: str, run_id: int, name: str, visitor: Visitor) -> str | None:
    """Where the visitor gets an artifact: anybody by the API what is public, and by its pages who has the token."""
    of_run = f"/{task_id}/runs/{run_id}/artifacts/{quote(name, safe='')}"
    if name.startswith(PUBLIC):
        return f"/api/queue/v1/task{of_run}"
    return visitor.url(f"/tasks{of_run}") if visitor.may_act else None


def submit_view(text: str, problems: Sequence[Problem], visitor: Visitor) -> Markup:
    """The form for a task, with what was wrong with what it held."""
    told: list[Markup] = []
    if problems:
        items = [
            tag("li", *((tag("code", problem.path), ": ") if problem.path else ()), problem.message)
            for problem in problems
        ]
        count = "1 problem" if len(items) == 1 else f"{len(items)} problems"
        told = [tag("div", tag("h2", count), tag("ul", *items), id="problems", role="alert")]
    field = tag(
        "textarea",
        # The parser drops a newline at the beginning.
        "\n" + text,
        id="task",
        name="task",
        rows="16",
        spellcheck="false",
        autocapitalize="off",
        autocomplete="off",
        required=True,
        aria_describedby="hint problems" if problems else "hint",
        aria_invalid="true" if problems else False,
    )
    hint = "As createTask takes it, in YAML or JSON; all but the payload may be left out."
    return tag(
        "form",
        tag("label", "Task definition", for_="task"),
        tag("p", hint, id="hint"),
        *told,
        field,
        tag("p", tag("button", "Submit", class_="primary")),
        method="post",
        action=visitor.url("/submit"),
        class_="submit",
    )


def task_name(task: Task) -> str:
    """What its author calls it."""
    return str(task.definition["metadata"]["name"]) or task.task_id


def _log_link(task: Task, run_id: int, visitor: Visitor, text: str = "log") -> Markup:
    return _link(visitor.url(f"/tasks/{task.task_id}/runs/{run_id}/log"), text)


def _state(state: str, run: Run | None) -> Markup:
    reason = run.reason_resolved if run else None
    more = [" ", tag("small", reason)] if reason and reason != state else []
    return tag("span", state, *more, class_=f"state {state}")


def _moment(text: str) -> Markup:
    return tag("time", f"{text[:10]} {text[11:19]}", datetime=text, title=text)


def _lasted(started: str, resolved: str) -> str:
    return str(timedelta(seconds=round((from_wire(resolved) - from_wire(started)).total_seconds())))


def _link(url: str, text: str) -> Markup:
    return tag("a", text, href=url)


def _facts(facts: Sequence[tuple[str, str]]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts))


def _table(heads: Sequence[str], lines: Sequence[Markup], class_: str) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    return tag("table", head, tag("tbody", *lines), class_=class_)
