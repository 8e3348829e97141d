from __future__ import annotations

from typing import Any

import pytest

from plugins.mounts.formats import ARCHIVES, COMPRESSIONS
from plugins.mounts.payload import (
    DockerWorkerPayload,
    GenericWorkerPayload,
    MountsPayload,
    may_be_role,
    missing_scopes,
    read,
    satisfied,
)
from worker.errors import MalformedPayload
from worker.payload import Dialect, Owner, PayloadSchema
from worker.testing.runs import TASK_ID, task_definition

OTHER = "AtJ5S3MCRjGWdMkpUAYpdg"
TASK = task_definition(dependencies=[TASK_ID], scopes=["generic-worker:cache:mine-*"])
RAW = {"raw": "hello"}
SCHEMA: dict[Dialect, PayloadSchema] = {
    "generic-worker": PayloadSchema(["generic-worker"], [Owner("mounts", {"generic-worker": GenericWorkerPayload})]),
    "docker-worker": PayloadSchema(["docker-worker"], [Owner("mounts", {"docker-worker": DockerWorkerPayload})]),
}


def validated(payload: dict[str, Any], dialect: Dialect = "generic-worker") -> MountsPayload:
    found = SCHEMA[dialect].validate(payload)["mounts"]
    assert isinstance(found, MountsPayload)
    return found


def problems(*mounts: dict[str, Any]) -> list[str]:
    try:
        read(validated({"mounts": list(mounts)}), TASK)
    except MalformedPayload as error:
        return [str(problem) for problem in error.problems]
    return []


def test_the_three_kinds_of_mounts_are_read() -> None:
    payload = validated(
        {
            "mounts": [
                {"file": "a/b.txt", "content": RAW, "format": "gz"},
                {"cacheName": "mine-1", "directory": "c"},
                {"cacheName": "mine-2", "directory": "d", "content": RAW, "format": "tar.zst"},
                {"directory": "e", "content": {"taskId": TASK_ID, "artifact": "public/e.zip"}, "format": "zip"},
            ],
            "onExitStatus": {"purgeCaches": [3]},
        }
    )
    found = read(payload, TASK)
    assert [(item.kind, item.path, item.format, item.cache) for item in found] == [
        ("file", "a/b.txt", "gz", ""),
        ("cache", "c", None, "mine-1"),
        ("cache", "d", "tar.zst", "mine-2"),
        ("directory", "e", "zip", ""),
    ]
    assert payload.on_exit_status.purge_caches == [3]
    assert missing_scopes(payload, found, TASK.scopes) == []


@pytest.mark.parametrize(
    "content",
    [
        {"taskId": TASK_ID, "artifact": "public/a"},
        {"taskId": TASK_ID, "artifact": "public/a", "sha256": "0" * 64},
        {"namespace": "project.a.latest", "artifact": "public/a"},
        {"url": "https://example.com/a"},
        {"url": "HTTP://example.com/a", "sha256": "f" * 64},
        {"raw": ""},
        {"base64": "aGVsbG8="},
    ],
)
def test_every_kind_of_content_is_taken(content: dict[str, str]) -> None:
    assert problems({"file": "a", "content": content}) == []


def test_content_in_the_payload_is_its_bytes() -> None:
    payload = validated(
        {"mounts": [{"file": "a", "content": {"raw": "hé"}}, {"file": "b", "content": {"base64": "AAE="}}]}
    )
    first, second = (item.content for item in payload.declared())
    assert first is not None
    assert second is not None
    assert (first.inline, second.inline) == ("hé".encode(), b"\0\1")


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ({}, "", "expected taskId and artifact"),
        ({"raw": "a", "base64": "AAE="}, "", "or one of url, raw and base64"),
        ({"taskId": TASK_ID}, "", "expected taskId and artifact"),
        ({"artifact": "a"}, "", "expected taskId and artifact"),
        ({"taskId": TASK_ID, "namespace": "a", "artifact": "a"}, "", "expected taskId and artifact"),
        ({"raw": "a", "sha256": "0" * 64}, "", "sha256 goes with"),
        ({"raw": None}, "", "expected taskId and artifact"),
        ({"taskId": "../../secrets", "artifact": "a"}, ".taskId", ""),
        ({"taskId": OTHER, "artifact": "a"}, ".taskId", "not in the task's dependencies"),
        ({"url": "https://example.com/", "sha256": "F" * 64}, ".sha256", ""),
        ({"url": "https://example.com/", "sha256": "0" * 63}, ".sha256", ""),
        ({"url": "file:///etc/passwd"}, ".url", "expected an http or https URL"),
        ({"base64": "not base64!"}, ".base64", "expected base64"),
        ({"base64": "YQ"}, ".base64", "expected base64"),
        ({"raw": "x" * 65537}, ".raw", ""),
        ({"raw": 5}, ".raw", ""),
        ({"raw": "a", "rwa": "b"}, ".rwa", "is not a known name"),
    ],
)
def test_what_is_wrong_with_content_is_told_where_it_is(content: dict[str, Any], where: str, what: str) -> None:
    [problem] = problems({"file": "a", "content": content})
    assert problem.startswith(f"mounts[0].content{where}: ")
    assert what in problem


@pytest.mark.parametrize(
    ("mount", "where", "what"),
    [
        ({"content": RAW}, "directory", "either a `file` or a `directory`"),
        ({"file": "a", "directory": "b", "content": RAW}, "directory", "either a `file` or a `directory`"),
        ({"file": "a", "cacheName": "mine-", "content": RAW}, "directory", "a cache is mounted at a `directory`"),
        ({"file": "a"}, "content", "is required"),
        ({"directory": "a"}, "content", "is required"),
        ({"directory": "a", "content": RAW}, "format", "is required with the content of a directory"),
        ({"directory": "a", "cacheName": "mine-", "content": RAW}, "format", "is required"),
        ({"directory": "a", "cacheName": "mine-", "format": "zip"}, "format", "makes no sense without"),
        ({"directory": "a", "content": RAW, "format": "rar"}, "format", f"there are: {', '.join(ARCHIVES)}"),
        ({"file": "a", "content": RAW, "format": "br"}, "format", f"there are: {', '.join(COMPRESSIONS)}"),
        ({"file": "a", "content": RAW, "format": "zip"}, "format", "'zip' is not supported"),
        ({"file": "/etc/passwd", "content": RAW}, "file", "an absolute path"),
        ({"file": "a" * 256, "content": RAW}, "file", "each name in it 255"),
        ({"file": "a/" * 1100 + "b", "content": RAW}, "file", "2048 bytes at most"),
        ({"file": "\ud800", "content": RAW}, "file", "a path that is text"),
        ({"file": "a/../../b", "content": RAW}, "file", "a path with .."),
        ({"file": "", "content": RAW}, "file", "expected a path"),
        ({"directory": ".", "cacheName": "mine-"}, "directory", "the task's directory itself"),
        ({"directory": "a", "cacheName": ""}, "cacheName", ""),
        ({"file": "a", "content": RAW, "mode": 1}, "mode", "is not a known name"),
    ],
)
def test_what_is_wrong_with_a_mount_is_told_where_it_is(mount: dict[str, Any], where: str, what: str) -> None:
    [problem] = problems(mount)
    assert problem.startswith(f"mounts[0].{where}: ")
    assert what in problem


def test_a_place_may_be_taken_once_and_inside_of_another() -> None:
    found = problems(
        {"directory": "a", "cacheName": "mine-1"},
        {"file": "a/b", "content": RAW},
        {"file": "./a//b/", "content": RAW},
    )
    assert found == ["mounts[2].file: ./a//b/ is the place of mounts[1] already"]


def test_a_cache_without_its_scope_is_told() -> None:
    payload = validated(
        {"mounts": [{"directory": "a", "cacheName": "yours"}, {"directory": "b", "cacheName": "mine-1"}]}
    )
    [problem] = missing_scopes(payload, read(payload, TASK), TASK.scopes)
    assert str(problem) == "mounts[0]: the cache 'yours' needs the scope generic-worker:cache:yours"


@pytest.mark.parametrize(
    ("scope", "enough"), [("a:b", True), ("a:*", True), ("*", True), ("a:b*", True), ("a:bc", False), ("a:", False)]
)
def test_scopes_satisfy_by_prefix(scope: str, enough: bool) -> None:
    assert satisfied("a:b", [scope]) is enough


@pytest.mark.parametrize(
    ("scope", "may"),
    [
        *((scope, True) for scope in ("assume:project:mine", "assume:*", "assume*", "ass*", "*")),
        *((scope, False) for scope in ("assume", "ass", "assumed:*", "b*", "generic-worker:cache:*")),
    ],
)
def test_scopes_stand_for_those_of_roles_by_prefix_too(scope: str, may: bool) -> None:
    assert may_be_role(scope) is may


def test_docker_workers_map_comes_to_the_same() -> None:
    payload = validated({"cache": {"level-1": "/builds/a"}, "onExitStatus": {"purgeCaches": [72]}}, "docker-worker")
    [item] = read(payload, TASK)
    assert (item.kind, item.path, item.cache) == ("cache", "/builds/a", "level-1")
    [problem] = missing_scopes(payload, [item], TASK.scopes)
    assert str(problem) == "cache.level-1: the cache 'level-1' needs the scope docker-worker:cache:level-1"


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", "", "/."])
def test_docker_workers_paths_are_absolute(path: str) -> None:
    with pytest.raises(MalformedPayload, match="needs an absolute path"):
        validated({"cache": {"c": path}}, "docker-worker")
