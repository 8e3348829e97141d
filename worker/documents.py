"""YAML and JSON files from outside: read into JSON values, their mistakes told by line or by path."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from worker.errors import Problem
from worker.schema import JsonObject


class BadDocument(Exception):
    """A file is not what it should be; `problems` are all that is wrong with it, `source` says which file."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.source = source
        self.problems = tuple(problems)


class _Loader(yaml.SafeLoader):
    """YAML with the types of JSON: dates stay text, names are unique text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a name is not text; quote it", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_document(text: str, source: str) -> JsonObject:
    """The object that `text` is in JSON or in YAML. Raises BadDocument, which never quotes a value."""
    try:
        document = _load(text)
        _check_types(document)
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the lines, which may hold a secret.
        raise BadDocument(source, [Problem(_place(error.problem_mark), error.problem or "is not YAML")]) from None
    except (yaml.YAMLError, ValueError):
        raise BadDocument(source, [Problem("", "holds what is neither JSON nor plain YAML")]) from None
    except RecursionError:
        raise BadDocument(source, [Problem("", "is nested too deeply")]) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadDocument(source, [Problem("", "expected an object, with a name before each value")])
    return document


def read_document(path: Path) -> JsonObject:
    """The object in the file at `path`. Raises BadDocument, also where the file cannot be read. Blocks."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadDocument(str(path), [Problem("", "is not UTF-8 text")]) from None
    except OSError as error:
        raise BadDocument(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from None
    return parse_document(text, str(path))


def _load(text: str) -> Any:
    try:
        # YAML takes all of JSON except tabs. It also tells better what is wrong, so it has the last word.
        return json.loads(text, object_pairs_hook=_without_repetition)
    except ValueError:
        return yaml.load(text, _Loader)  # noqa: S506  # derived from SafeLoader


def _without_repetition(pairs: list[tuple[str, Any]]) -> JsonObject:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError
    return document


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _check_types(value: object) -> None:
    # A tag (`!!set`) or `.inf` makes what JSON does not have; a document that contains itself ends in RecursionError.
    if isinstance(value, dict):
        for inner in value.values():
            _check_types(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_types(inner)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
