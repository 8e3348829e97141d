"""What a plugin is: one object per worker, which makes one `TaskHooks` per run.

    claim ─ [ prepare ─ start ─ alongside ] ─ stopped ─ finished ─ report
            execution: what a Cause cancels
            └ background ────────────────┘

A stage calls its hook on all plugins at once, except that `prepare`, `stopped` and `finished` of a plugin begin when
those of the plugins in its `after` have returned. A hook that raises ends the run as its exception says
(`worker.errors`); the other plugins' later hooks are called all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, Generic, TypeVar

from engines.base import Builder, Result, Sandbox
from worker.model import COMPLETED, Resolution, Verdict
from worker.payload import Dialect
from worker.run import Run
from worker.schema import Document, Slice
from worker.services import Services

C = TypeVar("C", bound=Document)
P = TypeVar("P", bound=Slice)


class TaskHooks:
    """What a plugin does for one run; each does nothing unless overridden."""

    async def prepare(self, builder: Builder) -> None:
        """Add to the sandbox before it starts. The start waits for it; a cause cancels it."""

    async def background(self) -> None:
        """Runs beside the whole execution, from before `prepare` until it ended, and is cancelled then."""

    async def alongside(self, sandbox: Sandbox) -> None:
        """Runs beside the sandbox, and is cancelled when that ends."""

    async def stopped(self, result: Result | None) -> Verdict:
        """Judge, and save what the run made. `result` is None where no sandbox came to be."""
        return COMPLETED

    async def finished(self, resolution: Resolution) -> None:
        """The log is closed and the end is decided; the report follows. Called for malformed payloads too."""


class Plugin(ABC, Generic[C, P]):
    """One object per worker, made from its part of the config."""

    Config: ClassVar[type[Document]] = Document
    payloads: ClassVar[Mapping[Dialect, type[Slice]]] = {}  # the plugin's slice in each dialect; none: it has none
    after: ClassVar[frozenset[str]] = frozenset()  # names of plugins whose hooks go first, where they are present
    malformed: ClassVar[bool] = False  # entered for malformed payloads too; its slices then need no property

    def __init__(self, config: C, services: Services) -> None:
        self.config = config
        self.services = services

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        """Around all runs of the worker; what is started here may serve every run."""
        yield

    @abstractmethod
    def task_scope(self, run: Run[P]) -> AbstractAsyncContextManager[TaskHooks]:
        """Around one run, quick to enter and to leave: leaving only releases.

        Raises `MalformedPayload` on entering where the slice alone could not tell. Do not hold a nursery around the
        `yield`: its failure would cancel the run; what runs beside it belongs into `background`.
        """
