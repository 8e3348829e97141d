"""The index service: tasks by names, which completed tasks get by their routes `index.NAME`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from worker.embedded import index_table
from worker.embedded.api_artifacts import GET_ARTIFACT
from worker.embedded.call import Call
from worker.embedded.errors import InputValidationError
from worker.embedded.index_table import Entry
from worker.embedded.routing import Endpoint, Handler, Reply, check
from worker.embedded.scopes import AllOf, Each, Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import to_wire
from worker.queue.models import InsertTaskRequest
from worker.queue.wire import Request

FIND_TASKS = AllOf((Each("index:find-task:<indexPath>", "indexPath", "indexPaths"),))


class TasksAtIndexRequest(Request):
    """Paths (`list-tasks-at-index`)."""

    indexes: list[str] = []


@dataclass(frozen=True)
class IndexMethods:
    """The methods, on a store; `get_artifact` answers for the latest run of the task that a call's path names."""

    store: Store
    get_artifact: Handler

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        table: list[tuple[str, Expression, Handler]] = [
            ("findTask", "index:find-task:<indexPath>", self.find_task),
            ("findTasksAtIndex", FIND_TASKS, self.find_tasks_at_index),
            ("listNamespaces", "index:list-namespaces:<namespace>", self.list_namespaces),
            ("listTasks", "index:list-tasks:<namespace>", self.list_tasks),
            ("insertTask", "index:insert-task:<namespace>", self.insert_task),
            ("deleteTask", "index:delete-task:<namespace>", self.delete_task),
            ("findArtifactFromTask", "queue:get-artifact:<name>", self.find_artifact_from_task),
        ]
        return [Endpoint("index", *row) for row in table]

    async def find_task(self, call: Call) -> Reply:
        """The task at a path."""
        return Reply((await self._entry(call)).document())

    async def _entry(self, call: Call) -> Entry:
        return await self.store.transact(lambda tx: index_table.get(tx, call.params["indexPath"], call.now))

    async def find_tasks_at_index(self, call: Call) -> Reply:
        """The tasks at many paths; where there is none the path is left out."""
        paths = call.read(TasksAtIndexRequest).indexes
        call.authorize(indexPaths=paths)
        page = call.page()
        wanted = [path for path in sorted(set(paths)) if path > page.after_text][: page.limit + 1]

        def work(tx: Transaction) -> list[Entry | None]:
            return [index_table.find(tx, path, call.now) for path in wanted[: page.limit]]

        found = [entry.document() for entry in await self.store.transact(work) if entry is not None]
        return Reply({"tasks": found, **page.token(wanted)})

    async def list_namespaces(self, call: Call) -> Reply:
        """The namespaces immediately within one; the empty name is the root."""
        parent, page = call.params["namespace"], call.page()

        def work(tx: Transaction) -> Json:
            rows = tx.all(
                "SELECT * FROM namespaces WHERE parent = ? AND name > ? AND expires > ? ORDER BY name LIMIT ?",
                parent,
                page.after_text,
                call.now,
                page.limit + 1,
            )
            shown = [
                {
                    "namespace": index_table.join(parent, row["name"]),
                    "name": row["name"],
                    "expires": row["expires"],
                }
                for row in rows[: page.limit]
            ]
            return {"namespaces": shown, **page.token([row["name"] for row in rows])}

        return Reply(await self.store.transact(work))

    async def list_tasks(self, call: Call) -> Reply:
        """The tasks immediately within a namespace."""
        namespace, page = call.params["namespace"], call.page()

        def work(tx: Transaction) -> Json:
            entries = index_table.select(tx, namespace, page.after_text, call.now, page.limit + 1)
            shown = [entry.document() for entry in entries[: page.limit]]
            return {"tasks": shown, **page.token([index_table.split(entry.path)[1] for entry in entries])}

        return Reply(await self.store.transact(work))

    async def insert_task(self, call: Call) -> Reply:
        """Put a task at a path, unless one of a higher rank is there; the answer is what is there then."""
        path, request = _path(call), call.read(InsertTaskRequest)
        if not isfinite(request.rank):
            raise InputValidationError("Schema Validation Failed!\nErrors:\n  * rank: is out of range")
        new = Entry(path, request.task_id, request.rank, to_wire(request.expires), request.data)

        def work(tx: Transaction) -> Entry:
            index_table.insert(tx, new, call.now)
            # One that has expired already is answered, and nobody will find it.
            return index_table.find(tx, path, call.now) or new

        return Reply((await self.store.transact(work)).document())

    async def delete_task(self, call: Call) -> Reply:
        """Leave a path without a task, whether there is one or not; its namespace stays."""
        place = index_table.split(_path(call))
        await self.store.transact(
            lambda tx: tx.run("DELETE FROM indexed_tasks WHERE namespace = ? AND name = ?", *place)
        )
        return Reply({})

    async def find_artifact_from_task(self, call: Call) -> Reply:
        """A redirect to an artifact's content, of the latest run of the task at a path."""
        entry = await self._entry(call)
        # By the queue's own rule: a link needs the scope for what it leads to as well.
        endpoint = replace(call.endpoint, scopes=GET_ARTIFACT)
        return await self.get_artifact(
            replace(call, endpoint=endpoint, params={**call.params, "taskId": entry.task_id})
        )


def _path(call: Call) -> str:
    """What methods that change the index call a namespace, and which cannot be the root."""
    path = call.params["namespace"]
    check({"indexPath": path})
    return path
