"""`{$env: NAME}` and `{$file: PATH}` in a config: values that are not in the file itself, and are secret therefore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.errors import Problem
from worker.schema import JsonObject, path_of

Location = tuple[int | str, ...]

MIN_SECRET = 4  # characters; anything shorter guards nothing, and striking it out would garble every text


class References:
    """Resolves the references of one document; afterwards `problems`, `secrets` and `locations` say what was met."""

    def __init__(self, environ: Mapping[str, str], base: Path) -> None:
        self._environ = environ
        self._base = base
        self.problems: list[Problem] = []
        self.secrets: set[str] = set()
        self.locations: dict[Location, str] = {}

    def resolve(self, value: Any, location: Location = ()) -> Any:
        """`value` with its references replaced; a file's path is relative to `base`. Blocks."""
        if isinstance(value, list):
            return [self.resolve(inner, (*location, index)) for index, inner in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if value.keys() & {"$env", "$file"}:
            return self._reference(value, location)
        return {name: self.resolve(inner, (*location, name)) for name, inner in value.items()}

    def _reference(self, reference: JsonObject, location: Location) -> str:
        match reference:
            case {"$env": str(name), **others} if not others:
                found = self._environ.get(name)
                complaint = f"the environment variable {name} is not set"
            case {"$file": str(name), **others} if not others:
                found, complaint = self._read(name)
            case _:
                found, complaint = None, "expected {$env: NAME} or {$file: PATH} and nothing beside it"
        if found is None:
            self.problems.append(Problem(path_of(location), complaint))
            return ""
        self.locations[location] = found
        if len(found) >= MIN_SECRET:
            self.secrets.add(found)
        return found

    def _read(self, name: str) -> tuple[str | None, str]:
        path = self._base / Path(name).expanduser()
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r"), ""
        except UnicodeDecodeError:
            return None, f"the file {path} is not UTF-8 text"
        except (OSError, ValueError) as error:
            return None, f"the file {path} cannot be read: {getattr(error, 'strerror', error)}"

    def strike_out(self, problem: Problem) -> Problem:
        """`problem` without any secret in its message."""
        message = problem.message
        for secret in sorted(self.secrets, key=len, reverse=True):
            message = message.replace(secret, "***")
        return Problem(problem.path, message)
