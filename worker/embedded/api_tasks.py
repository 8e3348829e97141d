"""Queue methods on tasks: creating, looking, scheduling, cancelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.embedded import task_table, tasks, worker_table
from worker.embedded.call import Call
from worker.embedded.errors import InputError, InputValidationError, RequestConflict
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import AllOf, AnyOf, Each, Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import PRIORITIES, Json, Task
from worker.embedded.times import from_wire, to_wire
from worker.queue.models import ChangeTaskPriorityRequest, CreateTaskRequest, TasksRequest

LONGEST_DEADLINE = timedelta(days=5)
# Clocks differ: a deadline that was five days away by the caller's is accepted.
CLOCK_DRIFT = timedelta(minutes=15)
DEFAULT_EXPIRY = timedelta(days=365)


def on_task(verb: str) -> Expression:
    """The scopes that any one of lets a caller `verb` (as in `cancel-task`) a task."""
    return AnyOf(
        (
            f"queue:{verb}:<schedulerId>/<taskGroupId>/<taskId>",
            f"queue:{verb}-in-project:<projectId>",
            AllOf((f"queue:{verb}", "assume:scheduler-id:<schedulerId>/<taskGroupId>")),
        )
    )


CREATE_TASK = AllOf(
    (
        Each("<scope>", "scope", "scopes"),
        Each("queue:route:<route>", "route", "routes"),
        "queue:create-task:project:<projectId>",
        "queue:scheduler-id:<schedulerId>",
        AnyOf((Each("queue:create-task:<priority>:<provisionerId>/<workerType>", "priority", "priorities"),)),
    )
)
CHANGE_PRIORITY = AnyOf(("queue:change-task-priority:<taskId>", "queue:change-task-priority-in-queue:<taskQueueId>"))


@dataclass(frozen=True)
class TaskMethods:
    """The methods, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        table: list[tuple[str, Expression, Handler]] = [
            ("task", "queue:get-task:<taskId>", self.task),
            ("tasks", AllOf((Each("queue:get-task:<taskId>", "taskId", "taskIds"),)), self.tasks),
            ("statuses", AllOf((Each("queue:status:<taskId>", "taskId", "taskIds"),)), self.statuses),
            ("status", "queue:status:<taskId>", self.status),
            ("listDependentTasks", "queue:list-dependent-tasks:<taskId>", self.list_dependent_tasks),
            ("createTask", CREATE_TASK, self.create_task),
            ("scheduleTask", on_task("schedule-task"), self.schedule_task),
            ("rerunTask", on_task("rerun-task"), self.rerun_task),
            ("cancelTask", on_task("cancel-task"), self.cancel_task),
            ("changeTaskPriority", CHANGE_PRIORITY, self.change_task_priority),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def task(self, call: Call) -> Reply:
        """The definition."""
        found = await self.store.transact(lambda tx: task_table.get(tx, call.task_id))
        return Reply(found.definition)

    async def status(self, call: Call) -> Reply:
        """The status."""
        found = await self.store.transact(lambda tx: task_table.get(tx, call.task_id))
        return Reply({"status": tasks.status(found)})

    async def tasks(self, call: Call) -> Reply:
        """The definitions of many tasks; unknown ids are left out."""
        found, token = await self._many(call)
        return Reply({"tasks": [{"taskId": task.task_id, "task": task.definition} for task in found], **token})

    async def statuses(self, call: Call) -> Reply:
        """The status of many tasks; unknown ids are left out."""
        found, token = await self._many(call)
        return Reply({"statuses": [{"taskId": task.task_id, "status": tasks.status(task)} for task in found], **token})

    async def _many(self, call: Call) -> tuple[list[Task], dict[str, str]]:
        task_ids = call.read(TasksRequest).task_ids
        call.authorize(taskIds=task_ids)
        page = call.page()
        wanted = [task_id for task_id in sorted(set(task_ids)) if task_id > page.after_text][: page.limit + 1]

        def work(tx: Transaction) -> list[Task]:
            found = (task_table.find(tx, task_id) for task_id in wanted[: page.limit])
            return [task for task in found if task is not None]

        return await self.store.transact(work), page.token(wanted)

    async def list_dependent_tasks(self, call: Call) -> Reply:
        """The tasks that wait, or waited, for a task."""
        page = call.page()

        def work(tx: Transaction) -> Json:
            task_table.get(tx, call.task_id)
            rows = task_table.select(
                tx,
                "task_id IN (SELECT task_id FROM dependencies WHERE required = ?) AND seq > ? ORDER BY seq LIMIT ?",
                call.task_id,
                page.after_number,
                page.limit + 1,
            )
            listed = [task_table.definition_and_status(task_table.from_row(row)) for row in rows[: page.limit]]
            return {"taskId": call.task_id, "tasks": listed, **page.token([row["seq"] for row in rows])}

        return Reply(await self.store.transact(work))

    async def create_task(self, call: Call) -> Reply:
        """Create a task; the same again is the same task, anything else under its id is a conflict."""
        request = call.read(CreateTaskRequest)
        _refuse_duplicates("dependencies", request.dependencies)
        _refuse_duplicates("routes", request.routes)
        definition = _complete(call.task_id, call.document, call.moment)
        call.authorize(
            scopes=definition["scopes"],
            routes=definition["routes"],
            projectId=definition["projectId"],
            schedulerId=definition["schedulerId"],
            provisionerId=definition["provisionerId"],
            workerType=definition["workerType"],
            priorities=PRIORITIES[PRIORITIES.index(definition["priority"]) :],
        )

        def work(tx: Transaction) -> Task:
            existing = task_table.find(tx, call.task_id)
            if existing is not None:
                if existing.definition != definition:
                    raise RequestConflict(f"taskId {call.task_id} is already used by another task")
                return existing
            _check_times(definition, call)
            _check_dependencies(tx, call.task_id, definition)
            _join_group(tx, definition)
            worker_table.queue_seen(tx, definition["taskQueueId"], call.now)
            new = Task(call.task_id, definition, definition["priority"], definition["retries"])
            return task_table.insert(tx, new, call.now)

        return Reply({"status": tasks.status(await self.store.transact(work))})

    async def schedule_task(self, call: Call) -> Reply:
        """Make an unscheduled task pending, whatever it waits for."""
        return await self._change(call, lambda task: tasks.schedule(task, call.now))

    async def rerun_task(self, call: Call) -> Reply:
        """Run a resolved task once more."""
        return await self._change(call, lambda task: tasks.rerun(task, call.now))

    async def cancel_task(self, call: Call) -> Reply:
        """Resolve an unresolved task as canceled."""
        return await self._change(call, lambda task: tasks.cancel(task, call.now))

    async def change_task_priority(self, call: Call) -> Reply:
        """Change the priority of an unresolved task."""
        priority = call.read(ChangeTaskPriorityRequest).new_priority
        return await self._change(call, lambda task: tasks.prioritise(task, priority))

    async def _change(self, call: Call, change: Callable[[Task], Task]) -> Reply:
        def work(tx: Transaction) -> Task:
            task = task_table.get(tx, call.task_id)
            names = ("schedulerId", "taskGroupId", "projectId", "taskQueueId")
            call.authorize(**{name: task.definition[name] for name in names})
            return task_table.save(tx, change(task), call.now)

        return Reply({"status": tasks.status(await self.store.transact(work))})


def _complete(task_id: str, document: Any, moment: datetime) -> Json:
    """The definition with defaults filled in and times in one form, so that equal definitions are equal."""
    pool = document.get("taskQueueId")
    halves = (document.get("provisionerId"), document.get("workerType"))
    if pool is None:
        if None in halves:
            raise InputError("Task is missing taskQueueId, or provisionerId and workerType")
        pool = "/".join(halves)
    provisioner_id, worker_type = pool.split("/")
    if any(given not in (None, half) for given, half in zip(halves, (provisioner_id, worker_type), strict=True)):
        raise InputError("taskQueueId must match provisionerId/workerType")
    deadline = _time(document, "deadline")
    if deadline > moment + LONGEST_DEADLINE + CLOCK_DRIFT:
        raise InputError("Deadline cannot be more than 5 days into the future")
    expires = _time(document, "expires") if "expires" in document else deadline + DEFAULT_EXPIRY
    return {
        "dependencies": [],
        "extra": {},
        "priority": "lowest",
        "projectId": "none",
        "requires": "all-completed",
        "retries": 5,
        "routes": [],
        "schedulerId": "-",
        "scopes": [],
        "tags": {},
        "taskGroupId": task_id,
        **document,
        "taskQueueId": pool,
        "provisionerId": provisioner_id,
        "workerType": worker_type,
        "created": to_wire(_time(document, "created")),
        "deadline": to_wire(deadline),
        "expires": to_wire(expires),
    }


def _time(document: Any, name: str) -> datetime:
    try:
        return from_wire(document[name])
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _check_times(definition: Json, call: Call) -> None:
    if definition["created"] > definition["deadline"]:
        raise InputError("Deadline cannot be before created")
    if definition["deadline"] <= call.now:
        raise InputError("Deadline cannot be in the past")
    if definition["expires"] < definition["deadline"]:
        raise InputError("Expires cannot be before the deadline")


def _check_dependencies(tx: Transaction, task_id: str, definition: Json) -> None:
    unknown = [
        required
        for required in definition["dependencies"]
        if required != task_id and task_table.find(tx, required) is None
    ]
    if unknown:
        raise InputError("Task depends on tasks that do not exist: " + ", ".join(unknown))


def _join_group(tx: Transaction, definition: Json) -> None:
    group_id, scheduler_id = definition["taskGroupId"], definition["schedulerId"]
    group = tx.one("SELECT scheduler_id, sealed FROM task_groups WHERE task_group_id = ?", group_id)
    if group is None:
        tx.run("INSERT INTO task_groups VALUES (?, ?, ?, NULL)", group_id, scheduler_id, definition["expires"])
        return
    if group["scheduler_id"] != scheduler_id:
        raise RequestConflict(f"Task group {group_id} has schedulerId {group['scheduler_id']}, not {scheduler_id}")
    if group["sealed"] is not None:
        raise RequestConflict(f"Task group {group_id} was sealed at {group['sealed']}: it takes no more tasks")
    tx.run("UPDATE task_groups SET expires = max(expires, ?) WHERE task_group_id = ?", definition["expires"], group_id)


def _refuse_duplicates(name: str, items: list[str]) -> None:
    if len(set(items)) != len(items):
        raise InputValidationError(f"Schema Validation Failed!\nErrors:\n  * {name}: items must be unique")
