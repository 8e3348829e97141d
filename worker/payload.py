"""One payload schema out of the slices that the engine and the plugins own, and a payload taken apart by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from worker.errors import MalformedPayload, Problem
from worker.schema import JsonObject, Slice, names_by_path, problems_of, slice_in, unknown_name

Dialect = Literal["generic-worker", "docker-worker"]
Names = Mapping[str, "Names | None"]

# What the published payload schemas name (schemas/generic-worker/insecure_posix.json, schemas/docker-worker): a
# property that nobody owns here is accepted while it asks for nothing.
PUBLISHED: dict[Dialect, Names] = {
    "generic-worker": {
        "artifacts": None,
        "command": None,
        "env": None,
        "features": dict.fromkeys(
            (
                "backingLog",
                "chainOfTrust",
                "interactive",
                "liveLog",
                "loopbackAudio",
                "loopbackVideo",
                "resourceMonitor",
                "runTaskAsCurrentUser",
                "taskclusterProxy",
            )
        ),
        "logs": dict.fromkeys(("backing", "live")),
        "maxRunTime": None,
        "mounts": None,
        "onExitStatus": dict.fromkeys(("purgeCaches", "retry")),
        "osGroups": None,
        "supersederUrl": None,
        "taskclusterProxyInterface": None,
    },
    "docker-worker": {
        "artifacts": None,
        "cache": None,
        "capabilities": dict.fromkeys(("devices", "disableSeccomp", "privileged")),
        "command": None,
        "env": None,
        "features": dict.fromkeys(
            (
                "allowPtrace",
                "artifacts",
                "bulkLog",
                "chainOfTrust",
                "interactive",
                "localLiveLog",
                "taskclusterProxy",
            )
        ),
        "image": None,
        "log": None,
        "maxRunTime": None,
        "onExitStatus": dict.fromkeys(("purgeCaches", "retry")),
        "supersederUrl": None,
    },
}

# These ask for nothing that could be missed: a monitor's figures, an unused URL, an interface for the proxy alone.
_HARMLESS = {"features.resourceMonitor", "supersederUrl", "taskclusterProxyInterface"}


@dataclass(frozen=True, slots=True)
class Owner:
    """An engine or a plugin by name, with its slice for each dialect."""

    name: str
    slices: Mapping[Dialect, type[Slice]]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A payload's slices by owner. With `problems`, a slice that could not be read has its defaults, where it can."""

    slices: Mapping[str, Slice]
    problems: Sequence[Problem]


class PayloadSchema:
    """Made once per worker. Raises ValueError where two owners claim one property."""

    def __init__(self, dialects: Sequence[Dialect], owners: Sequence[Owner]) -> None:
        self.dialects = tuple(dialects)
        self.owners = tuple(owners)
        self._owned = {dialect: self._merge(dialect) for dialect in dialects}

    def _merge(self, dialect: Dialect) -> dict[str, str]:
        owned: dict[str, str] = {}
        for owner in self.owners:
            for path in _leaves(owner.slices.get(dialect)):
                if path in owned:
                    raise ValueError(f"payload property {path} is owned by {owned[path]} and by {owner.name}")
                owned[path] = owner.name
        return owned

    def dialect_of(self, payload: JsonObject) -> Dialect:
        """A payload with an `image` is docker-worker's (facts page); else the engine's first dialect counts."""
        preferred: Dialect = "docker-worker" if "image" in payload else "generic-worker"
        return preferred if preferred in self.dialects else self.dialects[0]

    def parse(self, payload: JsonObject) -> Parsed:
        """Take a payload apart; every problem of it is told."""
        dialect = self.dialect_of(payload)
        problems = list(_strangers(payload, self._owned[dialect], PUBLISHED[dialect]))
        slices: dict[str, Slice] = {}
        for owner in self.owners:
            model = owner.slices.get(dialect, Slice)
            part = _part(payload, model)
            try:
                slices[owner.name] = model.model_validate(part, by_alias=True, by_name=False)
            except ValidationError as error:
                problems += problems_of(error, self._names(dialect))
                with suppress(ValidationError):  # A required property has no default: then there is no slice.
                    slices[owner.name] = model()
        return Parsed(slices, problems)

    def validate(self, payload: JsonObject) -> Mapping[str, Slice]:
        """The slices of a payload by owner. Raises MalformedPayload with every problem."""
        parsed = self.parse(payload)
        if parsed.problems:
            raise MalformedPayload(parsed.problems)
        return parsed.slices

    def json_schema(self) -> JsonObject:
        """The JSON Schema of the payloads that are accepted, one alternative for each dialect."""
        schemas = [self._dialect_schema(dialect) for dialect in self.dialects]
        merged = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Task payload", **merged}

    def _dialect_schema(self, dialect: Dialect) -> JsonObject:
        merged: JsonObject = {"type": "object", "title": dialect, "properties": {}, "additionalProperties": False}
        definitions: JsonObject = {}
        for owner in self.owners:
            if model := owner.slices.get(dialect):
                schema = model.model_json_schema(by_alias=True)
                own = schema.pop("$defs", {})
                schema = _inlined(schema, model, own)
                definitions |= {name: value for name, value in own.items() if f"#/$defs/{name}'" in str((schema, own))}
                _merge_schema(merged, schema)
        return {**merged, "$defs": definitions} if definitions else merged

    def _names(self, dialect: Dialect) -> dict[str, set[str]]:
        names: dict[str, set[str]] = {}
        for owner in self.owners:
            if model := owner.slices.get(dialect):
                for path, known in names_by_path(model).items():
                    names.setdefault(path, set()).update(known)
        return names


def _leaves(model: type[Slice] | None, prefix: str = "") -> Iterator[str]:
    """The paths of the properties that a slice owns."""
    for name, field in model.model_fields.items() if model else ():
        path = prefix + (field.alias or name)
        if shared := slice_in(field.annotation):
            yield from _leaves(shared, f"{path}.")
        else:
            yield path


def _part(payload: JsonObject, model: type[Slice]) -> JsonObject:
    """What of `payload` belongs to `model`: its own properties, and of shared objects its share."""
    part: JsonObject = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias not in payload:
            continue
        value = payload[alias]
        shared = slice_in(field.annotation)
        part[alias] = _part(value, shared) if shared and isinstance(value, dict) else value
    return part


def _strangers(payload: JsonObject, owned: Mapping[str, str], published: Names, prefix: str = "") -> Iterator[Problem]:
    """Properties that nobody owns."""
    shared = {path.removeprefix(prefix).partition(".")[0] for path in owned if path.startswith(prefix)}
    for name, value in payload.items():
        path = prefix + name
        below = published.get(name)
        if path in owned:
            continue
        if isinstance(value, dict) and (below or name in shared):
            yield from _strangers(value, owned, below or {}, f"{path}.")
        elif name in shared:
            continue  # Of the wrong type, which its owner's slice tells.
        elif name not in published:
            yield Problem(path, unknown_name(name, {*published, *shared}))
        elif value and path not in _HARMLESS:
            yield Problem(path, "is not supported by this worker")


def _inlined(schema: JsonObject, model: type[Slice], definitions: JsonObject) -> JsonObject:
    """`schema` with the references to shared objects replaced by these, so that they can be merged."""
    properties = dict(schema.get("properties", {}))
    for name, field in model.model_fields.items():
        if shared := slice_in(field.annotation):
            properties[field.alias or name] = _inlined(definitions[shared.__name__], shared, definitions)
    return {**schema, "properties": properties}


def _merge_schema(into: JsonObject, schema: JsonObject) -> None:
    for name, value in schema["properties"].items():
        present = into["properties"].get(name)
        if present is not None and "properties" in present and "properties" in value:
            _merge_schema(present, value)
        else:
            into["properties"][name] = value
    if required := schema.get("required"):
        into["required"] = sorted({*into.get("required", []), *required})
