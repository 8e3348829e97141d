"""Every request that the typed clients send is one that the published schemas allow, and asks the published route."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from worker.http import open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue import models
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.errors import ApiError
from worker.queue.services import Auth, ObjectService, PurgeCache, Queue, Secrets

TASKCLUSTER = Path(__file__).parents[3] / "shared" / "taskcluster"

pytestmark = pytest.mark.skipif(
    not TASKCLUSTER.is_dir(), reason="the published schemas and references are not beside this checkout"
)

ROOT_URL = "https://tc.example.com"
KEY = RunKey("KTBKfEgxR5GdfIIREQIvFQ", 3)
WHEN = datetime(2026, 1, 31, 1, 2, 3, 456789, tzinfo=UTC)
METADATA = models.TaskMetadataRequest(name="n", description="d", owner="o", source="https://example.com")
TASK = models.CreateTaskRequest(created=WHEN, deadline=WHEN, metadata=METADATA, payload={"a": None, "b": {"c": None}})
UPLOAD = models.CreateUploadRequest(
    expires=WHEN,
    project_id="none",
    upload_id=KEY.task_id,
    hashes=models.UploadHashes(sha256="0" * 64),
    proposed_upload_methods=models.ProposedUploadMethods(
        put_url=models.PutUrlUploadRequest(content_type="text/plain", content_length=3)
    ),
)
FINISH = models.FinishUploadRequest(project_id="none", upload_id=KEY.task_id)

Use = Callable[[Deployment, Callable[[], Credentials | None]], Awaitable[object]]

USES: dict[str, Use] = {
    "queue.claimWork": lambda d, c: Queue(d, c).claim_work("proj-x/native", "group", "worker", 32),
    "queue.reclaimTask": lambda d, c: Queue(d, c).reclaim(KEY),
    "queue.reportCompleted": lambda d, c: Queue(d, c).report_completed(KEY),
    "queue.reportFailed": lambda d, c: Queue(d, c).report_failed(KEY),
    "queue.reportException": lambda d, c: Queue(d, c).report_exception(KEY, "worker-shutdown"),
    "queue.createArtifact": lambda d, c: Queue(d, c).create_artifact(
        KEY, "public/a", models.S3ArtifactRequest(expires=WHEN, content_type="text/plain")
    ),
    "queue.createArtifact object": lambda d, c: Queue(d, c).create_artifact(
        KEY, "a", models.ObjectArtifactRequest(expires=WHEN, content_type="text/plain", content_length=3)
    ),
    "queue.createArtifact reference": lambda d, c: Queue(d, c).create_artifact(
        KEY, "a", models.ReferenceArtifactRequest(expires=WHEN, content_type="text/plain", url="https://x/y")
    ),
    "queue.createArtifact link": lambda d, c: Queue(d, c).create_artifact(
        KEY, "a", models.LinkArtifactRequest(expires=WHEN, artifact="public/b")
    ),
    "queue.createArtifact error": lambda d, c: Queue(d, c).create_artifact(
        KEY, "a", models.ErrorArtifactRequest(expires=WHEN, reason="file-missing-on-worker", message="gone")
    ),
    "queue.finishArtifact": lambda d, c: Queue(d, c).finish_artifact(KEY, "public/a", KEY.task_id),
    "queue.listArtifacts": lambda d, c: Queue(d, c).list_artifacts(KEY),
    "queue.getArtifact": lambda d, c: Queue(d, c).get_artifact(KEY, "public/a"),
    "queue.task": lambda d, c: Queue(d, c).task(KEY.task_id),
    "queue.status": lambda d, c: Queue(d, c).status(KEY.task_id),
    "queue.statuses": lambda d, c: Queue(d, c).statuses([KEY.task_id]),
    "queue.createTask": lambda d, c: Queue(d, c).create_task(KEY.task_id, TASK),
    "queue.cancelTask": lambda d, c: Queue(d, c).cancel_task(KEY.task_id),
    "object.createUpload": lambda d, c: ObjectService(d, c).create_upload("some/name", UPLOAD),
    "object.finishUpload": lambda d, c: ObjectService(d, c).finish_upload("some/name", FINISH),
    "purge-cache.purgeRequests": lambda d, c: PurgeCache(d, c).requests("proj-x/native", WHEN),
    "secrets.get": lambda d, c: Secrets(d, c).get("some/secret"),
    "auth.websocktunnelToken": lambda d, c: Auth(d, c).websocktunnel_token("audience", "client"),
}


class Recorder(Ports):
    """A network that keeps the request and refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[httpx.Request] = []

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return httpx.Response(418)

        return httpx.MockTransport(handle)


def entry_of(service: str, method: str) -> dict[str, Any]:
    document = json.loads((TASKCLUSTER / "references" / service / "v1" / "api.json").read_text(encoding="utf-8"))
    (entry,) = (entry for entry in document["entries"] if entry["name"] == method)
    assert isinstance(entry, dict)
    return entry


@cache
def schema_registry() -> Registry[Any]:
    registry: Registry[Any] = Registry()
    for path in sorted((TASKCLUSTER / "schemas").rglob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if "$id" in document:
            # The metaschemas are Taskcluster's own; what they add does not matter for validation.
            document.pop("$schema", None)
            resource = Resource.from_contents(document, default_specification=DRAFT7)
            registry = registry.with_resource(document["$id"].rstrip("#"), resource)
    return registry


@pytest.mark.parametrize("use", sorted(USES))
async def test_request_is_as_published(use: str) -> None:
    service, _, method = use.partition(" ")[0].partition(".")
    ports = Recorder()
    async with open_http(ports) as http:
        with pytest.raises(ApiError, match="418"):
            await USES[use](Deployment(ROOT_URL, http, ports), lambda: Credentials("c", "t"))
    (request,) = ports.requests
    entry = entry_of(service, method)
    assert request.method == entry["method"].upper()
    route = request.url.raw_path.decode().partition("?")[0].removeprefix(f"/api/{service}/v1")
    assert len(route.split("/")) == len(entry["route"].split("/"))
    assert set(request.url.params) <= set(entry.get("query", []))
    if "input" in entry:
        validator = jsonschema.Draft7Validator(
            {"$ref": f"/schemas/{service}/{entry['input'].rstrip('#')}"},
            registry=schema_registry(),
            format_checker=jsonschema.FormatChecker(),
        )
        validator.validate(json.loads(request.content))
    else:
        assert request.content == b""


def test_nulls_of_a_payload_are_kept() -> None:
    assert TASK.to_wire()["payload"] == {"a": None, "b": {"c": None}}
    assert TASK.to_wire()["created"] == "2026-01-31T01:02:03.456Z"
