"""What a task may ask of artifacts, in both dialects, and what is refused before it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from artifacts_world import CREATED, TASK, file, generic
from hypothesis import given
from hypothesis import strategies as st

from plugins.artifacts import Artifacts
from plugins.artifacts.content import COMPRESSED, UNKNOWN, content_type_of, encoding_of
from plugins.artifacts.payload import ArtifactsPayload, DockerWorkerPayload, read
from worker.errors import MalformedPayload
from worker.payload import Dialect, Owner, PayloadSchema
from worker.testing.runs import task_definition


def problems(payload: ArtifactsPayload) -> list[str]:
    with pytest.raises(MalformedPayload) as caught:
        read(payload, TASK)
    return [str(problem) for problem in caught.value.problems]


def validated(payload: dict[str, Any], dialect: Dialect) -> ArtifactsPayload:
    """As the worker reads it, out of a task."""
    found = PayloadSchema([dialect], [Owner("artifacts", Artifacts.payloads)]).validate(payload)["artifacts"]
    assert isinstance(found, ArtifactsPayload)
    return found


def test_name_expiry_and_the_rest_have_defaults() -> None:
    [item] = read(generic(file("out/a.txt")), TASK)
    assert (item.name, item.expires, item.optional) == ("out/a.txt", TASK.expires, False)
    assert (item.content_type, item.encoding) == (None, None)


def test_everything_can_be_given() -> None:
    when = CREATED + timedelta(hours=2)
    more = {"name": "public/b", "expires": "2026-01-31T14:00:00.000Z", "optional": True}
    [item] = read(generic(file("b", contentType="text/x", contentEncoding="identity", **more)), TASK)
    assert (item.name, item.expires, item.optional) == ("public/b", when, True)
    assert (item.content_type, item.encoding) == ("text/x", "identity")


def test_a_task_without_expiry_keeps_its_artifacts_for_the_queues_default_of_a_year() -> None:
    [item] = read(generic(file("a")), task_definition(CREATED, expires=None))
    assert item.expires == TASK.deadline + timedelta(days=365)


@pytest.mark.parametrize("offset", [timedelta(), timedelta(hours=23)])
def test_an_expiry_may_be_the_deadline_or_the_tasks_own(offset: timedelta) -> None:
    when = TASK.deadline + offset
    [item] = read(generic(file("a", expires=when.isoformat())), TASK)
    assert item.expires == when


def test_every_problem_is_told_with_its_path() -> None:
    early, late = "2026-01-31T12:59:59.999Z", "2026-02-01T12:00:00.001Z"
    found = problems(
        generic(
            file("a", expires=early),
            file("b", expires=late),
            file("c", name="public/ü"),
            file("tab\there"),
            file("", name=""),
            file("e", name="a"),
            file("f", name="x" * 1025),
        )
    )
    assert found == [
        "artifacts[0].expires: must not be before the task's deadline, 2026-01-31T13:00:00.000Z",
        "artifacts[1].expires: must not be after the task's own expiry, 2026-02-01T12:00:00.000Z",
        "artifacts[2].name: an artifact's name must be printable ASCII, one character at least",
        "artifacts[3].path: an artifact's name must be printable ASCII, one character at least",
        "artifacts[4].path: an artifact's name must be printable ASCII, one character at least",
        "artifacts[6].name: an artifact's name must not be longer than 1024 characters",
        "artifacts[5].name: a is the name of artifacts[0] already",
    ]


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({"type": "file"}, "artifacts[0].path"),
        ({"type": "volume", "path": "a"}, "artifacts[0].type"),
        (file("a", expires=1769860800), "artifacts[0].expires"),
        (file("a", expires="1769860800"), "artifacts[0].expires"),
        (file("a", expires="2026-01-31"), "artifacts[0].expires"),
        (file("a", expires="2026-02-30T00:00:00Z"), "artifacts[0].expires"),
        (file("a", expires="2026-01-31T14:00:00"), "artifacts[0].expires"),
        (file("a", contentEncoding="br"), "artifacts[0].contentEncoding"),
        (file("a", contentType="text/plain\r\nX-Evil: 1"), "artifacts[0].contentType"),
        (file("a", contentType="x" * 256), "artifacts[0].contentType"),
        (file("a", contentType="text/plain "), "artifacts[0].contentType"),
        (file("a", optional="yes"), "artifacts[0].optional"),
        (file("a", nmae="b"), "artifacts[0].nmae"),
    ],
)
def test_what_breaks_the_schema_is_told_with_its_path(item: dict[str, Any], path: str) -> None:
    with pytest.raises(MalformedPayload) as caught:
        validated({"artifacts": [item]}, "generic-worker")
    assert [problem.path for problem in caught.value.problems] == [path]


def test_docker_workers_map_comes_to_the_same() -> None:
    entry = {"type": "directory", "path": "/home/worker/out", "expires": "2026-01-31T14:00:00+00:00"}
    payload = validated({"artifacts": {"public/out": entry}, "features": {"artifacts": True}}, "docker-worker")
    [item] = read(payload, TASK)
    assert (item.kind, item.path, item.name) == ("directory", "/home/worker/out", "public/out")
    assert item.expires == datetime(2026, 1, 31, 14, tzinfo=UTC)
    assert item.optional


def test_docker_workers_feature_switches_artifacts_off() -> None:
    entry = {"type": "file", "path": "/a"}
    payload = validated({"artifacts": {"public/a": entry}, "features": {"artifacts": False}}, "docker-worker")
    assert read(payload, TASK) == []


def test_docker_workers_volumes_are_refused() -> None:
    with pytest.raises(MalformedPayload, match="volumes are not supported") as caught:
        validated({"artifacts": {"public/a": {"type": "volume", "path": "/a"}}}, "docker-worker")
    assert caught.value.problems[0].path == "artifacts.public/a.type"


def test_docker_workers_names_are_checked() -> None:
    payload = DockerWorkerPayload.model_validate({"artifacts": {"public/ä": {"type": "file", "path": "/a"}}})
    assert problems(payload) == [
        "artifacts.public/ä: an artifact's name must be printable ASCII, one character at least"
    ]


@pytest.mark.parametrize(
    ("path", "content_type", "encoding"),
    [
        ("public/live.log", "text/plain", "gzip"),
        ("a.txt", "text/plain", "gzip"),
        ("A.HTML", "text/html", "gzip"),
        ("a.json", "application/json", "gzip"),
        ("a.tar.gz", "application/gzip", "identity"),
        ("a.TGZ", "application/gzip", "identity"),
        ("a.tar.zst", "application/zstd", "identity"),
        ("a.png", "image/png", "identity"),
        ("a.wasm", "application/wasm", "identity"),
        ("a.unheard-of", UNKNOWN, "gzip"),
        ("log", UNKNOWN, "gzip"),
        ("dir.zip/file", UNKNOWN, "gzip"),
        ("zip", UNKNOWN, "gzip"),
    ],
)
def test_type_and_encoding_follow_from_the_extension(path: str, content_type: str, encoding: str) -> None:
    assert (content_type_of(path), encoding_of(path)) == (content_type, encoding)


@given(st.text(), st.sampled_from(sorted(COMPRESSED)))
def test_what_is_compressed_stays_as_it_is_whatever_stands_before_the_extension(stem: str, extension: str) -> None:
    assert encoding_of(f"{stem}.{extension}") == "identity"
    assert encoding_of(f"{stem}.{extension.upper()}") == "identity"


@given(st.text())
def test_every_path_has_a_type_that_fits_a_header_and_the_queue(path: str) -> None:
    found = content_type_of(path)
    assert found.isascii()
    assert found.isprintable()
    assert 0 < len(found) <= 255
