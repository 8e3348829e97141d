"""Queue methods on task queues: what waits in them, and which there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from worker.embedded import task_table
from worker.embedded.call import Call
from worker.embedded.errors import ResourceNotFound
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import AllOf, Expression
from worker.embedded.store import Store
from worker.embedded.tasks import Json, Task
from worker.embedded.times import from_wire, to_wire
from worker.embedded.worker_table import REMEMBERED

COUNTS = AllOf(("queue:pending-count:<taskQueueId>", "queue:claimed-count:<taskQueueId>"))


@dataclass(frozen=True)
class PoolMethods:
    """The methods on task queues and what waits in them, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        of_type = "<provisionerId>/<workerType>"
        table: list[tuple[str, Expression, Handler]] = [
            ("pendingTasks", "queue:pending-count:<taskQueueId>", self.pending_tasks),
            ("taskQueueCounts", COUNTS, self.task_queue_counts),
            ("listPendingTasks", "queue:pending-list:<taskQueueId>", self.list_pending_tasks),
            ("listClaimedTasks", "queue:claimed-list:<taskQueueId>", self.list_claimed_tasks),
            ("listTaskQueues", "queue:list-task-queues", self.list_task_queues),
            ("getTaskQueue", "queue:get-task-queue:<taskQueueId>", self.get_task_queue),
            ("listProvisioners", "queue:list-provisioners", self.list_provisioners),
            ("getProvisioner", "queue:get-provisioner:<provisionerId>", self.get_provisioner),
            ("listWorkerTypes", "queue:list-worker-types:<provisionerId>", self.list_worker_types),
            ("getWorkerType", f"queue:get-worker-type:{of_type}", self.get_worker_type),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def pending_tasks(self, call: Call) -> Reply:
        """How many tasks wait for workers."""
        counts = await self._counts(call)
        return Reply({name: value for name, value in counts.items() if name != "claimedTasks"})

    async def task_queue_counts(self, call: Call) -> Reply:
        """How many tasks wait for workers, and how many run."""
        return Reply(await self._counts(call))

    async def _counts(self, call: Call) -> Json:
        task_queue_id = call.params["taskQueueId"]
        rows = await self.store.transact(
            lambda tx: tx.all(
                "SELECT state, count(*) AS size FROM tasks WHERE task_queue_id = ? GROUP BY state", task_queue_id
            )
        )
        sizes = {row["state"]: row["size"] for row in rows}
        return {
            **halves(task_queue_id),
            "pendingTasks": sizes.get("pending", 0),
            "claimedTasks": sizes.get("running", 0),
        }

    async def list_pending_tasks(self, call: Call) -> Reply:
        """The tasks that wait for workers."""
        return await self._list(call, "pending", lambda task: {"inserted": task.runs[-1].scheduled})

    async def list_claimed_tasks(self, call: Call) -> Reply:
        """The tasks that run."""

        def details(task: Task) -> Json:
            run = task.runs[-1]
            return {"claimed": run.started, "workerGroup": run.worker_group, "workerId": run.worker_id}

        return await self._list(call, "running", details)

    async def _list(self, call: Call, state: str, details: Callable[[Task], Json]) -> Reply:
        page = call.page()
        condition = "task_queue_id = ? AND state = ? AND seq > ? ORDER BY seq LIMIT ?"
        rows = await self.store.transact(
            lambda tx: task_table.select(
                tx, condition, call.params["taskQueueId"], state, page.after_number, page.limit + 1
            )
        )
        shown = [
            {"taskId": task.task_id, "runId": len(task.runs) - 1, "task": task.definition, **details(task)}
            for task in map(task_table.from_row, rows[: page.limit])
        ]
        return Reply({"tasks": shown, **page.token([row["seq"] for row in rows])})

    async def list_task_queues(self, call: Call) -> Reply:
        """The task queues that tasks or workers named lately."""
        return await self._queues(call, "taskQueues", "", lambda row: _queue(row, ("taskQueueId",)))

    async def get_task_queue(self, call: Call) -> Reply:
        """One task queue."""
        return await self._queue(call.params["taskQueueId"], ("taskQueueId",))

    async def list_worker_types(self, call: Call) -> Reply:
        """The task queues of a provisioner."""
        names = ("taskQueueId", "provisionerId", "workerType")
        return await self._queues(
            call, "workerTypes", call.params["provisionerId"] + "/", lambda row: _queue(row, names)
        )

    async def get_worker_type(self, call: Call) -> Reply:
        """One task queue, by its halves."""
        names = ("taskQueueId", "provisionerId", "workerType")
        return await self._queue(named_queue(call), names)

    async def _queues(self, call: Call, key: str, prefix: str, shown: Callable[[sqlite3.Row], Json]) -> Reply:
        page = call.page()
        rows = await self.store.transact(
            lambda tx: tx.all(
                "SELECT * FROM task_queues WHERE task_queue_id > ? AND substr(task_queue_id, 1, ?) = ?"
                " ORDER BY task_queue_id LIMIT ?",
                page.after_text,
                len(prefix),
                prefix,
                page.limit + 1,
            )
        )
        keys = [row["task_queue_id"] for row in rows]
        return Reply({key: [shown(row) for row in rows[: page.limit]], **page.token(keys)})

    async def _queue(self, task_queue_id: str, names: tuple[str, ...]) -> Reply:
        row = await self.store.transact(
            lambda tx: tx.one("SELECT * FROM task_queues WHERE task_queue_id = ?", task_queue_id)
        )
        if row is None:
            raise ResourceNotFound(f"Task queue {task_queue_id} does not exist")
        return Reply(_queue(row, names))

    async def list_provisioners(self, call: Call) -> Reply:  # the form of every handler
        """The first halves of the names of task queues."""
        return Reply({"provisioners": await self._provisioners()})

    async def get_provisioner(self, call: Call) -> Reply:
        """One of them."""
        for provisioner in await self._provisioners():
            if provisioner["provisionerId"] == call.params["provisionerId"]:
                return Reply(provisioner)
        raise ResourceNotFound(f"Provisioner {call.params['provisionerId']} does not exist")

    async def _provisioners(self) -> list[Json]:
        rows = await self.store.transact(lambda tx: tx.all("SELECT * FROM task_queues ORDER BY last_active"))
        found = {row["task_queue_id"].partition("/")[0]: _queue(row, ("provisionerId",)) for row in rows}
        return [found[provisioner_id] for provisioner_id in sorted(found)]


def _queue(row: sqlite3.Row, names: tuple[str, ...]) -> Json:
    known = halves(row["task_queue_id"])
    return {
        **{name: known[name] for name in names},
        "description": "",
        "stability": "experimental",
        "expires": to_wire(from_wire(row["last_active"]) + REMEMBERED),
        "lastDateActive": row["last_active"],
    }


def halves(task_queue_id: str) -> Json:
    """A task queue's id and its halves, as answers have them."""
    provisioner_id, _, worker_type = task_queue_id.partition("/")
    return {"taskQueueId": task_queue_id, "provisionerId": provisioner_id, "workerType": worker_type}


def named_queue(call: Call) -> str:
    """The task queue whose halves the path names."""
    return f"{call.params['provisionerId']}/{call.params['workerType']}"
