"""Queue methods of workers: claiming, reclaiming and reporting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import trio

from worker.embedded import task_table, tasks, worker_table
from worker.embedded.auth import Client, issue
from worker.embedded.call import Call
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import AllOf, Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json, Task
from worker.embedded.times import to_wire
from worker.embedded.waiting import Waiting
from worker.ports import Ports
from worker.queue.models import ClaimWorkRequest, TaskClaimRequest, TaskExceptionRequest

LONG_POLL = 20.0
"""Seconds that claimWork waits for a task."""


@dataclass(frozen=True)
class ClaimMethods:
    """The methods; `issuer` signs the credentials of tasks."""

    ports: Ports
    store: Store
    waiting: Waiting
    issuer: Client
    claim_timeout: timedelta

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        worker = "queue:worker-id:<workerGroup>/<workerId>"
        resolve = "queue:resolve-task:<taskId>/<runId>"
        table: list[tuple[str, Expression, Handler]] = [
            ("claimWork", AllOf(("queue:claim-work:<taskQueueId>", worker)), self.claim_work),
            ("claimTask", AllOf(("queue:claim-task:<provisionerId>/<workerType>", worker)), self.claim_task),
            ("reclaimTask", "queue:reclaim-task:<taskId>/<runId>", self.reclaim_task),
            ("reportCompleted", resolve, self.report_completed),
            ("reportFailed", resolve, self.report_failed),
            ("reportException", resolve, self.report_exception),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def claim_work(self, call: Call) -> Reply:
        """Up to as many tasks as asked for, by priority, then by age; waits for the first for up to 20 s.

        Returns at once with nothing when the queue stops, or when the client hangs up: then nothing was claimed.
        """
        request = call.read(ClaimWorkRequest)
        call.authorize(workerGroup=request.worker_group, workerId=request.worker_id)
        task_queue_id = call.params["taskQueueId"]
        claims: list[Json] = []
        releases = self.waiting.releases
        async with _until_gone(call):
            with trio.move_on_after(LONG_POLL):
                while not claims and not self.waiting.stopping and self.waiting.releases == releases:
                    event = self.waiting.pending(task_queue_id)
                    claims = await self._claim(task_queue_id, request)
                    if not claims:
                        await event.wait()
        return Reply({"tasks": claims})

    async def _claim(self, task_queue_id: str, request: ClaimWorkRequest) -> list[Json]:
        moment = self.ports.now()
        now = to_wire(moment)

        def work(tx: Transaction) -> list[Json]:
            if worker_table.seen(tx, task_queue_id, request.worker_group, request.worker_id, now):
                return []
            condition = (
                "task_queue_id = ? AND state = 'pending' AND due > ? ORDER BY priority DESC, scheduled, seq LIMIT ?"
            )
            rows = task_table.select(tx, condition, task_queue_id, now, request.tasks)
            found = [task_table.from_row(row) for row in rows]
            return [self._give(tx, task, request.worker_group, request.worker_id, moment) for task in found]

        return await self.store.transact(work)

    async def claim_task(self, call: Call) -> Reply:
        """Claim the pending run of one task."""
        request = call.read(TaskClaimRequest)

        def work(tx: Transaction) -> Json:
            task = task_table.get(tx, call.task_id)
            task.run(call.run_id)
            definition = task.definition
            call.authorize(
                workerGroup=request.worker_group,
                workerId=request.worker_id,
                provisionerId=definition["provisionerId"],
                workerType=definition["workerType"],
            )
            return self._give(tx, task, request.worker_group, request.worker_id, call.moment)

        return Reply(await self.store.transact(work))

    def _give(self, tx: Transaction, task: Task, worker_group: str, worker_id: str, moment: datetime) -> Json:
        now, until = to_wire(moment), moment + self.claim_timeout
        task = task_table.save(tx, tasks.claim(task, worker_group, worker_id, now, to_wire(until)), now)
        run_id = len(task.runs) - 1
        worker_table.claimed(
            tx, task.definition["taskQueueId"], worker_group, worker_id, {"taskId": task.task_id, "runId": run_id}, now
        )
        # The services write this one time with an offset; everywhere else it ends in Z.
        taken_until = to_wire(until).replace("Z", "+00:00")
        return {**self._claim_of(task, run_id, moment), "takenUntil": taken_until, "task": task.definition}

    def _claim_of(self, task: Task, run_id: int, moment: datetime) -> Json:
        run = task.runs[run_id]
        until = moment + self.claim_timeout
        of_run = f"{task.task_id}/{run_id}"
        scopes = [
            f"queue:reclaim-task:{of_run}",
            f"queue:resolve-task:{of_run}",
            f"queue:create-artifact:{of_run}",
            *task.definition["scopes"],
        ]
        name = f"task-client/{of_run}/on/{run.worker_group}/{run.worker_id}/until/{int(until.timestamp())}"
        return {
            "status": tasks.status(task),
            "runId": run_id,
            "workerGroup": run.worker_group,
            "workerId": run.worker_id,
            "takenUntil": run.taken_until,
            "credentials": issue(self.ports, self.issuer, name, scopes, moment, until),
        }

    async def reclaim_task(self, call: Call) -> Reply:
        """Keep a run for another while; the answer has fresh credentials."""

        def work(tx: Transaction) -> Json:
            task = task_table.get(tx, call.task_id)
            until = to_wire(call.moment + self.claim_timeout)
            task = task_table.save(tx, tasks.reclaim(task, call.run_id, call.now, until), call.now)
            run = task.run(call.run_id)
            worker_table.seen(tx, task.definition["taskQueueId"], run.worker_group or "", run.worker_id or "", call.now)
            return self._claim_of(task, call.run_id, call.moment)

        return Reply(await self.store.transact(work))

    async def report_completed(self, call: Call) -> Reply:
        """The task did what it should."""
        return await self._report(call, "completed", "completed")

    async def report_failed(self, call: Call) -> Reply:
        """The task did not do what it should."""
        return await self._report(call, "failed", "failed")

    async def report_exception(self, call: Call) -> Reply:
        """The task could not be run, or not to its end."""
        return await self._report(call, "exception", call.read(TaskExceptionRequest).reason)

    async def _report(self, call: Call, state: str, reason: str) -> Reply:
        def work(tx: Transaction) -> Task:
            task = task_table.get(tx, call.task_id)
            return task_table.save(tx, tasks.report(task, call.run_id, state, reason, call.now), call.now)

        return Reply({"status": tasks.status(await self.store.transact(work))})


@asynccontextmanager
async def _until_gone(call: Call) -> AsyncIterator[None]:
    """Cancels its body when the client hangs up."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await call.request.receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()
