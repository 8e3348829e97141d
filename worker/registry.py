"""Names to classes: an explicit dict of our own, and what installed packages add by entry points."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from worker.schema import unknown_name

T = TypeVar("T")


class UnknownName(LookupError):
    """No such engine or plugin; the text says which name was meant, perhaps."""


class Registry(Generic[T]):
    """Imports what is asked for and no more: some plugins are slow to import.

    `builtin` maps a name to `module:Class`. Packages add to it in the entry point group `group`; a name that is taken
    twice is refused, since which one wins would depend on the order of installation.
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self._group = group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._builtin, *(entry.name for entry in self._added())})

    def load(self, name: str) -> type[T]:
        """The class of that name. Raises UnknownName, and ImportError where its package is broken."""
        targets = [entry.value for entry in self._added() if entry.name == name]
        if name in self._builtin:
            targets.append(self._builtin[name])
        if not targets:
            raise UnknownName(f"{name} {unknown_name(name, self.names())}; there are: {', '.join(self.names())}")
        if len(targets) > 1:
            raise ImportError(f"{self._group} {name} is offered more than once: {', '.join(targets)}")
        module, _, attribute = targets[0].partition(":")
        try:
            found: type[T] = getattr(import_module(module), attribute)
        except AttributeError:
            raise ImportError(f"{self._group} {name}: there is no {attribute} in {module}") from None
        return found

    def _added(self) -> tuple[EntryPoint, ...]:
        return _entry_points(self._group, tuple(sys.path))


@lru_cache(maxsize=8)
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What the packages on `sys.path` offer. Kept, since each look reads a file of every one of them."""
    return tuple(entry_points(group=group))
