"""Creating, looking at, scheduling and cancelling tasks, in virtual time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from embedded_world import POOL, Api, definition, virtual_queue
from trio.testing import MockClock

from worker.embedded.times import to_wire


async def create(api: Api, task_id: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    answer = await api.call("Queue", "createTask", task_id, definition(api.ports.now(), **changes))
    return answer.status_code, answer.json()


async def test_the_same_again_is_the_same_and_anything_else_a_conflict(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = api.ports.slug()
        body = definition(api.ports.now())
        for expected, changed in ((200, body), (200, body), (409, {**body, "retries": 3})):
            answer = await api.call("Queue", "createTask", task_id, changed)
            assert answer.status_code == expected
        offset = {**body, "created": body["created"].replace(".000Z", "+00:00")}
        assert (await api.call("Queue", "createTask", task_id, offset)).status_code == 200
        assert answer.json()["code"] == "RequestConflict"


async def test_defaults(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        halves = {"taskQueueId": None, "provisionerId": "test-provisioner", "workerType": "test-worker"}
        task_id = await api.create(**halves, expires=None)
        task = (await api.call("Queue", "task", task_id)).json()
        assert task["taskQueueId"] == POOL
        assert (task["priority"], task["retries"], task["requires"]) == ("lowest", 5, "all-completed")
        assert (task["schedulerId"], task["projectId"], task["taskGroupId"]) == ("-", "none", task_id)
        assert task["expires"].startswith("2027-01-31T01:00")


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"priority": "normal"}, "InputValidationError", "priority"),
        ({"unknown": 1}, "InputValidationError", "unknown"),
        ({"task_queue_id": POOL}, "InputValidationError", "task_queue_id"),
        ({"retries": 50}, "InputValidationError", "retries"),
        ({"retries": "5"}, "InputValidationError", "retries"),
        ({"taskQueueId": "p/9starts-with-a-digit"}, "InputValidationError", "taskQueueId"),
        ({"taskQueueId": None}, "InputError", "taskQueueId"),
        ({"workerType": "another"}, "InputError", "taskQueueId"),
        ({"metadata": {"name": "n"}}, "InputValidationError", "metadata.description"),
        ({"payload": None}, "InputValidationError", "payload"),
        ({"routes": ["a", "a"]}, "InputValidationError", "routes"),
        ({"deadline": "soon"}, "InputValidationError", "deadline"),
        ({"deadline": "2026-02-06T00:00:00Z", "expires": None}, "InputError", "5 days"),
        ({"deadline": "9999-12-31T23:00:00Z", "expires": None}, "InputError", "5 days"),
        ({"created": "0001-01-01T00:00:00+05:00"}, "InputError", "created"),
        ({"deadline": "2026-01-30T00:00:00Z"}, "InputError", "Deadline"),
        ({"expires": "2026-01-31T00:30:00Z"}, "InputError", "Expires"),
        ({"dependencies": ["AAAAAAAAQACAAAAAAAAAAA"]}, "InputError", "AAAAAAAAQACAAAAAAAAAAA"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    autojump_clock: MockClock, changes: dict[str, Any], code: str, named: str
) -> None:
    async with virtual_queue() as api:
        status, body = await create(api, api.ports.slug(), **changes)
        assert (status, body["code"]) == (400, code)
        assert named in body["message"]
        assert body["requestInfo"]["method"] == "createTask"


async def test_a_task_waits_for_its_dependencies(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        first, second = await api.create(), await api.create()
        both = await api.create(dependencies=[first, second])
        whatever = await api.create(dependencies=[first, second], requires="all-resolved")
        assert (await api.status(both))["state"] == "unscheduled"
        claims = await api.claim(2)
        for run, method in zip(claims, ("reportCompleted", "reportFailed"), strict=True):
            await api.call("Queue", method, run["status"]["taskId"], 0)
        assert (await api.status(both))["state"] == "unscheduled"
        assert (await api.status(whatever))["state"] == "pending"
        dependents = (await api.call("Queue", "listDependentTasks", first)).json()
        assert {entry["status"]["taskId"] for entry in dependents["tasks"]} == {both, whatever}
        await api.call("Queue", "rerunTask", second)
        await api.claim(32)
        await api.call("Queue", "reportCompleted", second, 1)
        assert (await api.status(both))["state"] == "pending"


async def test_a_task_that_depends_on_itself_waits_for_schedule_task(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = api.ports.slug()
        await api.create(task_id, dependencies=[task_id])
        assert (await api.status(task_id))["state"] == "unscheduled"
        for _ in range(2):
            answer = await api.call("Queue", "scheduleTask", task_id)
            assert (answer.status_code, answer.json()["status"]["state"]) == (200, "pending")


async def test_cancel_and_rerun(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        for _ in range(2):
            answer = await api.call("Queue", "cancelTask", task_id)
            runs = answer.json()["status"]["runs"]
            assert [run["reasonResolved"] for run in runs] == ["canceled"]
        for _ in range(2):
            status = (await api.call("Queue", "rerunTask", task_id)).json()["status"]
            assert [run["reasonCreated"] for run in status["runs"]] == ["scheduled", "rerun"]
        await api.claim()
        await api.call("Queue", "reportCompleted", task_id, 1)
        answer = await api.call("Queue", "cancelTask", task_id)
        assert (answer.status_code, answer.json()["status"]["state"]) == (200, "completed")


async def test_an_unscheduled_task_that_is_cancelled_has_a_run_that_says_so(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = api.ports.slug()
        await api.create(task_id, dependencies=[task_id])
        status = (await api.call("Queue", "cancelTask", task_id)).json()["status"]
        assert (status["runs"][0]["reasonCreated"], status["runs"][0]["reasonResolved"]) == ("exception", "canceled")


async def test_groups_are_listed_sealed_and_cancelled(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        group = api.ports.slug()
        members = [await api.create(taskGroupId=group, schedulerId="s") for _ in range(3)]
        assert (await create(api, api.ports.slug(), taskGroupId=group, schedulerId="other"))[0] == 409
        assert (await api.call("Queue", "cancelTaskGroup", group)).status_code == 409
        sealed = (await api.call("Queue", "sealTaskGroup", group)).json()
        assert (await api.call("Queue", "sealTaskGroup", group)).json() == sealed
        assert (await create(api, api.ports.slug(), taskGroupId=group, schedulerId="s"))[0] == 409
        assert (await create(api, members[0], taskGroupId=group, schedulerId="s"))[0] == 200
        await api.claim()
        await api.call("Queue", "reportCompleted", members[0], 0)
        answer = (await api.call("Queue", "cancelTaskGroup", group)).json()
        assert (answer["taskGroupSize"], answer["cancelledCount"], answer["taskIds"]) == (3, 2, members[1:])
        assert (await api.call("Queue", "getTaskGroup", group)).json() == sealed


async def test_long_lists_come_in_pages(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        group = api.ports.slug()
        members = [await api.create(taskGroupId=group) for _ in range(5)]
        seen: list[str] = []
        query: dict[str, object] = {"limit": 2}
        url = f"http://queue.test/api/queue/v1/task-group/{group}/list"
        while True:
            options = "&".join(f"{name}={value}" for name, value in query.items())
            page = (await api.send("GET", f"{url}?{options}")).json()
            assert len(page["tasks"]) <= 2
            seen += [entry["status"]["taskId"] for entry in page["tasks"]]
            if "continuationToken" not in page:
                break
            query["continuationToken"] = page["continuationToken"]
        assert seen == members
        assert (await api.send("GET", f"{url}?continuationToken=nonsense")).status_code == 400
        assert (await api.send("GET", f"{url}?limit=many")).status_code == 400


async def test_statuses_leave_unknown_tasks_out_and_want_every_scope(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        first, second = await api.create(), await api.create()
        asked = {"taskIds": [first, api.ports.slug(), second, "nonsense"]}
        found = (await api.call("Queue", "statuses", asked)).json()["statuses"]
        assert {entry["taskId"] for entry in found} == {first, second}
        assert len((await api.call("Queue", "tasks", asked)).json()["tasks"]) == 2
        some = Api(api.queue, api.ports, api.credentials, {"authorizedScopes": [f"queue:status:{first}"]})
        assert (await some.call("Queue", "statuses", {"taskIds": [first]})).status_code == 200
        assert (await some.call("Queue", "statuses", {"taskIds": [first, second]})).status_code == 403


async def test_priorities_change_until_a_task_is_resolved(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        low, group = await api.create(), api.ports.slug()
        other = await api.create(taskGroupId=group)
        answer = await api.call("Queue", "changeTaskPriority", low, {"newPriority": "high"})
        assert answer.json()["status"]["priority"] == "high"
        answer = await api.call("Queue", "changeTaskGroupPriority", group, {"newPriority": "highest"})
        assert answer.json()["taskIds"] == [other]
        assert [run["status"]["taskId"] for run in await api.claim(2)] == [other, low]
        await api.call("Queue", "cancelTask", low)
        assert (await api.call("Queue", "changeTaskPriority", low, {"newPriority": "low"})).status_code == 409


async def test_scopes_of_create_task(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        needed = ["queue:create-task:project:none", "queue:scheduler-id:-"]
        for scopes, expected in (
            ([*needed, "queue:create-task:high:test-provisioner/*", "my:scope", "queue:route:r.*"], 200),
            ([*needed, "queue:create-task:lowest:test-provisioner/*", "my:scope", "queue:route:r.*"], 403),
            ([*needed, "queue:create-task:high:test-provisioner/*", "queue:route:r.*"], 403),
            ([*needed, "queue:create-task:high:test-provisioner/*", "my:scope"], 403),
        ):
            some = Api(api.queue, api.ports, api.credentials, {"authorizedScopes": scopes})
            given = {"priority": "medium", "scopes": ["my:scope"], "routes": ["r.1"]}
            assert (await create(some, api.ports.slug(), **given))[0] == expected


async def test_what_has_expired_is_gone(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create(expires=to_wire(api.ports.now() + timedelta(hours=2)))
        autojump_clock.jump(3 * 3600)
        await api.claim()
        assert (await api.call("Queue", "status", task_id)).status_code == 404
