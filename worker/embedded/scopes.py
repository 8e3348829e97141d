"""Scopes: what satisfies what, and the expressions that say which scopes a method needs.

The expressions have the same shapes as in the published API references: a template such as `queue:get-task:<taskId>`,
`AllOf`, `AnyOf`, and `Each`, which repeats a template for every item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Values: TypeAlias = Mapping[str, "str | Sequence[str]"]
Expression: TypeAlias = "str | AllOf | AnyOf | Each"

PLACEHOLDER = re.compile(r"<([^>]+)>")


class AllOf(tuple["Expression", ...]):
    """Every one of the expressions is needed. None needs nothing."""


class AnyOf(tuple["Expression", ...]):
    """One of the expressions is enough."""


@dataclass(frozen=True)
class Each:
    """`template` with `<name>` set to every item of the list `items`. Within `AnyOf`, one of them is enough."""

    template: str
    name: str
    items: str


def satisfies(scopes: Iterable[str], required: str) -> bool:
    """Whether one of `scopes` is `required`, or ends in `*` with a prefix of `required` before it."""
    return any(
        scope == required or (scope.endswith("*") and required.startswith(scope.removesuffix("*"))) for scope in scopes
    )


def missing(scopes: Sequence[str], expression: Expression, values: Values) -> list[str]:
    """The scopes that `expression` needs and `scopes` do not satisfy; empty where it is satisfied.

    `values` fill the placeholders; a placeholder without a value raises KeyError.
    """
    if isinstance(expression, str):
        required = _fill(expression, values)
        return [] if satisfies(scopes, required) else [required]
    if isinstance(expression, Each):
        return missing(scopes, AllOf(_expanded(expression, values)), values)
    if isinstance(expression, AllOf):
        return [scope for part in expression for scope in missing(scopes, part, values)]
    lacking: list[str] = []
    for part in _alternatives(expression, values):
        found = missing(scopes, part, values)
        if not found:
            return []
        lacking += found
    return lacking


def placeholders(expression: Expression) -> set[str]:
    """The names of the values that `expression` must be given."""
    if isinstance(expression, str):
        return set(PLACEHOLDER.findall(expression))
    if isinstance(expression, Each):
        return (placeholders(expression.template) - {expression.name}) | {expression.items}
    return set().union(*(placeholders(part) for part in expression))


def _alternatives(expression: AnyOf, values: Values) -> list[Expression]:
    parts: list[Expression] = []
    for part in expression:
        parts += _expanded(part, values) if isinstance(part, Each) else [part]
    return parts


def _expanded(each: Each, values: Values) -> list[str]:
    return [_fill(each.template, {**values, each.name: item}) for item in values[each.items]]


def _fill(template: str, values: Values) -> str:
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)
