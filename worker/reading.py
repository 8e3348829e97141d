"""A config on its way from JSON values to models, gathering its problems."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Protocol, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from worker.errors import Problem
from worker.references import Location, References
from worker.schema import Document, JsonObject, names_by_path, path_of, problems_of, unknown_name

D = TypeVar("D", bound=Document)
V = TypeVar("V")


class Part(Protocol):
    """An engine or a plugin, as far as the config is concerned."""

    Config: ClassVar[type[Document]]


class Reading:
    """One document, whose references were replaced by `references`, and what is wrong with it."""

    def __init__(self, document: JsonObject, references: References) -> None:
        self.document = document
        self._references = references
        self._problems: list[Problem] = []

    def tell(self, path: str, message: str) -> None:
        """Add a problem."""
        self._problems.append(Problem(path, message))

    def told(self) -> list[Problem]:
        """Every problem once. Of a value that could not be had only that, not what its absence causes."""
        missing = self._references.problems
        paths = {problem.path for problem in missing}
        others = [problem for problem in self._problems if problem.path not in paths]
        return [self._references.strike_out(problem) for problem in dict.fromkeys([*missing, *others])]

    def validate(self, model: type[D], value: Any, location: Location) -> D | None:
        """`value`, which is at `location` of the document, as a `model`; None where it has problems."""
        try:
            return model.model_validate(value, by_alias=True, by_name=False)
        except ValidationError as error:
            loosened = self._loosened(value, error, location)
        try:
            return model.model_validate(loosened, by_alias=True, by_name=False)
        except ValidationError as error:
            prefix = path_of(location)
            for problem in problems_of(error, names_by_path(model)):
                # A list's index follows the name before it without a dot.
                path = prefix + problem.path if problem.path.startswith("[") else f"{prefix}.{problem.path}".strip(".")
                self.tell(path, problem.message)
            return None

    def _loosened(self, value: Any, error: ValidationError, location: Location) -> Any:
        """`value` with what a reference brought, and did not fit as text, read as the number or boolean it says."""
        value = copy.deepcopy(value)
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            text = self._references.locations.get((*location, *detail["loc"]))
            parsed = _scalar(text) if text is not None and detail["loc"] else None
            if parsed is not None:
                holder = value
                for step in detail["loc"][:-1]:
                    holder = holder[step]
                holder[detail["loc"][-1]] = parsed
        return value

    def checked(self, path: str, check: Callable[[V], V], value: V) -> V:
        """What `check` makes of a value from elsewhere; it raises as a validator of pydantic's does."""
        try:
            return check(value)
        except PydanticCustomError as error:
            self.tell(path, error.message())
            return value

    def section(self, name: str) -> JsonObject:
        """The object of that name; an empty one where it is none, which the document's own model tells."""
        section = self.document.get(name)
        return section if isinstance(section, dict) else {}

    def part(self, kind: str, name: str, load: Callable[[str], type[Part]]) -> Document | None:
        """What the section `kind` says to the engine or plugin `name`, which there is; None where it has problems."""
        try:
            model = load(name).Config
        except ImportError as error:
            self.tell(f"{kind}.{name}", f"cannot be loaded: {error}")
            return None
        value = self.section(kind).get(name)
        return self.validate(model, {} if value is None else value, (kind, name))

    def known(self, path: str, name: object, known: Collection[str]) -> bool:
        """Whether `name` is one of `known`; tells where it is not, except of what is no text at all."""
        if not isinstance(name, str):
            return False
        if name not in known:
            self.tell(path, f"{unknown_name(name, known)}; there are: {', '.join(known)}")
        return name in known


def _scalar(text: str) -> int | float | bool | None:
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None
    return parsed if isinstance(parsed, int | float) else None
