"""The payload's `artifacts` in both dialects, and the one form that they come to."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from plugins.artifacts.content import Encoding
from worker.errors import MalformedPayload, Problem
from worker.queue.models import TaskDefinition
from worker.queue.wire import format_time
from worker.schema import Document, Slice

MAX_NAME = 1024  # characters (schemas/queue/v1/artifact-response.json)
DEFAULT_LIFETIME = timedelta(days=365)  # beyond the deadline, of a task without `expires` (schemas/queue/v1/task.json)

_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _read_time(value: object) -> object:
    # Left to itself pydantic either refuses all strings, being strict, or takes numbers for dates as well.
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and _DATE_TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError:
            pass  # The 30th of February, and the like: told below.
    raise PydanticCustomError("date_time", "expected a date and time such as 2026-01-31T00:00:00.000Z")


def _refuse_volume(value: object) -> object:
    if value == "volume":
        raise PydanticCustomError("volume", "volumes are not supported by this worker; use `directory`")
    return value


DateTime = Annotated[AwareDatetime, BeforeValidator(_read_time)]
Kind = Literal["file", "directory"]


@dataclass(frozen=True, slots=True)
class Declared:
    """One artifact as the task declares it.

    `at` is where in the payload it is, `artifacts[0]`, and `name_at` where its name is.
    """

    at: str
    name_at: str
    kind: Kind
    path: str
    name: str
    expires: datetime
    content_type: str | None = None
    encoding: Encoding | None = None
    optional: bool = False


class GenericArtifact(Document):
    """An artifact in generic-worker's payload (schemas/generic-worker/insecure_posix.json)."""

    type: Kind
    path: str
    name: str = ""
    expires: DateTime | None = None
    # The queue takes 255 characters; they become a header.
    content_type: Annotated[str, Field(max_length=255, pattern=r"^([\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?)?$")] = ""
    content_encoding: Encoding | None = None
    optional: bool = False


class DockerArtifact(Document):
    """An artifact in docker-worker's payload (schemas/docker-worker/v1/payload.json). The name is the map's key."""

    type: Annotated[Kind, BeforeValidator(_refuse_volume)]
    path: str
    expires: DateTime | None = None


class DockerFeatures(Slice):
    """The part of docker-worker's `features` that is about artifacts."""

    artifacts: bool = True


class ArtifactsPayload(Slice):
    """What a task wants to be uploaded, in whichever dialect."""

    @abstractmethod
    def declared(self, default_expires: datetime) -> Iterator[Declared]:
        """The artifacts in the payload's order."""


class GenericWorkerPayload(ArtifactsPayload):
    """A list; the name is the path where none is given."""

    artifacts: list[GenericArtifact] = []

    def declared(self, default_expires: datetime) -> Iterator[Declared]:
        """The artifacts in the payload's order."""
        for index, item in enumerate(self.artifacts):
            yield Declared(
                at=f"artifacts[{index}]",
                name_at=f"artifacts[{index}].{'name' if item.name else 'path'}",
                kind=item.type,
                path=item.path,
                name=item.name or item.path,
                expires=item.expires or default_expires,
                content_type=item.content_type or None,
                encoding=item.content_encoding,
                optional=item.optional,
            )


class DockerWorkerPayload(ArtifactsPayload):
    """A map from names. All are optional: docker-worker does not fail a task for an artifact that is missing."""

    artifacts: dict[str, DockerArtifact] = {}
    features: DockerFeatures = DockerFeatures()

    def declared(self, default_expires: datetime) -> Iterator[Declared]:
        """The artifacts in the payload's order; none with `features.artifacts` switched off."""
        for name, item in self.artifacts.items() if self.features.artifacts else ():
            yield Declared(
                at=f"artifacts.{name}",
                name_at=f"artifacts.{name}",
                kind=item.type,
                path=item.path,
                name=name,
                expires=item.expires or default_expires,
                optional=True,
            )


def read(payload: ArtifactsPayload, task: TaskDefinition) -> list[Declared]:
    """The artifacts that `task` declares. Raises MalformedPayload with everything that is wrong with them."""
    latest = task.expires or task.deadline + DEFAULT_LIFETIME
    found = list(payload.declared(latest))
    problems = [problem for item in found for problem in _problems(item, task.deadline, latest)]
    problems += _doubles(found)
    if problems:
        raise MalformedPayload(problems)
    return found


def name_problem(name: str) -> str | None:
    """What is wrong with an artifact's name, if anything (facts page: printable ASCII)."""
    if not _PRINTABLE.fullmatch(name):
        return "an artifact's name must be printable ASCII, one character at least"
    if {".", ".."} & set(name.split("/")):
        return "no part of an artifact's name may be . or .., which no URL can have"
    if len(name) > MAX_NAME:
        return f"an artifact's name must not be longer than {MAX_NAME} characters"
    return None


def _problems(item: Declared, earliest: datetime, latest: datetime) -> Iterator[Problem]:
    # A directory's own name is part of its files' names, or nothing where it is `.`.
    if problem := name_problem("x" if item.kind == "directory" and item.name in {".", "./"} else item.name):
        yield Problem(item.name_at, problem)
    if item.expires < earliest:
        yield Problem(f"{item.at}.expires", f"must not be before the task's deadline, {format_time(earliest)}")
    if item.expires > latest:
        yield Problem(f"{item.at}.expires", f"must not be after the task's own expiry, {format_time(latest)}")


def _doubles(found: Sequence[Declared]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for item in found:
        if item.name in first:
            yield Problem(item.name_at, f"{item.name} is the name of {first[item.name]} already")
        first.setdefault(item.name, item.at)
