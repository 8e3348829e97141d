"""The committed models are what the published schemas give, and they read what the services send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from worker.queue import generate_models, models

SCHEMAS = Path(__file__).parents[3] / "shared" / "taskcluster" / "schemas"

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the published schemas are not beside this checkout")


@needs_schemas
def test_committed_models_are_what_the_schemas_give() -> None:
    committed = generate_models.OUTPUT.read_text(encoding="utf-8")
    assert generate_models.generate(SCHEMAS) == committed, "make models SCHEMAS=DIR brings them up to date"


@needs_schemas
def test_every_property_has_its_wire_name() -> None:
    definitions = generate_models.combine(SCHEMAS).definitions
    objects = {name: schema for name, schema in definitions.items() if "properties" in schema}
    assert len(objects) > 70
    for name, schema in objects.items():
        model: type[BaseModel] = getattr(models, name)
        assert {field.alias for field in model.model_fields.values()} == set(schema["properties"])


def test_wrong_usage_of_the_generator_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert generate_models.main([]) == 2
    assert generate_models.main([str(tmp_path)]) == 2
    assert "SCHEMAS" in capsys.readouterr().err


RUN = {"runId": 0, "state": "running", "reasonCreated": "scheduled", "scheduled": "2026-01-31T00:00:00.000Z"}


def claim(**more: Any) -> dict[str, Any]:
    task_id, moment = "KTBKfEgxR5GdfIIREQIvFQ", "2026-01-31T00:00:00.000Z"
    shared = {"provisionerId": "p", "workerType": "w", "taskQueueId": "p/w", "schedulerId": "-", "taskGroupId": task_id}
    times = {"deadline": moment, "expires": moment}
    status = {**shared, **times, "taskId": task_id, "projectId": "none", "retriesLeft": 5, "state": "running"}
    task: dict[str, Any] = {
        **shared,
        **times,
        "created": moment,
        "dependencies": [],
        "requires": "all-completed",
        "routes": [],
    }
    task |= {"priority": "low", "retries": 5, "scopes": [], "tags": {}, "extra": {}, "payload": {"a": None}}
    task |= {"metadata": {"name": "n", "description": "d", "owner": "o", "source": "https://example.com"}}
    return {
        "status": {**status, "runs": [RUN]},
        "runId": 0,
        "workerGroup": "g",
        "workerId": "i",
        "takenUntil": "2026-01-31T00:20:00.000+00:00",
        "task": task,
        "credentials": {"clientId": "task-client", "accessToken": "topsecret", "certificate": '{"a":"topsecret"}'},
        **more,
    }


def test_claim_is_read_and_what_is_new_in_it_is_ignored() -> None:
    got = models.TaskClaim.model_validate(claim(brandNew={"thing": 1}))
    assert got.taken_until.utcoffset() is not None
    assert got.task.payload == {"a": None}
    assert got.to_wire()["takenUntil"] == "2026-01-31T00:20:00.000Z"
    assert got.to_wire()["task"]["payload"] == {"a": None}


def test_nothing_secret_is_in_a_repr_or_in_an_error() -> None:
    got = models.TaskClaim.model_validate(claim())
    assert "topsecret" not in repr(got) + str(got)
    assert "task-client" in repr(got)
    with pytest.raises(ValidationError) as caught:
        models.TaskClaim.model_validate(claim(credentials={"clientId": "c", "accessToken": ["topsecret"]}))
    assert "topsecret" not in str(caught.value)


def test_request_with_an_unknown_property_is_refused() -> None:
    body = {"tasks": 1, "workerGroup": "g", "workerId": "i"}
    assert models.ClaimWorkRequest.model_validate(body).to_wire() == body
    with pytest.raises(ValidationError, match="workerGrop"):
        models.ClaimWorkRequest.model_validate({**body, "workerGrop": "g"})


@pytest.mark.parametrize("change", [{"tasks": 0}, {"tasks": 33}, {"workerId": "x" * 39}, {"workerId": "a b"}])
def test_constraints_of_the_schema_hold(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        models.ClaimWorkRequest.model_validate({"tasks": 1, "workerGroup": "g", "workerId": "i", **change})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"storageType": "s3", "contentType": "text/plain"}, models.S3ArtifactRequest),
        ({"storageType": "object", "contentType": "text/plain"}, models.ObjectArtifactRequest),
        ({"storageType": "reference", "contentType": "text/plain", "url": "http://x"}, models.ReferenceArtifactRequest),
        ({"storageType": "link", "artifact": "public/a"}, models.LinkArtifactRequest),
        ({"storageType": "error", "reason": "file-missing-on-worker", "message": "m"}, models.ErrorArtifactRequest),
    ],
)
def test_artifact_request_is_told_apart_by_its_storage_type(document: dict[str, Any], expected: type) -> None:
    body = json.dumps({**document, "expires": "2026-01-31T00:00:00.000Z"})
    request = models.PostArtifactRequest.model_validate_json(body).root
    assert type(request) is expected
    assert request.to_wire() == json.loads(body)


def test_url_of_an_artifact_is_kept_to_the_letter() -> None:
    url = "https://HOST/a%2Fb?X-Amz-Signature=a%2fb+c"
    body = {"storageType": "s3", "contentType": "a/b", "expires": "2026-01-31T00:00:00Z", "putUrl": url}
    assert models.S3ArtifactResponse.model_validate(body).put_url == url
