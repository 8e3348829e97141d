"""Claiming, reclaiming, reporting, and what the queue does when time passes, in virtual time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
import trio
from embedded_world import POOL, WORKER, Api, definition, virtual_queue
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.embedded.times import from_wire, to_wire


async def test_an_idle_poll_lasts_20_seconds(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        before = trio.current_time()
        assert await api.claim() == []
        assert trio.current_time() - before == pytest.approx(20, abs=0.1)


async def test_a_poll_wakes_when_a_task_becomes_pending(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api, trio.open_nursery() as nursery:
        claimed: list[dict[str, Any]] = []
        before = trio.current_time()

        async def poll() -> None:
            claimed.extend(await api.claim(32))

        nursery.start_soon(poll)
        await wait_all_tasks_blocked()
        await api.create(taskQueueId="test-provisioner/another")
        await wait_all_tasks_blocked()
        assert not claimed
        task_id = await api.create()
        await wait_all_tasks_blocked()
        assert [claim["status"]["taskId"] for claim in claimed] == [task_id]
        assert trio.current_time() == before


async def test_a_batch_is_ordered_by_priority_then_age(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        order = []
        for priority in ("lowest", "high", "medium", "high", "highest"):
            order.append((await api.create(priority=priority), priority))
            await trio.sleep(1)
        claims = await api.claim(4)
        expected = [order[index][0] for index in (4, 1, 3, 2)]
        assert [claim["status"]["taskId"] for claim in claims] == expected


@pytest.mark.parametrize("changes", [{"tasks": 0}, {"tasks": 33}, {"other": 1}, {"workerId": "w" * 39}])
async def test_claims_out_of_bounds(autojump_clock: MockClock, changes: dict[str, Any]) -> None:
    async with virtual_queue() as api:
        answer = await api.call("Queue", "claimWork", POOL, {**WORKER, "tasks": 1, **changes})
        assert (answer.status_code, answer.json()["code"]) == (400, "InputValidationError")
        assert next(iter(changes)) in answer.json()["message"]


async def test_the_two_forms_of_taken_until(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        (claim,) = await api.claim()
        in_status = claim["status"]["runs"][0]["takenUntil"]
        assert claim["takenUntil"].endswith("+00:00")
        assert in_status.endswith("Z")
        assert from_wire(claim["takenUntil"]) == from_wire(in_status) == api.ports.now() + timedelta(minutes=20)
        again = (await api.call("Queue", "reclaimTask", task_id, 0)).json()
        assert again["takenUntil"].endswith("Z")
        assert isinstance(again["credentials"]["certificate"], str)


async def test_credentials_of_a_run_are_good_for_that_run(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create(scopes=["my:scope"])
        (claim,) = await api.claim()
        of_run = api.as_client(claim["credentials"])
        scopes = (await of_run.call("Auth", "currentScopes")).status_code
        assert scopes == 403, "they do not hold auth:current-scopes"
        assert (await of_run.call("Queue", "reclaimTask", task_id, 0)).status_code == 200
        answer = await of_run.call("Queue", "reportException", task_id, 0, {"reason": "worker-shutdown"})
        assert answer.status_code == 200
        (second,) = await api.claim()
        assert second["runId"] == 1
        assert (await of_run.call("Queue", "reclaimTask", task_id, 1)).status_code == 403
        assert (await of_run.call("Queue", "claimWork", POOL, {**WORKER, "tasks": 1})).status_code == 403


async def test_credentials_outlive_their_expiry_by_5_minutes(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        (claim,) = await api.claim()
        of_run = api.as_client(claim["credentials"])
        await trio.sleep(15 * 60)
        await api.call("Queue", "reclaimTask", task_id, 0)
        await trio.sleep(9 * 60)
        assert (await of_run.call("Queue", "reclaimTask", task_id, 0)).status_code == 200
        await trio.sleep(2 * 60)
        answer = await of_run.call("Queue", "reclaimTask", task_id, 0)
        assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")


@pytest.mark.parametrize(
    ("method", "body"), [("reportCompleted", ()), ("reportFailed", ()), ("reportException", ("malformed-payload",))]
)
async def test_to_report_again_is_well_and_otherwise_a_conflict(
    autojump_clock: MockClock, method: str, body: tuple[str, ...]
) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        await api.claim()
        arguments = [{"reason": reason} for reason in body]
        for _ in range(2):
            assert (await api.call("Queue", method, task_id, 0, *arguments)).status_code == 200
        other = {"reason": "internal-error"}
        assert (await api.call("Queue", "reportException", task_id, 0, other)).status_code == 409
        assert (await api.call("Queue", "reclaimTask", task_id, 0)).status_code == 409
        assert len((await api.status(task_id))["runs"]) == 1


async def test_only_pending_runs_that_exist_are_claimed_and_running_ones_reported(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        assert (await api.call("Queue", "reportCompleted", task_id, 0)).status_code == 409
        assert (await api.call("Queue", "reportCompleted", task_id, 1)).status_code == 404
        assert (await api.call("Queue", "reportCompleted", api.ports.slug(), 0)).status_code == 404
        assert (await api.call("Queue", "claimTask", task_id, 0, WORKER)).status_code == 200
        assert (await api.call("Queue", "claimTask", task_id, 0, WORKER)).status_code == 409


@pytest.mark.parametrize(("reason", "created"), [("worker-shutdown", "retry"), ("intermittent-task", "task-retry")])
async def test_some_exceptions_are_retried_while_retries_remain(
    autojump_clock: MockClock, reason: str, created: str
) -> None:
    async with virtual_queue() as api:
        task_id = await api.create(retries=1)
        for run_id in (0, 1):
            (claim,) = await api.claim()
            assert claim["runId"] == run_id
            await api.call("Queue", "reportException", task_id, run_id, {"reason": reason})
        status = await api.status(task_id)
        assert (status["state"], status["retriesLeft"]) == ("exception", 0)
        assert [run["reasonCreated"] for run in status["runs"]] == ["scheduled", created]


async def test_an_expired_claim_is_retried_while_retries_remain(autojump_clock: MockClock) -> None:
    async with virtual_queue(claim_timeout=timedelta(minutes=1)) as api:
        task_id = await api.create(retries=1)
        await api.claim()
        await trio.sleep(59)
        assert (await api.status(task_id))["state"] == "running"
        await trio.sleep(2)
        status = await api.status(task_id)
        assert (status["state"], status["runs"][0]["reasonResolved"]) == ("pending", "claim-expired")
        assert (await api.call("Queue", "reportCompleted", task_id, 0)).status_code == 409
        await api.claim()
        await trio.sleep(61)
        assert (await api.status(task_id))["state"] == "exception"


async def test_a_reclaimed_run_lives_on(autojump_clock: MockClock) -> None:
    async with virtual_queue(claim_timeout=timedelta(minutes=1)) as api:
        task_id = await api.create()
        await api.claim()
        for _ in range(5):
            await trio.sleep(50)
            assert (await api.call("Queue", "reclaimTask", task_id, 0)).status_code == 200
        assert (await api.status(task_id))["state"] == "running"


@pytest.mark.parametrize("state", ["unscheduled", "pending", "running"])
async def test_a_deadline_resolves_whatever_the_state(autojump_clock: MockClock, state: str) -> None:
    async with virtual_queue() as api:
        task_id, soon = api.ports.slug(), to_wire(api.ports.now() + timedelta(minutes=5))
        await api.create(task_id, deadline=soon, dependencies=[task_id] if state == "unscheduled" else [])
        if state == "running":
            await api.claim()
        assert (await api.status(task_id))["state"] == state
        await trio.sleep(301)
        status = await api.status(task_id)
        assert [run["reasonResolved"] for run in status["runs"]] == ["deadline-exceeded"]
        assert (await api.call("Queue", "reclaimTask", task_id, 0)).status_code == 409
        assert (await api.call("Queue", "rerunTask", task_id)).status_code == 409


async def test_a_quarantined_worker_waits_and_gets_nothing(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        await api.claim()
        worker = (*POOL.split("/"), WORKER["workerGroup"], WORKER["workerId"])
        until = to_wire(api.ports.now() + timedelta(minutes=1))
        answer = await api.call("Queue", "quarantineWorker", *worker, {"quarantineUntil": until})
        assert answer.json()["quarantineUntil"] == until
        await api.create()
        before = trio.current_time()
        assert await api.claim() == []
        assert trio.current_time() - before == pytest.approx(20, abs=0.1)
        assert len(await api.claim(workerId="another")) == 1
        await trio.sleep(60)
        await api.create()
        assert len(await api.claim()) == 1


async def test_two_workers_never_share_a_run(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        taken: list[str] = []

        async def work(name: str) -> None:
            while claims := await api.claim(3, workerId=name):
                for claim in claims:
                    taken.append(claim["status"]["taskId"])
                    await api.call("Queue", "reportCompleted", claim["status"]["taskId"], 0)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(work, f"worker-{number}")
            created = [await api.create() for _ in range(40)]
        assert sorted(taken) == sorted(created)


async def test_a_queue_that_stops_answers_its_polls_at_once(autojump_clock: MockClock) -> None:
    answers: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:
        async with virtual_queue() as api:
            before = trio.current_time()

            async def poll() -> None:
                answers.append(await api.call("Queue", "claimWork", POOL, {**WORKER, "tasks": 1}))

            nursery.start_soon(poll)
            await wait_all_tasks_blocked()
        assert trio.current_time() == before
        await wait_all_tasks_blocked()
        assert [answer.json() for answer in answers] == [{"tasks": []}]
        assert (await api.send("GET", "http://queue.test/api/queue/v1/ping")).status_code == 503


async def test_pools_and_workers_are_counted_and_listed(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        running, waiting = await api.create(priority="high"), await api.create()
        await api.claim()
        halves = tuple(POOL.split("/"))
        counts = (await api.call("Queue", "taskQueueCounts", POOL)).json()
        assert (counts["pendingTasks"], counts["claimedTasks"]) == (1, 1)
        assert (await api.call("Queue", "pendingTasks", POOL)).json()["pendingTasks"] == 1
        for method, task_id in (("listPendingTasks", waiting), ("listClaimedTasks", running)):
            (listed,) = (await api.call("Queue", method, POOL)).json()["tasks"]
            assert listed["taskId"] == task_id
        (worker,) = (await api.call("Queue", "listWorkers", *halves)).json()["workers"]
        assert worker["latestTask"] == {"taskId": running, "runId": 0}
        (pool,) = (await api.call("Queue", "listTaskQueues")).json()["taskQueues"]
        assert pool["taskQueueId"] == POOL
        assert (await api.call("Queue", "getWorker", *halves, "g", "unknown")).status_code == 404
        declared = await api.call(
            "Queue", "declareWorker", *halves, "g", "w", {"expires": definition(api.ports.now())["expires"]}
        )
        assert declared.json()["recentTasks"] == []


async def test_claims_need_both_scopes(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        both = [f"queue:claim-work:{POOL}", "queue:worker-id:group/worker-1"]
        await api.create()
        for scopes, expected in ((both[:1], 403), (both[1:], 403), (both, 200)):
            some = Api(api.queue, api.ports, api.credentials, {"authorizedScopes": scopes})
            answer = await some.call("Queue", "claimWork", POOL, {**WORKER, "tasks": 1})
            assert answer.status_code == expected
