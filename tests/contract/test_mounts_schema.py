"""What Taskcluster's published payloads accept as mounts is accepted here, but for what docs/mounts.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from plugins.mounts.formats import ARCHIVES, COMPRESSIONS
from plugins.mounts.payload import GenericWorkerPayload, read
from worker.errors import MalformedPayload
from worker.payload import Owner, PayloadSchema
from worker.testing.runs import TASK_ID, task_definition

SCHEMAS = Path(__file__).parents[2].parent / "shared" / "taskcluster" / "schemas" / "generic-worker"
PUBLISHED = ("insecure_posix", "multiuser_posix", "multiuser_windows")

pytestmark = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="../shared/taskcluster, the published schemas, is absent")

OURS = PayloadSchema(["generic-worker"], [Owner("mounts", {"generic-worker": GenericWorkerPayload})])
TASK = task_definition(dependencies=[TASK_ID])

ARTIFACT = {"taskId": TASK_ID, "artifact": "public/a"}
CONTENTS: list[dict[str, Any]] = [
    ARTIFACT,
    {**ARTIFACT, "sha256": "0" * 64},
    {"namespace": "project.a.latest", "artifact": "public/a"},
    {"url": "https://example.com/a?b#c"},
    {"url": "http://[::1]:1/", "sha256": "f" * 64},
    {"raw": ""},
    {"raw": "ü" * 65536},
    {"base64": "aGVsbG8="},
]
STRANGE: list[Any] = [
    {},
    {"artifact": "public/a"},
    {"taskId": "nonsense", "artifact": "public/a"},
    {"raw": "a", "base64": "YQ=="},
    {"raw": "a", "sha256": "0" * 64},
    {"url": "https://example.com/", "sha256": "F" * 64},
    {"raw": "x" * 65537},
    {"base64": "not base64"},
    {"raw": 1},
    {"url": "https://example.com/", "other": 1},
    "text",
]
# By docs/mounts.md: the formats without a library, places outside of the task's directory, and what cannot be had.
REFUSED_HERE: list[dict[str, Any]] = [
    *({"file": "a", "content": ARTIFACT, "format": name} for name in ("br", "lz", "mz", "sz", "zz")),
    *(
        {"directory": "a", "content": ARTIFACT, "format": name}
        for name in ("7z", "rar", "tar.br", "tar.lz", "tar.mz", "tar.sz", "tar.zz")
    ),
    {"file": "/absolute", "content": ARTIFACT},
    {"directory": "a/../../b", "cacheName": "c"},
    {"directory": "", "cacheName": "c"},
    {"directory": "a", "cacheName": ""},
    {"file": "a", "content": {"url": "ftp://example.com/"}},
    {"file": "a", "content": {"base64": "abcde"}},
    {"file": "a", "content": {"taskId": TASK_ID, "artifact": ""}},
    {"file": "a", "content": {**ARTIFACT, "taskId": "AtJ5S3MCRjGWdMkpUAYpdg"}},
]

mounts = st.fixed_dictionaries(
    {},
    optional={
        "file": st.sampled_from(["a", "a b/ü", "./a"]),
        "directory": st.sampled_from(["a", "d/e/f", "d/"]),
        "cacheName": st.sampled_from(["c", "a / b"]),
        "content": st.sampled_from(CONTENTS + STRANGE),
        "format": st.sampled_from(sorted({*ARCHIVES, *COMPRESSIONS, "nonsense"})),
        "other": st.just(1),
    },
)


def published(name: str) -> Draft7Validator:
    document = json.loads((SCHEMAS / f"{name}.json").read_text())
    return Draft7Validator({"$ref": "#/definitions/mount", "definitions": document["definitions"]})


def accepted_here(mount: dict[str, Any]) -> bool:
    try:
        payload = OURS.validate({"mounts": [mount]})["mounts"]
        assert isinstance(payload, GenericWorkerPayload)
        read(payload, TASK)
    except MalformedPayload:
        return False
    return True


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_kind_of_content_and_every_format_with_a_library_is_accepted(name: str) -> None:
    validator = published(name)
    documents = [{"file": "a", "content": content} for content in CONTENTS]
    documents += [{"file": "a", "content": ARTIFACT, "format": each} for each in COMPRESSIONS]
    for each in ARCHIVES:
        documents.append({"directory": "a", "content": ARTIFACT, "format": each})
        documents.append({"directory": "a", "content": ARTIFACT, "format": each, "cacheName": "c"})
    for document in documents:
        assert validator.is_valid(document), document
        assert accepted_here(document), document


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("mount", REFUSED_HERE, ids=str)
def test_nothing_but_what_is_documented_is_refused_here_alone(name: str, mount: dict[str, Any]) -> None:
    assert published(name).is_valid(mount)
    assert not accepted_here(mount)


@pytest.mark.parametrize("name", PUBLISHED)
@given(mount=mounts)
def test_whatever_is_put_together_is_judged_as_published(name: str, mount: dict[str, Any]) -> None:
    assert accepted_here(mount) == published(name).is_valid(mount)
