"""Documents from outside: the base of their pydantic models, and how their mistakes are told."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from worker.errors import Problem

JsonObject = dict[str, Any]


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_as_path)]
"""A field of a `Document` that is the path of a file or folder."""


class Document(BaseModel):
    """A part of a config or of a payload: camelCase outside, frozen, nothing coerced, nothing unknown.

    A field with `repr=False` is a secret: it is in no text, and what a config has in it is hidden in the logs of tasks.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=False,
    )


class Slice(Document):
    """A part of a payload that one engine or plugin owns.

    Each property has one owner. A property whose type is a `Slice` itself is an object that owners share:
    `features` for one, of which each owns some properties.
    """


def secrets_in(value: object, *, secret: bool = False) -> Iterator[str]:
    """The secrets of a document, at any depth."""
    match value:
        case str() if secret:
            yield value
        case Document():
            for name, field in type(value).model_fields.items():
                yield from secrets_in(getattr(value, name), secret=not field.repr)
        case dict():
            yield from secrets_in(list(value.values()), secret=secret)
        case list():
            for each in value:
                yield from secrets_in(each, secret=secret)


def slice_in(annotation: object) -> type[Slice] | None:
    """The `Slice` that a field is annotated with, `| None` aside."""
    if isinstance(annotation, type) and issubclass(annotation, Slice):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((found for arg in get_args(annotation) if (found := slice_in(arg))), None)
    return None


def path_of(location: tuple[int | str, ...]) -> str:
    """`("command", 0, "x")` as `command[0].x`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def problems_of(error: ValidationError, known: Mapping[str, Collection[str]] | None = None) -> list[Problem]:
    """What pydantic found, each with its path; of an unknown name also the nearest one.

    `known` has the names that an object takes, by the object's path.
    """
    found = []
    for detail in error.errors(include_url=False, include_context=False):
        path = path_of(detail["loc"])
        if detail["type"] == "extra_forbidden":
            parent, name = path_of(detail["loc"][:-1]), str(detail["loc"][-1])
            found.append(Problem(path, unknown_name(name, (known or {}).get(parent, ()))))
        elif detail["type"] == "missing":
            found.append(Problem(path, "is required and is missing"))
        else:
            message = detail["msg"].removeprefix("Value error, ")
            found.append(Problem(path, f"{message}, got {_shown(detail['input'])}"))
    return found


def unknown_name(name: str, known: Collection[str]) -> str:
    """What to say of a name that nobody knows."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"is not a known name; did you mean {near[0]}?" if near else "is not a known name"


def names_by_path(model: type[BaseModel], prefix: str = "") -> dict[str, set[str]]:
    """The names that `model` takes, and those of the models inside of it, by their paths."""
    names: dict[str, set[str]] = {prefix: set()}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        names[prefix].add(alias)
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                names |= names_by_path(candidate, f"{prefix}.{alias}".removeprefix("."))
    return names


def _shown(value: object) -> str:
    # The type alone: a value may be a secret, and it is in the author's hands anyhow.
    match value:
        case bool() | int() | float() | None:
            return repr(value)
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__
