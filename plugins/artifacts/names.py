"""Which name every file of a directory gets, and whether it has it alone."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from plugins.artifacts.payload import Declared, name_problem


class NameRefused(Exception):
    """The queue would not take the name, or another file of the task has it already."""


class Names:
    """The names of a run's artifacts, with the path of the file behind each.

    What a directory holds is remembered only where another directory could make the same names, so that a
    directory of any size takes no memory.
    """

    def __init__(self, declared: Sequence[Declared]) -> None:
        self._paths = {item.name: posixpath.normpath(item.path) for item in declared if item.kind == "file"}
        prefixes = [prefix_of(item.name) for item in declared if item.kind == "directory"]
        self._shared = {
            prefix
            for index, prefix in enumerate(prefixes)
            for other in prefixes[:index] + prefixes[index + 1 :]
            if prefix.startswith(other) or other.startswith(prefix)
        }

    def take(self, prefix: str, name: str, path: str) -> bool:
        """Whether the file at `path`, found in the directory of `prefix`, is to be uploaded as `name`.

        Not so where the same file has that name already. Raises `NameRefused`.
        """
        if problem := name_problem(name):
            raise NameRefused(problem)
        path = posixpath.normpath(path)
        holder = self._paths.get(name)
        if holder is None:
            if prefix in self._shared:
                self._paths[name] = path
            return True
        if holder != path:
            raise NameRefused(f"{path} and {holder} would have the same name")
        return False


def prefix_of(name: str) -> str:
    """What the names of a directory's files begin with: `public/` for `public` and `./public/`, nothing for `.`."""
    normal = posixpath.normpath(name)
    return "" if normal == "." else normal.rstrip("/") + "/"
