"""Every answer of the embedded queue obeys the published schemas; its methods and scopes are the published ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import taskcluster
import trio
from referencing import Registry
from referencing.jsonschema import DRAFT7

from worker.embedded import EmbeddedQueue, open_embedded_queue
from worker.embedded.routing import Endpoint
from worker.embedded.scopes import AllOf, AnyOf, Each, Expression
from worker.ports import Ports

SHARED = Path(__file__).parents[2].parent / "shared" / "taskcluster"
POOL = "test-provisioner/test-worker"
HALVES = tuple(POOL.split("/"))
WORKER = {"workerGroup": "group", "workerId": "worker-1"}
SERVICES = {
    "auth": "Auth",
    "index": "Index",
    "object": "Object",
    "purge-cache": "PurgeCache",
    "queue": "Queue",
    "secrets": "Secrets",
}
# Never answered by the deployed services to a worker either, or of no use to one machine.
ELSEWHERE = {"auth"}

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/taskcluster, the published schemas, is absent")


def references(service: str) -> dict[str, dict[str, Any]]:
    document = json.loads((SHARED / "references" / service / "v1" / "api.json").read_text())
    return {entry["name"]: entry for entry in document["entries"]}


class Contract:
    """Checks what a method answers against its schema, and remembers which methods were seen."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._schemas: dict[str, Any] = {}
        resources = []
        for path in (SHARED / "schemas").rglob("*.json"):
            document = json.loads(path.read_text())
            name = f"/schemas/{path.relative_to(SHARED / 'schemas')}"
            document = {**document, "$id": f"https://contract.test{name}"}
            self._schemas[name] = document
            resources.append((document["$id"], DRAFT7.create_resource(document)))
        self._registry: Registry[Any] = Registry().with_resources(resources)

    def check(self, service: str, method: str, answer: Any) -> None:
        entry = references(service)[method]
        self.seen.add(f"{service}.{method}")
        schema = entry.get("output")
        if schema is None:
            return
        document = self._schemas[f"/schemas/{service}/{schema.removesuffix('#')}"]
        validator = jsonschema.Draft7Validator(
            document, registry=self._registry, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
        )
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(answer)]
        assert not problems, f"{service}.{method}: {problems}"


class Caller:
    """The official clients, which hand every answer to the contract."""

    def __init__(self, root_url: str, credentials: dict[str, str], contract: Contract) -> None:
        self.root_url = root_url
        self.credentials = credentials
        self.contract = contract

    def __call__(self, service: str, method: str, *args: object) -> Any:
        options = {"rootUrl": self.root_url, "credentials": dict(self.credentials), "maxRetries": 0}
        client = getattr(taskcluster, SERVICES[service])(options)
        # The clients hand the body on as it came.
        document = getattr(client, method)(*args)
        self.contract.check(service, method, document)
        return document

    def of_run(self, claim: dict[str, Any]) -> Caller:
        return Caller(self.root_url, claim["credentials"], self.contract)


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat().replace("+00:00", "Z")


def definition(**changes: Any) -> dict[str, Any]:
    metadata = {"name": "n", "description": "d", "owner": "o", "source": "https://example.com/"}
    return {
        "taskQueueId": POOL,
        "created": in_hours(0),
        "deadline": in_hours(1),
        "payload": {},
        "metadata": metadata,
        **changes,
    }


def tasks_and_groups(call: Caller) -> None:
    group, first, second = (taskcluster.slugId() for _ in range(3))
    call("queue", "createTask", first, definition(taskGroupId=group))
    call("queue", "createTask", second, definition(taskGroupId=group, dependencies=[first], priority="high"))
    for method in ("task", "status", "listDependentTasks"):
        call("queue", method, first)
    for method in ("tasks", "statuses"):
        call("queue", method, {"taskIds": [first, second]})
    call("queue", "scheduleTask", second)
    call("queue", "changeTaskPriority", second, {"newPriority": "low"})
    call("queue", "changeTaskGroupPriority", group, {"newPriority": "medium"})
    call("queue", "cancelTask", second)
    call("queue", "rerunTask", second)
    for method in ("getTaskGroup", "listTaskGroup", "sealTaskGroup", "cancelTaskGroup", "listTaskGroup"):
        call("queue", method, group)


def runs(call: Caller) -> tuple[str, Caller]:
    kept, shut, failed, single = (taskcluster.slugId() for _ in range(4))
    for task_id in (kept, shut, failed):
        call("queue", "createTask", task_id, definition(scopes=["a:b"]))
    call("queue", "listPendingTasks", POOL)
    claims = call("queue", "claimWork", POOL, {**WORKER, "tasks": 32})["tasks"]
    by_task = {claim["status"]["taskId"]: claim for claim in claims}
    call("queue", "listClaimedTasks", POOL)
    call.of_run(by_task[kept])("queue", "reclaimTask", kept, 0)
    call.of_run(by_task[shut])("queue", "reportException", shut, 0, {"reason": "worker-shutdown"})
    call.of_run(by_task[failed])("queue", "reportFailed", failed, 0)
    call("queue", "createTask", single, definition())
    claim = call("queue", "claimTask", single, 0, WORKER)
    call.of_run({**claim})("queue", "reportCompleted", single, 0)
    return kept, call.of_run(by_task[kept])


def workers(call: Caller) -> None:
    worker = (*HALVES, WORKER["workerGroup"], WORKER["workerId"])
    for method in ("pendingTasks", "taskQueueCounts", "getTaskQueue"):
        call("queue", method, POOL)
    for method in ("listTaskQueues", "listProvisioners"):
        call("queue", method)
    call("queue", "getProvisioner", HALVES[0])
    call("queue", "listWorkerTypes", HALVES[0])
    call("queue", "getWorkerType", *HALVES)
    call("queue", "listWorkers", *HALVES)
    call("queue", "quarantineWorker", *worker, {"quarantineUntil": in_hours(1), "quarantineInfo": "why"})
    call("queue", "getWorker", *worker)
    call("queue", "listWorkers", *HALVES)
    call("queue", "declareWorker", *HALVES, "group", "declared", {"expires": in_hours(1)})


def artifacts(call: Caller, task_id: str, worker: Caller) -> None:
    expires, text = {"expires": in_hours(3)}, {"contentType": "text/plain"}
    bodies: dict[str, dict[str, Any]] = {
        "public/s3": {"storageType": "s3", **text},
        "public/reference": {"storageType": "reference", "url": "https://example.com/", **text},
        "public/link": {"storageType": "link", "artifact": "public/s3"},
        "public/error": {"storageType": "error", "reason": "file-missing-on-worker", "message": "m"},
        "public/object": {"storageType": "object", **text},
    }
    created = {
        name: worker("queue", "createArtifact", task_id, 0, name, {**body, **expires}) for name, body in bodies.items()
    }
    upload(worker, created["public/object"])
    finish = {"uploadId": created["public/object"]["uploadId"]}
    worker("queue", "finishArtifact", task_id, 0, "public/object", finish)
    requests.put(
        created["public/s3"]["putUrl"], b"content", headers={"Content-Type": "text/plain"}, timeout=10
    ).raise_for_status()
    for name in bodies:
        for of_run, latest in (("artifactInfo", "latestArtifactInfo"), ("artifact", "latestArtifact")):
            call("queue", of_run, task_id, 0, name)
            call("queue", latest, task_id, name)
        if name != "public/error":
            call("queue", "getArtifact", task_id, 0, name)
            call("queue", "getLatestArtifact", task_id, name)
    call("queue", "listArtifacts", task_id, 0)
    call("queue", "listLatestArtifacts", task_id)
    content = call("queue", "artifact", task_id, 0, "public/object")
    reader = call.of_run(content)
    for method in ("getUrl", "simple"):
        reader("object", "startDownload", content["name"], {"acceptDownloadMethods": {method: True}})
    reader("object", "object", content["name"])
    reader("object", "download", content["name"])


def upload(worker: Caller, created: dict[str, Any]) -> None:
    agreed = {"projectId": created["projectId"], "uploadId": created["uploadId"]}
    inline = {"contentType": "text/plain", "objectData": base64.b64encode(b"content").decode()}
    put = {"contentType": "text/plain", "contentLength": 7}
    uploader = worker.of_run(created)
    proposals: list[dict[str, Any]] = [{}, {"putUrl": put}, {"dataInline": inline, "putUrl": put}]
    for proposed in proposals:
        body = {**agreed, "expires": created["expires"], "proposedUploadMethods": proposed}
        uploader("object", "createUpload", created["name"], body)
    uploader("object", "finishUpload", created["name"], agreed)


def index(call: Caller, task_id: str) -> None:
    entry = {"taskId": task_id, "rank": 1, "data": {"a": 1}, "expires": in_hours(1)}
    call("index", "insertTask", "a.b.c", entry)
    call("index", "findTask", "a.b.c")
    call("index", "findTasksAtIndex", {"indexes": ["a.b.c", "a.b.d"]})
    call("index", "findArtifactFromTask", "a.b.c", "public/s3")
    for namespace in ("a", "a.b"):
        call("index", "listNamespaces", namespace)
        call("index", "listTasks", namespace)
    call("index", "deleteTask", "a.b.c")


def others(call: Caller) -> None:
    call("secrets", "set", "a/b", {"secret": {"a": 1}, "expires": in_hours(1)})
    call("secrets", "get", "a/b")
    call("secrets", "list")
    call("secrets", "remove", "a/b")
    call("purge-cache", "purgeCache", POOL, {"cacheName": "c"})
    call("purge-cache", "purgeRequests", POOL)
    call("purge-cache", "allPurgeRequests")
    call("auth", "currentScopes")
    call("auth", "expandScopes", {"scopes": ["a", "b"]})
    request = {"method": "get", "resource": "/x", "host": "example.com", "port": 80}
    call("auth", "authenticateHawk", request)
    call("auth", "authenticateHawk", {**request, "authorization": "Hawk nonsense"})
    call("auth", "websocktunnelToken", "audience", "group.id.webhooks")
    for service in SERVICES:
        for method in ("ping", "lbheartbeat", "heartbeat", "version"):
            call(service, method)


async def in_thread(function: Callable[..., None], *args: object) -> None:
    await trio.to_thread.run_sync(partial(function, *args))


def scenario(call: Caller) -> None:
    tasks_and_groups(call)
    task_id, worker = runs(call)
    workers(call)
    artifacts(call, task_id, worker)
    index(call, task_id)
    others(call)


async def test_every_answer_obeys_its_schema() -> None:
    contract = Contract()
    async with open_embedded_queue(Ports()) as queue:
        credentials = {"clientId": queue.credentials.client_id, "accessToken": queue.credentials.access_token}
        await in_thread(scenario, Caller(queue.root_url, credentials, contract))
    answered = {f"{endpoint.service}.{endpoint.name}" for endpoint in endpoints()}
    assert contract.seen == answered, "the scenario calls every method that there is"


def endpoints() -> list[Endpoint]:
    return EmbeddedQueue(Ports()).endpoints()


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_methods_and_scopes_are_the_published_ones(service: str) -> None:
    published = references(service)
    ours = {endpoint.name: endpoint for endpoint in endpoints() if endpoint.service == service}
    if service not in ELSEWHERE:
        assert ours.keys() == published.keys()
    for name, endpoint in ours.items():
        assert as_published(endpoint.scopes) == published[name].get("scopes"), name


def as_published(expression: Expression) -> Any:
    if isinstance(expression, str):
        return expression
    if isinstance(expression, Each):
        return {"each": expression.template, "for": expression.name, "in": expression.items}
    if isinstance(expression, AllOf):
        return {"AllOf": [as_published(part) for part in expression]} if expression else None
    assert isinstance(expression, AnyOf)
    return {"AnyOf": [as_published(part) for part in expression]}
