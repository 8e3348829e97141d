"""The payload's `mounts` (generic-worker) and `cache` (docker-worker), and the one form that they come to."""

from __future__ import annotations

import base64
import binascii
import posixpath
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from plugins.mounts.formats import ARCHIVES, COMPRESSIONS
from worker.errors import MalformedPayload, Problem
from worker.queue.models import TaskDefinition
from worker.schema import Document, Slice

MAX_INLINE = 64 * 1024  # characters of raw or base64 content (schemas/generic-worker/insecure_posix.json)

_SLUG = r"^[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]$"

Kind = Literal["file", "directory", "cache"]

LONGEST_PATH = 2048  # bytes: below the system's own limit together with what stands before it
LONGEST_NAME = 255


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError("mount", "{text}", {"text": text})


def path_problem(path: str) -> str | None:
    """What is wrong with a place in the task's directory, if anything."""
    if not path or "\0" in path:
        return "expected a path in the task's directory"
    if path.startswith("/"):
        return "an absolute path cannot be a mount's: name one in the task's directory"
    if ".." in path.split("/"):
        return "a path with .. cannot be a mount's: name one in the task's directory"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "expected a path that is text"
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        return f"a path has {LONGEST_PATH} bytes at most, and each name in it {LONGEST_NAME}"
    if posixpath.normpath(path) == ".":
        return "the task's directory itself cannot be a mount"
    return None


def _inside(path: str | None) -> str | None:
    if path is not None and (problem := path_problem(path)):
        raise _problem(problem)
    return path


def _decodable(text: str | None) -> str | None:
    if text is not None:
        try:
            base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise _problem("expected base64: letters, digits, + and /, and = at the end, four at a time") from None
    return text


def _web(url: str | None) -> str | None:
    if url is not None and not url.lower().startswith(("https://", "http://")):
        raise _problem("expected an http or https URL")
    return url


class Content(Document):
    """Where content comes from: one of five kinds, told apart by their keys."""

    artifact: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    task_id: Annotated[str, Field(pattern=_SLUG)] | None = None
    namespace: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    url: Annotated[str, AfterValidator(_web)] | None = None
    raw: Annotated[str, Field(max_length=MAX_INLINE)] | None = None
    base64: Annotated[str, Field(max_length=MAX_INLINE), AfterValidator(_decodable)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[a-f0-9]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = self.model_fields_set - {"sha256"}
        kinds = ({"task_id", "artifact"}, {"namespace", "artifact"}, {"url"}, {"raw"}, {"base64"})
        if given not in kinds or any(getattr(self, name) is None for name in self.model_fields_set):
            raise _problem("expected taskId and artifact, or namespace and artifact, or one of url, raw and base64")
        if self.sha256 is not None and not given & {"task_id", "url"}:
            raise _problem("sha256 goes with an artifact of a task or with a URL only")
        return self

    @property
    def inline(self) -> bytes | None:
        """The content itself, where the payload has it."""
        if self.raw is not None:
            return self.raw.encode(errors="surrogatepass")
        return None if self.base64 is None else base64.b64decode(self.base64)


class Mount(Document):
    """One mount of generic-worker's: a `file`, or a `directory` that is a cache if it has a `cacheName`."""

    cache_name: Annotated[str, Field(min_length=1)] | None = None
    file: Annotated[str, AfterValidator(_inside)] | None = None
    directory: Annotated[str | None, AfterValidator(_inside), Field(validate_default=True)] = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    format: Annotated[str | None, Field(validate_default=True)] = None

    # Each of these judges with what stands above it, so that a problem is told at the property that has it.

    @field_validator("directory", mode="after")
    @classmethod
    def _one_place(cls, directory: str | None, info: ValidationInfo) -> str | None:
        if "file" not in info.data:
            return directory  # It has a problem of its own.
        file = info.data["file"]
        if (file is None) == (directory is None):
            raise _problem("a mount has either a `file` or a `directory`")
        if file is not None and info.data.get("cache_name") is not None:
            raise _problem("a cache is mounted at a `directory`, not at a `file`")
        return directory

    @field_validator("content", mode="after")
    @classmethod
    def _enough_content(cls, content: Content | None, info: ValidationInfo) -> Content | None:
        if content is None and info.data.get("cache_name", "") is None:
            raise _problem("is required, unless there is a `cacheName`")
        return content

    @field_validator("format", mode="after")
    @classmethod
    def _known_format(cls, name: str | None, info: ValidationInfo) -> str | None:
        if "file" not in info.data or "directory" not in info.data:
            return name  # What it is for has a problem of its own.
        is_file = info.data["file"] is not None
        known = COMPRESSIONS if is_file else ARCHIVES
        if name is not None and name not in known:
            kind = "a file" if is_file else "a directory"
            # Cut, since it is the task's and goes into an error.
            raise _problem(f"{name[:40]!r} is not supported by this worker; for {kind} there are: {', '.join(known)}")
        if not is_file and "content" in info.data:
            has_content = info.data["content"] is not None
            if has_content and name is None:
                raise _problem(f"is required with the content of a directory: {', '.join(ARCHIVES)}")
            if name is not None and not has_content:
                raise _problem("makes no sense without `content`")
        return name


@dataclass(frozen=True, slots=True)
class Declared:
    """One mount as the task declares it. `at` is where in the payload it is, `path_at` where its path is."""

    at: str
    path_at: str
    kind: Kind
    path: str
    content: Content | None = None
    format: str | None = None
    cache: str = ""


class OnExitStatus(Slice):
    """Exit codes after which the task's caches are thrown away."""

    purge_caches: list[Annotated[int, Field(ge=0)]] = []


class MountsPayload(Slice):
    """What a task wants to be brought in, in whichever dialect."""

    on_exit_status: OnExitStatus = OnExitStatus()

    @abstractmethod
    def declared(self) -> Iterator[Declared]:
        """The mounts in the payload's order."""

    @abstractmethod
    def cache_scope(self, name: str) -> str:
        """The scope that a task needs for the cache of that name."""


class GenericWorkerPayload(MountsPayload):
    """A list of mounts, at places in the task's directory."""

    mounts: list[Mount] = []

    def declared(self) -> Iterator[Declared]:
        """The mounts in the payload's order."""
        for index, mount in enumerate(self.mounts):
            at = f"mounts[{index}]"
            if mount.file is not None:
                yield Declared(at, f"{at}.file", "file", mount.file, mount.content, mount.format)
            elif mount.directory is not None:
                kind: Kind = "directory" if mount.cache_name is None else "cache"
                place = f"{at}.directory"
                yield Declared(at, place, kind, mount.directory, mount.content, mount.format, mount.cache_name or "")

    def cache_scope(self, name: str) -> str:
        """As generic-worker has it."""
        return f"generic-worker:cache:{name}"


class DockerWorkerPayload(MountsPayload):
    """A map from caches to absolute paths in the container."""

    cache: dict[str, str] = {}

    @field_validator("cache", mode="after")
    @classmethod
    def _absolute(cls, cache: dict[str, str]) -> dict[str, str]:
        for name, path in cache.items():
            if not path.startswith("/") or "\0" in path or ".." in path.split("/") or not path.strip("/."):
                raise _problem(f"the cache {name[:100]!r} needs an absolute path in the container, without ..")
        return cache

    def declared(self) -> Iterator[Declared]:
        """The caches in the payload's order."""
        for name, path in self.cache.items():
            yield Declared(f"cache.{name}", f"cache.{name}", "cache", path, cache=name)

    def cache_scope(self, name: str) -> str:
        """As docker-worker has it."""
        return f"docker-worker:cache:{name}"


def read(payload: MountsPayload, task: TaskDefinition) -> list[Declared]:
    """The mounts that `task` declares. Raises MalformedPayload with everything that is wrong with them but scopes."""
    found = list(payload.declared())
    problems = [*_doubles(found), *_strange_tasks(found, task)]
    if problems:
        raise MalformedPayload(problems)
    return found


def missing_scopes(payload: MountsPayload, found: Iterable[Declared], scopes: Sequence[str]) -> list[Problem]:
    """The caches that `scopes` do not permit."""
    return [
        Problem(item.at, f"the cache {item.cache!r} needs the scope {payload.cache_scope(item.cache)}")
        for item in found
        if item.kind == "cache" and not satisfied(payload.cache_scope(item.cache), scopes)
    ]


def satisfied(required: str, scopes: Iterable[str]) -> bool:
    """Whether one of `scopes` is `required`, or ends in `*` with a prefix of `required` before it."""
    return any(
        scope == required or (scope.endswith("*") and required.startswith(scope.removesuffix("*"))) for scope in scopes
    )


def may_be_role(scope: str) -> bool:
    """Whether it stands for the scopes of roles too, which the auth service knows."""
    return scope.startswith("assume:") or (scope.endswith("*") and "assume:".startswith(scope.removesuffix("*")))


def _doubles(found: Iterable[Declared]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for item in found:
        place = posixpath.normpath(item.path)
        if place in first:
            yield Problem(item.path_at, f"{item.path} is the place of {first[place]} already")
        first.setdefault(place, item.at)


def _strange_tasks(found: Iterable[Declared], task: TaskDefinition) -> Iterator[Problem]:
    dependencies = set(task.dependencies)
    for item in found:
        task_id = item.content.task_id if item.content else None
        if task_id is not None and task_id not in dependencies:
            yield Problem(f"{item.at}.content.taskId", f"{task_id} is not in the task's dependencies: add it there")
