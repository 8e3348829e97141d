"""Queue methods on workers: lists, quarantine."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from worker.embedded import worker_table
from worker.embedded.api_pools import halves, named_queue
from worker.embedded.call import Call
from worker.embedded.errors import ResourceNotFound
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import AllOf, Each, Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import to_wire
from worker.queue.models import QuarantineWorkerRequest, UpdateWorkerRequest

WORKER = "<provisionerId>/<workerType>/<workerGroup>/<workerId>"
DECLARE = AllOf((Each(f"queue:declare-worker:{WORKER}#<property>", "property", "properties"),))


@dataclass(frozen=True)
class WorkerMethods:
    """The methods on workers, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        table: list[tuple[str, Expression, Handler]] = [
            ("listWorkers", "queue:list-workers:<provisionerId>/<workerType>", self.list_workers),
            ("getWorker", f"queue:get-worker:{WORKER}", self.get_worker),
            ("quarantineWorker", AllOf((f"queue:quarantine-worker:{WORKER}",)), self.quarantine_worker),
            ("declareWorker", DECLARE, self.declare_worker),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def list_workers(self, call: Call) -> Reply:
        """The workers of a task queue; `quarantined` filters them."""
        page, quarantined = call.page(), call.query("quarantined")

        def work(tx: Transaction) -> Json:
            rows = tx.all(
                "SELECT * FROM workers WHERE task_queue_id = ? AND seq > ? AND expires > ?"
                " AND (? IS NULL OR (quarantine_until IS NOT NULL AND quarantine_until > ?) = (? = 'true'))"
                " ORDER BY seq LIMIT ?",
                named_queue(call),
                page.after_number,
                call.now,
                quarantined,
                call.now,
                quarantined,
                page.limit + 1,
            )
            shown = [_summary(row) for row in rows[: page.limit]]
            return {"workers": shown, **page.token([row["seq"] for row in rows])}

        return Reply(await self.store.transact(work))

    async def get_worker(self, call: Call) -> Reply:
        """One worker."""
        return Reply(await self.store.transact(lambda tx: _worker(tx, call)))

    async def quarantine_worker(self, call: Call) -> Reply:
        """Give a worker no work until the time that is said; a time that has passed ends its quarantine."""
        request = call.read(QuarantineWorkerRequest)
        until = to_wire(request.quarantine_until)
        entry = {
            "clientId": call.identity.client_id,
            "updatedAt": call.now,
            "quarantineUntil": until,
            "quarantineInfo": request.quarantine_info or "",
        }

        def work(tx: Transaction) -> Json:
            row = _row(tx, call)
            details = [*json.loads(row["quarantine_details"]), entry]
            tx.run(
                "UPDATE workers SET quarantine_until = ?, quarantine_details = ?, expires = max(expires, ?)"
                " WHERE seq = ?",
                until,
                json.dumps(details),
                until,
                row["seq"],
            )
            # A worker that waits looks again: its quarantine may have ended.
            tx.became_pending(named_queue(call))
            return _worker(tx, call)

        return Reply(await self.store.transact(work))

    async def declare_worker(self, call: Call) -> Reply:
        """Create a worker, or let it be remembered for longer."""
        expires = to_wire(call.read(UpdateWorkerRequest).expires)
        call.authorize(properties=["expires"])

        def work(tx: Transaction) -> Json:
            group, worker_id = call.params["workerGroup"], call.params["workerId"]
            worker_table.seen(tx, named_queue(call), group, worker_id, call.now)
            row = _row(tx, call)
            tx.run("UPDATE workers SET expires = ? WHERE seq = ?", expires, row["seq"])
            return _worker(tx, call)

        return Reply(await self.store.transact(work))


def _row(tx: Transaction, call: Call) -> sqlite3.Row:
    group, worker_id = call.params["workerGroup"], call.params["workerId"]
    row = worker_table.find(tx, named_queue(call), group, worker_id)
    if row is None or row["expires"] <= call.now:
        raise ResourceNotFound(f"Worker {group}/{worker_id} of {named_queue(call)} does not exist")
    return row


def _worker(tx: Transaction, call: Call) -> Json:
    row = _row(tx, call)
    until = {} if row["quarantine_until"] is None else {"quarantineUntil": row["quarantine_until"]}
    return {
        **halves(row["task_queue_id"]),
        "workerGroup": row["worker_group"],
        "workerId": row["worker_id"],
        "recentTasks": json.loads(row["recent_tasks"]),
        "expires": row["expires"],
        "firstClaim": row["first_claim"],
        "lastDateActive": row["last_active"],
        "quarantineDetails": json.loads(row["quarantine_details"]),
        **until,
    }


def _summary(row: sqlite3.Row) -> Json:
    recent = json.loads(row["recent_tasks"])
    shown = {
        "workerGroup": row["worker_group"],
        "workerId": row["worker_id"],
        "firstClaim": row["first_claim"],
        "lastDateActive": row["last_active"],
        "latestTask": recent[-1] if recent else None,
        "quarantineUntil": row["quarantine_until"],
    }
    return {name: value for name, value in shown.items() if value is not None}
