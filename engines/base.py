"""What an engine is: it makes a run's sandbox, in lexical steps.

    builder ─────────────────────────────────────────────┐  environment is gathered
    │  sandbox ──────────────┐  result ────────────────┐ │  processes run    files are read
    │  └─ nothing is alive ──┘  └──────────────────────┘ │
    └─ nothing is left on disk ──────────────────────────┘

Each step is an async context manager. Steps may be entered or left under cancellation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from worker.payload import Dialect
from worker.run import Run
from worker.schema import Document, Slice
from worker.services import Services

C = TypeVar("C", bound=Document)
P = TypeVar("P", bound=Slice)


class FileMissing(Exception):
    """There is nothing at the path."""


class FileInvalid(Exception):
    """What is at the path is not what was asked for: no regular file, no folder, or a link that leads out."""


class FileUnreadable(Exception):
    """It is there and may not be read."""


class SandboxFile(ABC):
    """A file that a task left, open for reading. `size` in bytes is that of the moment when it was opened."""

    size: int

    @abstractmethod
    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes, at most so many; none at the end of the file. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the task's own part ended: its exit code, where it has one, and what a failure was, in words."""

    success: bool
    exit_code: int | None = None
    message: str = ""


class Result(ABC):
    """What is left when nothing of the sandbox is alive. `ended` is None where it was killed or never got to an end."""

    ended: Ended | None

    @abstractmethod
    def open(self, path: str) -> AbstractAsyncContextManager[SandboxFile]:
        """A regular file; `path` is absolute or relative to the task's directory. Raises `File...`."""

    @abstractmethod
    def walk(self, path: str) -> AsyncGenerator[str, None]:
        """The regular files in the folder `path` and below, as paths relative to it.

        They are sorted in each folder, but for those of many thousands of entries, which come piece by piece: no folder
        is in memory as a whole. Links are left out. Raises `File...` for the folder itself. Whoever leaves it early
        closes it (`aclosing`).
        """

    async def is_folder(self, path: str) -> bool:
        """Whether a volume that is a folder is at `path` still, and no link: of engines that mount any."""
        raise NotImplementedError


class Sandbox(ABC):
    """A running sandbox. To kill it, leave its block."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when it has ended by itself."""


class Lending(Enum):
    """What becomes of a volume's source, which is the worker's, on the filesystem of `work_dir`.

    GIVEN: a file or folder for this run, which nobody wants back; the engine may move it.
    LENT: a folder that is this run's until the builder's block is left, and then at its place again, as the task has
    left it.
    SHARED: a file that others use too; the task gets a copy, or may only read it.
    """

    GIVEN = "given"
    LENT = "lent"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Volume:
    """`source`, on this machine, which the task finds at `path`, in its directory unless that is absolute.

    The engine mounts it as it can: by a bind, a move, a copy or a reflink. A LENT one that is not at its source when
    the builder's block was left is lost: the task has replaced it, or the engine has failed.
    """

    source: Path
    path: str
    lending: Lending


@dataclass
class Builder(ABC):
    """A sandbox in the making, for plugins to add to. `worker_env` is set after, and over, what the task asks for.

    `volumes` are in place before anything of the task runs, in their order: one may be in another.
    """

    env: dict[str, str] = field(default_factory=dict)
    worker_env: dict[str, str] = field(default_factory=dict)
    volumes: list[Volume] = field(default_factory=list)

    @abstractmethod
    def sandbox(self) -> AbstractAsyncContextManager[Sandbox]:
        """Start it. Whatever takes long (pulling an image) belongs here, since here a cause can cancel it.

        Leaving the block means that nothing of it is alive, whatever the reason; shielded, within the kill grace.
        Raises `MalformedPayload`, `TaskFault`, `ResourceUnavailable` or `WorkerFault`.
        """

    @abstractmethod
    def result(self) -> AbstractAsyncContextManager[Result]:
        """What is left; entered after `sandbox`'s block, also where that was cancelled or failed."""


class Engine(ABC, Generic[C, P]):
    """One object per worker, made from its part of the config."""

    Config: ClassVar[type[Document]] = Document
    payloads: ClassVar[Mapping[Dialect, type[Slice]]]  # the engine's slice, for each dialect that it accepts
    mounts: ClassVar[bool] = False  # whether it mounts volumes; a task that needs one fails where it does not

    def __init__(self, config: C, services: Services) -> None:
        self.config = config
        self.services = services

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        """Around all runs of the worker. Raises `FatalWorkerFault` where the machine lacks what the engine needs."""
        yield

    @abstractmethod
    def builder(self, run: Run[P]) -> AbstractAsyncContextManager[Builder]:
        """Around one run. Entering is quick and local: a cause does not cut it short."""
