"""Queue methods on task groups: listing, sealing, cancelling."""

from __future__ import annotations

from dataclasses import dataclass

from worker.embedded import task_table, tasks
from worker.embedded.call import Call
from worker.embedded.errors import RequestConflict, ResourceNotFound
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json, Task
from worker.queue.models import ChangeTaskPriorityRequest


@dataclass(frozen=True)
class GroupMethods:
    """The methods on task groups, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        of_group = "<schedulerId>/<taskGroupId>"
        table: list[tuple[str, Expression, Handler]] = [
            ("listTaskGroup", "queue:list-task-group:<taskGroupId>", self.list_task_group),
            ("getTaskGroup", "queue:list-task-group:<taskGroupId>", self.get_task_group),
            ("cancelTaskGroup", f"queue:cancel-task-group:{of_group}", self.cancel_task_group),
            ("sealTaskGroup", f"queue:seal-task-group:{of_group}", self.seal_task_group),
            (
                "changeTaskGroupPriority",
                f"queue:change-task-group-priority:{of_group}",
                self.change_task_group_priority,
            ),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def get_task_group(self, call: Call) -> Reply:
        """What a group has besides its tasks."""
        return Reply(await self.store.transact(lambda tx: _group(tx, call.params["taskGroupId"])))

    async def list_task_group(self, call: Call) -> Reply:
        """The tasks of a group."""
        page = call.page()

        def work(tx: Transaction) -> Json:
            group = _group(tx, call.params["taskGroupId"])
            condition = "task_group_id = ? AND seq > ? ORDER BY seq LIMIT ?"
            rows = task_table.select(tx, condition, group["taskGroupId"], page.after_number, page.limit + 1)
            listed = [task_table.definition_and_status(task_table.from_row(row)) for row in rows[: page.limit]]
            return {**group, "tasks": listed, **page.token([row["seq"] for row in rows])}

        return Reply(await self.store.transact(work))

    async def seal_task_group(self, call: Call) -> Reply:
        """Let no more tasks into a group."""

        def work(tx: Transaction) -> Json:
            group = _authorized_group(tx, call)
            tx.run(
                "UPDATE task_groups SET sealed = ? WHERE task_group_id = ? AND sealed IS NULL",
                call.now,
                group["taskGroupId"],
            )
            return _group(tx, group["taskGroupId"])

        return Reply(await self.store.transact(work))

    async def cancel_task_group(self, call: Call) -> Reply:
        """Cancel every unresolved task of a sealed group."""

        def work(tx: Transaction) -> Json:
            group = _authorized_group(tx, call)
            if "sealed" not in group:
                raise RequestConflict(f"Task group {group['taskGroupId']} is not sealed")
            size = tx.one("SELECT count(*) AS size FROM tasks WHERE task_group_id = ?", group["taskGroupId"])
            cancelled = _unresolved(tx, group["taskGroupId"])
            for task in cancelled:
                # Cancelling one may have scheduled another: each is read again.
                task_table.save(tx, tasks.cancel(task_table.get(tx, task.task_id), call.now), call.now)
            return {
                "taskGroupId": group["taskGroupId"],
                "taskGroupSize": size["size"] if size else 0,
                "cancelledCount": len(cancelled),
                "taskIds": [task.task_id for task in cancelled],
            }

        return Reply(await self.store.transact(work))

    async def change_task_group_priority(self, call: Call) -> Reply:
        """Change the priority of every unresolved task of a group."""
        priority = call.read(ChangeTaskPriorityRequest).new_priority

        def work(tx: Transaction) -> Json:
            group = _authorized_group(tx, call)
            changed = _unresolved(tx, group["taskGroupId"])
            for task in changed:
                task_table.save(tx, tasks.prioritise(task, priority), call.now)
            return {
                "taskGroupId": group["taskGroupId"],
                "schedulerId": group["schedulerId"],
                "newPriority": priority,
                "tasksAffected": len(changed),
                "taskIds": [task.task_id for task in changed],
            }

        return Reply(await self.store.transact(work))


def _group(tx: Transaction, group_id: str) -> Json:
    row = tx.one("SELECT * FROM task_groups WHERE task_group_id = ?", group_id)
    if row is None:
        raise ResourceNotFound(f"Task group {group_id} does not exist")
    group = {"taskGroupId": group_id, "schedulerId": row["scheduler_id"], "expires": row["expires"]}
    return group if row["sealed"] is None else {**group, "sealed": row["sealed"]}


def _authorized_group(tx: Transaction, call: Call) -> Json:
    group = _group(tx, call.params["taskGroupId"])
    call.authorize(schedulerId=group["schedulerId"])
    return group


def _unresolved(tx: Transaction, group_id: str) -> list[Task]:
    condition = "task_group_id = ? AND state IN ('unscheduled', 'pending', 'running') ORDER BY seq"
    return [task_table.from_row(row) for row in task_table.select(tx, condition, group_id)]
