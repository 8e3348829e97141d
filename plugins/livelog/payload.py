"""Which logs a task wants, and under which names, in each dialect."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from worker.lognames import BACKING, LIVE, backing_name
from worker.schema import Slice

# What the queue takes as the name of an artifact.
ArtifactName = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[\x20-\x7e]+$")]


@dataclass(frozen=True, slots=True)
class LogNames:
    """The artifacts to make; None where the task does not want that one."""

    live: str | None
    backing: str | None


class LiveLogPayload(Slice):
    """The plugin's slice, whatever the dialect."""

    @property
    @abstractmethod
    def names(self) -> LogNames:
        """Which artifacts the task wants."""


class GenericWorkerFeatures(Slice):
    live_log: bool = True
    backing_log: bool = True


class GenericWorkerLogs(Slice):
    live: ArtifactName = LIVE
    backing: ArtifactName = BACKING


class GenericWorkerLiveLog(LiveLogPayload):
    """See `schemas/generic-worker`: `features` and `logs`."""

    features: GenericWorkerFeatures = GenericWorkerFeatures()
    logs: GenericWorkerLogs = GenericWorkerLogs()

    @model_validator(mode="after")
    def _two_names(self) -> Self:
        if self.names.live == self.names.backing is not None:
            raise ValueError("logs.live and logs.backing must be two names")
        return self

    @property
    def names(self) -> LogNames:
        return LogNames(
            live=self.logs.live if self.features.live_log else None,
            backing=self.logs.backing if self.features.backing_log else None,
        )


class DockerWorkerFeatures(Slice):
    local_live_log: bool = True
    bulk_log: bool = True


class DockerWorkerLiveLog(LiveLogPayload):
    """See `schemas/docker-worker/v1/payload.json`: `features` and `log`."""

    features: DockerWorkerFeatures = DockerWorkerFeatures()
    log: ArtifactName = LIVE

    @property
    def names(self) -> LogNames:
        # There a live log always becomes a stored one; `bulkLog` is for tasks that want the stored one alone.
        live = self.features.local_live_log
        stored = live or self.features.bulk_log
        return LogNames(live=self.log if live else None, backing=backing_name(self.log) if stored else None)
