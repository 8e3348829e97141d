"""Where the content of artifacts goes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from worker.queue.transfer import NewArtifact, Stored
from worker.queue.upload import DeploymentStorage


class Store(ABC):
    """One object for a worker. `encodes` says whether content may have an encoding, as far as is known.

    `announces` says whether an artifact is there, without its content, from the beginning of its upload.
    """

    encodes: bool
    announces: bool

    @abstractmethod
    async def keep(self, artifact: NewArtifact) -> Stored:
        """Store all of it, and make it the artifact of its name; returns when it can be fetched.

        Raises `QueueError` and `HttpError`: `Conflict` where the queue does not take the artifact, `WrongLength` where
        the content is not as long as it was. What opening raises comes out as it is. Cancellation leaves no artifact
        that looks complete, except by the storage type `s3`, whose artifacts have no end of their own.
        """


class DeploymentStore(Store):
    """What the deployment offers, as the worker's other uploads use it too."""

    def __init__(self, storage: DeploymentStorage) -> None:
        self._storage = storage

    @property
    def encodes(self) -> bool:  # type: ignore[override]
        """As that storage says."""
        return self._storage.encodes

    @property
    def announces(self) -> bool:  # type: ignore[override]
        """By the storage type `s3`, which is the one with encodings (facts page, section 1)."""
        return self.encodes

    async def keep(self, artifact: NewArtifact) -> Stored:
        """As the interface says."""
        return await self._storage.upload(artifact)
