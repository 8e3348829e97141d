"""HTML that is made of elements, so that no text can become markup by being forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | bool) -> Markup:
    """An element. Children are text unless they are `Markup`; of attributes, False ones are left out.

    Underscores in names of attributes are dashes, one at the end is dropped: `class_`, `aria_label`.
    """
    shown = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """One after the other."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def _attribute(key: str, value: str | bool) -> str:
    if value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{escape(value)}"'
