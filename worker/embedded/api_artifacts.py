"""Queue methods on artifacts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.embedded import artifact_table, blobs, task_table
from worker.embedded.artifact_table import Artifact
from worker.embedded.auth import Client, issue
from worker.embedded.blobs import Blobs
from worker.embedded.call import Call
from worker.embedded.errors import InputError, InputValidationError, RequestConflict, ResourceNotFound
from worker.embedded.routing import Endpoint, Handler, Reply
from worker.embedded.scopes import AllOf, Each, Expression
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json, Run, Task
from worker.embedded.times import from_wire, to_wire
from worker.ports import Ports
from worker.queue.models import FinishArtifactRequest, PostArtifactRequest

LATE_UPLOADS = timedelta(minutes=25)
"""For how long a run that ended in exception still takes artifacts."""
DETAILS = {"reference": ("url",), "link": ("artifact",), "error": ("reason", "message")}
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]+")
CONTENT_TYPE = re.compile(r"[\x20-\x7e]*")
GET_ARTIFACT = AllOf((Each("queue:get-artifact:<name>", "name", "names"),))


@dataclass(frozen=True)
class ArtifactMethods:
    """The methods; `issuer` signs the credentials for the object service. `objects_once`: as `EmbeddedQueue` says."""

    ports: Ports
    store: Store
    blobs: Blobs
    issuer: Client
    objects_once: bool = False

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        create = "queue:create-artifact:<taskId>/<runId>"
        list_run, list_latest = "queue:list-artifacts:<taskId>:<runId>", "queue:list-artifacts:<taskId>"
        table: list[tuple[str, Expression, Handler]] = [
            ("createArtifact", create, self.create_artifact),
            ("finishArtifact", create, self.finish_artifact),
            ("getArtifact", GET_ARTIFACT, self.get_artifact),
            ("getLatestArtifact", GET_ARTIFACT, self.get_artifact),
            ("artifact", GET_ARTIFACT, self.artifact),
            ("latestArtifact", GET_ARTIFACT, self.artifact),
            ("listArtifacts", list_run, self.list_artifacts),
            ("listLatestArtifacts", list_latest, self.list_artifacts),
            ("artifactInfo", list_run, self.artifact_info),
            ("latestArtifactInfo", list_latest, self.artifact_info),
        ]
        return [Endpoint("queue", *row) for row in table]

    async def create_artifact(self, call: Call) -> Reply:
        """Create an artifact, or say again what it is; an upload is answered with where to send it."""
        call.read(PostArtifactRequest)
        wanted: Json = call.document
        _refuse_bad_headers(wanted)

        def work(tx: Transaction) -> tuple[Artifact, Task]:
            task = task_table.get(tx, call.task_id)
            _refuse_unless_open(task, call)
            new = self._artifact(call, wanted)
            if new.expires > task.definition["expires"]:
                raise InputError(f"Artifact expires ({new.expires}) after the task does ({task.definition['expires']})")
            if (
                self.objects_once
                and new.storage_type == "object"
                and artifact_table.find(tx, new.task_id, new.run_id, new.name)
            ):
                raise RequestConflict(f"Artifact {new.name!r} was already created")
            return artifact_table.put(tx, new), task

        artifact, task = await self.store.transact(work)
        return Reply(self._created(call, artifact, task))

    def _artifact(self, call: Call, wanted: Json) -> Artifact:
        kind, name = wanted["storageType"], call.params["name"]
        details = {name: wanted[name] for name in DETAILS.get(kind, ())}
        if kind == "s3":
            details = {"blobId": self.ports.slug()}
        elif kind == "object":
            blob_id = blobs.blob_id_of(object_name(call.task_id, call.run_id, name))
            details = {"uploadId": self.ports.slug(), "blobId": blob_id}
        return Artifact(
            task_id=call.task_id,
            run_id=call.run_id,
            name=name,
            storage_type=kind,
            content_type=wanted.get("contentType", "application/json"),
            expires=to_wire(from_wire(wanted["expires"])),
            details=details,
            present=kind != "object",
        )

    def _created(self, call: Call, artifact: Artifact, task: Task) -> Json:
        if artifact.storage_type == "s3":
            return {
                "storageType": "s3",
                "putUrl": self.blobs.put_url(artifact.details["blobId"], artifact.content_type, call.moment),
                "contentType": artifact.content_type,
                "expires": to_wire(call.moment + blobs.URL_LIFETIME),
            }
        if artifact.storage_type == "object":
            name, project_id = (
                object_name(artifact.task_id, artifact.run_id, artifact.name),
                task.definition["projectId"],
            )
            scopes = [f"object:upload:{project_id}:{name}"]
            return {
                "storageType": "object",
                "name": name,
                "projectId": project_id,
                "uploadId": artifact.details["uploadId"],
                "credentials": self._credentials(call, artifact, "upload", scopes),
                "expires": artifact.expires,
            }
        return {"storageType": artifact.storage_type}

    def _credentials(self, call: Call, artifact: Artifact, purpose: str, scopes: list[str]) -> dict[str, str]:
        name = f"artifact-{purpose}/{artifact.task_id}/{artifact.run_id}"
        return issue(self.ports, self.issuer, name, scopes, call.moment, call.moment + blobs.URL_LIFETIME)

    async def finish_artifact(self, call: Call) -> Reply:
        """Make an uploaded object present."""
        upload_id = call.read(FinishArtifactRequest).upload_id

        def work(tx: Transaction) -> None:
            task_table.get(tx, call.task_id).run(call.run_id)
            artifact = artifact_table.find(tx, call.task_id, call.run_id, call.params["name"])
            if artifact is None:
                raise ResourceNotFound(f"Artifact {call.params['name']!r} does not exist")
            if artifact.storage_type != "object":
                raise InputError(f"An artifact of storage type {artifact.storage_type} cannot be finished")
            if artifact.details["uploadId"] != upload_id:
                raise InputError("uploadId is not the one that createArtifact gave")
            tx.run(
                "UPDATE artifacts SET present = 1 WHERE task_id = ? AND run_id = ? AND name = ?",
                call.task_id,
                call.run_id,
                artifact.name,
            )

        await self.store.transact(work)
        return Reply()

    async def get_artifact(self, call: Call) -> Reply:
        """A redirect to the content."""
        artifact = await self._resolved(call)
        headers = {"x-taskcluster-artifact-storage-type": artifact.storage_type}
        if artifact.storage_type == "error":
            return Reply(dict(artifact.details), 424, headers)
        url = artifact.details.get("url") or self.blobs.get_url(artifact.details["blobId"], call.moment)
        return Reply({"storageType": artifact.storage_type, "url": url}, 303, {**headers, "location": url})

    async def artifact(self, call: Call) -> Reply:
        """How to get at the content."""
        artifact = await self._resolved(call)
        document: Json = {"storageType": artifact.storage_type}
        if artifact.storage_type == "s3":
            return Reply({**document, "url": self.blobs.get_url(artifact.details["blobId"], call.moment)})
        if artifact.storage_type == "object":
            name = object_name(artifact.task_id, artifact.run_id, artifact.name)
            credentials = self._credentials(call, artifact, "download", [f"object:download:{name}"])
            return Reply({**document, "name": name, "credentials": credentials})
        return Reply({**document, **artifact.details})

    async def _resolved(self, call: Call) -> Artifact:
        name = call.params["name"]
        # Who may not read the name learns nothing of what is there.
        call.authorize(names=[name])

        def work(tx: Transaction) -> Artifact:
            artifact = artifact_table.get(tx, call.task_id, _run_id(tx, call), name, call.now)
            artifact, names = artifact_table.resolve(tx, artifact, call.now)
            call.authorize(names=names)
            return artifact

        return await self.store.transact(work)

    async def list_artifacts(self, call: Call) -> Reply:
        """What there is of a run; uploads of objects that were not finished are not there yet."""
        page = call.page()

        def work(tx: Transaction) -> Json:
            rows = tx.all(
                "SELECT * FROM artifacts WHERE task_id = ? AND run_id = ? AND name > ? AND present AND expires > ?"
                " ORDER BY name LIMIT ?",
                call.task_id,
                _run_id(tx, call),
                page.after_text,
                call.now,
                page.limit + 1,
            )
            listed = [artifact_table.from_row(row) for row in rows[: page.limit]]
            shown = [artifact_table.information(tx, artifact) for artifact in listed]
            return {"artifacts": shown, **page.token([row["name"] for row in rows])}

        return Reply(await self.store.transact(work))

    async def artifact_info(self, call: Call) -> Reply:
        """What is known of an artifact; links are not followed."""

        def work(tx: Transaction) -> Json:
            name = call.params["name"]
            artifact = artifact_table.get(tx, call.task_id, _run_id(tx, call), name, call.now)
            return artifact_table.information(tx, artifact)

        return Reply(await self.store.transact(work))


def object_name(task_id: str, run_id: int, name: str) -> str:
    """What the object service calls the content of an artifact."""
    return f"t/{task_id}/{run_id}/{name}"


def _refuse_bad_headers(wanted: Json) -> None:
    """Both go into headers of answers, where nothing but printable ASCII may stand."""
    for name, pattern in (("url", URL), ("contentType", CONTENT_TYPE)):
        if name in wanted and not pattern.fullmatch(wanted[name]):
            raise InputValidationError(f"Schema Validation Failed!\nErrors:\n  * {name}: must match {pattern.pattern}")


def _run_id(tx: Transaction, call: Call) -> int:
    """The run that the path names, or the latest."""
    task = task_table.get(tx, call.task_id)
    if "runId" in call.params:
        task.run(call.run_id)
        return call.run_id
    if not task.runs:
        raise ResourceNotFound(f"Task {call.task_id} has no runs")
    return len(task.runs) - 1


def last_upload(run: Run) -> datetime:
    """Until when a resolved run may get artifacts."""
    return from_wire(run.resolved or "") + (LATE_UPLOADS if run.state == "exception" else timedelta())


def _refuse_unless_open(task: Task, call: Call) -> None:
    run = task.run(call.run_id)
    if run.state == "running" or (run.state == "exception" and call.moment <= last_upload(run)):
        return
    raise RequestConflict(
        f"Artifacts cannot be created for run {call.run_id} of task {task.task_id}: it is {run.state}"
    )
