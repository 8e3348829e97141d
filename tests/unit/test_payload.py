from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from worker.errors import MalformedPayload
from worker.payload import PUBLISHED, Owner, PayloadSchema
from worker.schema import Document, Slice


class Command(Slice):
    command: Annotated[list[str], Field(min_length=1)]


class Logging(Slice):
    live_log: bool = True


class LogPayload(Slice):
    features: Logging = Logging()


class Interaction(Slice):
    interactive: bool = False


class ShellPayload(Slice):
    features: Interaction = Interaction()


class Mount(Document):
    path: str


class MountPayload(Slice):
    mounts: list[Mount] = []


SCHEMA = PayloadSchema(
    ["generic-worker"],
    [
        Owner("engine", {"generic-worker": Command}),
        Owner("log", {"generic-worker": LogPayload}),
        Owner("mounts", {"generic-worker": MountPayload}),
        Owner("other", {}),
        Owner("shell", {"generic-worker": ShellPayload}),
    ],
)


def problems(payload: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in SCHEMA.parse(payload).problems]


def test_each_owner_gets_its_slice_also_of_shared_objects() -> None:
    slices = SCHEMA.validate({"command": ["x"], "features": {"liveLog": False, "interactive": True}})
    assert slices["engine"] == Command(command=["x"])
    assert slices["log"] == LogPayload(features=Logging(live_log=False))
    assert slices["shell"] == ShellPayload(features=Interaction(interactive=True))
    assert slices["mounts"] == MountPayload()
    assert slices["other"] == Slice()


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, ["command: is required and is missing"]),
        ({"command": "x"}, ["command: Input should be a valid list, got a string"]),
        ({"command": ["a", 1]}, ["command[1]: Input should be a valid string, got 1"]),
        ({"command": ["a"], "comand": 1}, ["comand: is not a known name; did you mean command?"]),
        ({"command": ["a"], "x": 1}, ["x: is not a known name"]),
        (
            {"command": ["a"], "features": {"livelog": True}},
            ["features.livelog: is not a known name; did you mean liveLog?"],
        ),
        (
            {"command": ["a"], "features": {"liveLog": "yes"}},
            ["features.liveLog: Input should be a valid boolean, got a string"],
        ),
        ({"command": ["a"], "mounts": [{}]}, ["mounts[0].path: is required and is missing"]),
        ({"command": ["a"], "mounts": [{"path": "x", "pth": 1}]}, ["mounts[0].pth: is not a known name"]),
    ],
)
def test_a_problem_names_the_property_by_its_path(payload: dict[str, Any], expected: list[str]) -> None:
    assert problems(payload) == expected


def test_all_problems_are_told_at_once() -> None:
    assert len(problems({"x": 1, "features": {"liveLog": 1}, "mounts": 3})) == 4


def test_a_shared_object_of_the_wrong_type_is_told_by_its_owners() -> None:
    assert set(problems({"command": ["a"], "features": 3})) == {
        "features: Input should be a valid dictionary or instance of Logging, got 3",
        "features: Input should be a valid dictionary or instance of Interaction, got 3",
    }


@pytest.mark.parametrize("nothing", [False, None, [], {}, ""])
def test_what_nobody_owns_is_accepted_while_it_asks_for_nothing(nothing: object) -> None:
    assert problems({"command": ["a"], "osGroups": nothing, "features": {"chainOfTrust": nothing}}) == []


def test_what_nobody_owns_is_refused_where_it_asks_for_something() -> None:
    payload = {"command": ["a"], "osGroups": ["docker"], "features": {"chainOfTrust": True}}
    assert problems(payload) == [
        "osGroups: is not supported by this worker",
        "features.chainOfTrust: is not supported by this worker",
    ]


def test_what_only_informs_is_accepted() -> None:
    assert problems({"command": ["a"], "supersederUrl": "x", "features": {"resourceMonitor": True}}) == []


def test_a_slice_that_cannot_be_read_has_its_defaults() -> None:
    parsed = SCHEMA.parse({"command": 3, "features": {"liveLog": 3}})
    assert parsed.slices["log"] == LogPayload()
    assert "engine" not in parsed.slices


def test_validate_raises_every_problem() -> None:
    with pytest.raises(MalformedPayload, match="command: is required") as caught:
        SCHEMA.validate({"x": 1})
    assert len(caught.value.problems) == 2


def test_two_owners_of_one_property_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.liveLog is owned by a and by b"):
        PayloadSchema(["generic-worker"], [Owner(name, {"generic-worker": LogPayload}) for name in "ab"])


def test_the_json_schema_is_merged_from_the_slices() -> None:
    schema = SCHEMA.json_schema()
    assert schema["required"] == ["command"]
    assert set(schema["properties"]) == {"command", "features", "mounts"}
    assert set(schema["properties"]["features"]["properties"]) == {"liveLog", "interactive"}
    assert schema["properties"]["mounts"]["items"] == {"$ref": "#/$defs/Mount"}
    assert set(schema["$defs"]) == {"Mount"}


def test_a_payload_with_an_image_is_docker_workers() -> None:
    both = PayloadSchema(["generic-worker", "docker-worker"], [])
    assert both.dialect_of({"image": "x"}) == "docker-worker"
    assert both.dialect_of({}) == "generic-worker"
    assert SCHEMA.dialect_of({"image": "x"}) == "generic-worker"
    assert len(both.json_schema()["oneOf"]) == 2


SCHEMAS = Path(__file__).parents[3] / "shared/taskcluster/schemas"


@pytest.mark.skipif(not SCHEMAS.exists(), reason="Taskcluster's schemas are not in ../shared/taskcluster")
@pytest.mark.parametrize(
    ("dialect", "file"),
    [
        ("generic-worker", "generic-worker/insecure_posix.json"),
        ("generic-worker", "generic-worker/multiuser_posix.json"),
        ("docker-worker", "docker-worker/v1/payload.json"),
    ],
)
def test_every_property_of_the_published_payloads_is_known(dialect: str, file: str) -> None:
    schema = json.loads((SCHEMAS / file).read_text())
    published = schema["oneOf"][0] if "oneOf" in schema else schema
    known = PUBLISHED[dialect]  # type: ignore[index]  # one of the dialects
    for name, definition in published["properties"].items():
        assert name in known
        if "properties" in definition:
            below = known[name]
            assert below is not None
            assert definition["properties"].keys() <= below.keys()
