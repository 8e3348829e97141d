"""The index: what completed tasks, and people, put into it, and what is found there, in virtual time."""

from __future__ import annotations

import logging
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from embedded_world import ROOT_URL, Api, virtual_queue
from trio.testing import MockClock

from worker.embedded.store import VERSION_1
from worker.embedded.times import to_wire

PATH = "project.x.latest"


async def complete(api: Api, report: str = "reportCompleted", **changes: Any) -> str:
    """A task with a route to `PATH` that was run."""
    task_id = await api.create(**{"routes": [f"index.{PATH}"], **changes})
    (claim,) = await api.claim()
    answer = await api.as_client(claim["credentials"]).call("Queue", report, task_id, 0)
    assert answer.status_code == 200, answer.text
    return task_id


async def found(api: Api, path: str = PATH) -> dict[str, Any] | None:
    answer = await api.call("Index", "findTask", path)
    if answer.status_code == 404:
        assert answer.json()["code"] == "ResourceNotFound"
        return None
    document: dict[str, Any] = answer.json()
    return document


async def insert(api: Api, path: str, task_id: str, *, rank: float = 0, hours: float = 1) -> dict[str, Any]:
    body = {"taskId": task_id, "rank": rank, "data": {}, "expires": to_wire(api.ports.now() + timedelta(hours=hours))}
    answer = await api.call("Index", "insertTask", path, body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def listed(api: Api, method: str, namespace: str) -> list[str]:
    answer = (await api.call("Index", method, namespace)).json()
    (items,) = answer.values()
    return [item["namespace"] for item in items]


async def test_a_task_is_indexed_when_it_has_completed(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        for report in ("reportFailed", "reportCompleted"):
            task_id = await complete(api, report, routes=["index.a.b", "index.c", "index.not/a.path", "other.a.d"])
            expires = to_wire(api.ports.now() + timedelta(days=1))
            entry = {"namespace": "a.b", "taskId": task_id, "rank": 0, "data": {}, "expires": expires}
            completed = report == "reportCompleted"
            assert await found(api, "a.b") == (entry if completed else None)
            assert await found(api, "c") == (entry | {"namespace": "c"} if completed else None)
        assert await found(api, "a.d") is None
        assert (await api.call("Index", "findTask", "not/a.path")).status_code == 400


async def test_extra_says_rank_expiry_and_data(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        expires = to_wire(api.ports.now() + timedelta(minutes=5))
        wishes = {"rank": 2.5, "expires": expires, "data": {"a": [1]}}
        task_id = await complete(api, extra={"index": wishes})
        assert await found(api) == {"namespace": PATH, "taskId": task_id, **wishes}
        await trio.sleep(301)
        assert await found(api) is None
        assert await listed(api, "listNamespaces", "") == await listed(api, "listTasks", "project.x") == []


@pytest.mark.parametrize(
    "wishes", [7, None, {"rank": "1"}, {"rank": True}, {"data": None}, {"expires": "soon"}, {"expires": 5}]
)
async def test_wishes_out_of_form_are_told_and_hurt_no_report(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, wishes: object
) -> None:
    async with virtual_queue() as api:
        task_id = await complete(api, extra={"index": wishes})
        assert (await api.status(task_id))["state"] == "completed"
        assert await found(api) is None
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith(f"task {task_id} is not indexed: extra.index")


async def test_the_highest_rank_stays_and_of_equal_ones_the_latest(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        first, second, third, last = (api.ports.slug() for _ in range(4))
        assert (await insert(api, PATH, first, rank=1))["taskId"] == first
        assert (await insert(api, PATH, second, rank=1))["taskId"] == second
        assert (await insert(api, PATH, third, rank=0))["taskId"] == second
        await complete(api)
        assert ((await found(api)) or {})["taskId"] == second
        await trio.sleep(3601)
        assert (await insert(api, PATH, last, rank=0))["taskId"] == last, "what has expired has no rank any more"


async def test_a_rank_that_no_answer_could_hold_is_refused(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        body = {"taskId": api.ports.slug(), "rank": 10**400, "data": {}, "expires": to_wire(api.ports.now())}
        answer = await api.call("Index", "insertTask", PATH, body)
        assert (answer.status_code, "rank" in answer.json()["message"]) == (400, True)


async def test_namespaces_are_listed_down_from_the_root(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = api.ports.slug()
        for hours, path in enumerate(("top", "a.b.c", "a.b.d", "a.e", "f.g"), 1):
            await insert(api, path, task_id, hours=hours)
        assert await listed(api, "listNamespaces", "") == ["a", "f"]
        assert await listed(api, "listNamespaces", "a") == ["a.b"]
        assert await listed(api, "listNamespaces", "a.b") == []
        assert await listed(api, "listTasks", "") == ["top"]
        assert await listed(api, "listTasks", "a") == ["a.e"]
        assert await listed(api, "listTasks", "a.b") == ["a.b.c", "a.b.d"]
        (namespace,) = (await api.call("Index", "listNamespaces", "a")).json()["namespaces"]
        assert namespace["expires"] == to_wire(api.ports.now() + timedelta(hours=3)), "as long as its last entry"
        for _ in range(2):
            assert (await api.call("Index", "deleteTask", "a.e")).json() == {}
        assert await found(api, "a.e") is None
        assert await listed(api, "listNamespaces", "") == ["a", "f"]
        for method in ("insertTask", "deleteTask"):
            answer = await api.call("Index", method, "", *([{}] if method == "insertTask" else []))
            assert answer.status_code == 400


async def test_long_lists_come_in_pages(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        paths = [f"a.{name}.x" for name in "bcdef"]
        for path in paths:
            await insert(api, path, api.ports.slug())
            await insert(api, path.removesuffix(".x"), api.ports.slug())
        for url, key in (("namespaces", "namespaces"), ("tasks", "tasks")):
            seen, query = [], "?limit=2"
            while query:
                page = (await api.send("GET", f"{ROOT_URL}/api/index/v1/{url}/a{query}")).json()
                seen.append([item["namespace"] for item in page[key]])
                token = page.get("continuationToken")
                query = f"?limit=2&continuationToken={token}" if token else ""
            assert seen == [["a.b", "a.c"], ["a.d", "a.e"], ["a.f"]]
        wanted = {"indexes": [*paths, "a.nothing"]}
        tasks = (await api.call("Index", "findTasksAtIndex", wanted)).json()["tasks"]
        assert [task["namespace"] for task in tasks] == paths


async def test_an_artifact_is_found_by_the_path_and_the_scope_for_it(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create(routes=[f"index.{PATH}"])
        (claim,) = await api.claim()
        worker = api.as_client(claim["credentials"])
        expires = {"expires": to_wire(api.ports.now() + timedelta(hours=1))}
        reference = {"storageType": "reference", "url": "https://e/x", "contentType": "a/b", **expires}
        await worker.call("Queue", "createArtifact", task_id, 0, "private/x", reference)
        for name, target in (("public/open", "public/x"), ("public/link", "private/x")):
            link = {"storageType": "link", "artifact": target, "contentType": "a/b", **expires}
            await worker.call("Queue", "createArtifact", task_id, 0, name, link)
        await worker.call("Queue", "createArtifact", task_id, 0, "public/x", reference)
        await worker.call("Queue", "reportCompleted", task_id, 0)
        nobody = api.as_client(None)

        async def asked(of: Api, name: str, path: str = PATH) -> tuple[int, str | None]:
            answer = await of.call("Index", "findArtifactFromTask", path, name)
            return answer.status_code, answer.headers.get("location")

        for of, name in ((nobody, "public/x"), (nobody, "public/open"), (api, "private/x"), (api, "public/link")):
            assert await asked(of, name) == (303, "https://e/x")
        for name in ("private/x", "public/link"):
            assert await asked(nobody, name) == (403, None)
        assert await asked(api, "public/nothing") == await asked(api, "public/x", "no.task") == (404, None)


async def test_who_may_not_learn_of_a_path_is_refused(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        await complete(api)
        some = Api(api.queue, api.ports, api.credentials, {"authorizedScopes": ["index:find-task:project.x.*"]})
        assert await found(some) is not None
        for answer in (
            await some.call("Index", "findTask", "project.y.latest"),
            await some.call("Index", "findTasksAtIndex", {"indexes": [PATH, "project.y.latest"]}),
            await some.call("Index", "deleteTask", PATH),
        ):
            assert answer.status_code == 403


async def test_data_of_the_version_before_get_an_index_and_keep_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite3") as connection:
        connection.executescript(f"{VERSION_1} PRAGMA user_version = 1;")
        connection.execute("INSERT INTO secrets VALUES ('kept', '{}', '9999')")
    connection.close()
    for first in (True, False):
        async with virtual_queue(data=tmp_path) as api:
            assert (await api.call("Secrets", "list")).json() == {"secrets": ["kept"]}
            if first:
                task_id = await complete(api)
            assert ((await found(api)) or {})["taskId"] == task_id


async def test_there_are_no_roles_to_expand(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        answer = await api.call("Auth", "expandScopes", {"scopes": ["b", "assume:role", "b"]})
        assert answer.json() == {"scopes": ["assume:role", "b"]}
