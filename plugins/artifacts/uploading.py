"""The upload of one file, and what is made of its failure."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from engines.base import FileInvalid, FileMissing, FileUnreadable, Result, SandboxFile
from plugins.artifacts.content import Encoding, content_type_of, encoding_of
from plugins.artifacts.contents import Content, FileChanged, compressed, plain
from plugins.artifacts.payload import ArtifactsPayload, Declared
from plugins.artifacts.progress import Progress
from plugins.artifacts.report import Remark, Report
from worker.http import HttpError, WrongLength
from worker.model import Severity
from worker.quantities import format_size
from worker.queue.errors import Conflict, QueueError
from worker.queue.models import ErrorArtifactRequest
from worker.queue.upload import upload_artifact
from worker.run import Run
from worker.services import Services

MAX_MESSAGE = 4096  # characters in an error artifact (schemas/queue/v1/post-artifact-request.json)

Reason = Literal[
    "file-missing-on-worker", "invalid-resource-on-worker", "file-not-readable-on-worker", "too-large-file-on-worker"
]


class FileTooLarge(Exception):
    """The file is larger than this worker uploads."""


FileFault = FileMissing | FileInvalid | FileUnreadable | FileTooLarge | FileChanged | WrongLength
# WrongLength is how the HTTP client says that a file changed while it was sent.
FILE_FAULTS = (FileMissing, FileInvalid, FileUnreadable, FileTooLarge, FileChanged, WrongLength)


@dataclass(frozen=True, slots=True)
class Upload:
    """One file, or a directory that could not be read. `order` is its place among all artifacts of the run."""

    order: int
    item: Declared
    path: str
    name: str

    @property
    def content_type(self) -> str:
        """As declared, else by the file's extension."""
        return self.item.content_type or content_type_of(self.path)

    @property
    def encoding(self) -> Encoding:
        """As declared, else by the file's extension."""
        return self.item.encoding or encoding_of(self.path)


class Uploader:
    """Uploads one file at a time, and tells `report` of what was not to be uploaded.

    After a run that was ended early (`result.ended` is None) what is there is uploaded, and the rest is nobody's fault:
    the task was given no time to make it, so there is a warning and no error artifact. What is wrong with an optional
    artifact is a warning too.

    A refusal with 409 hurts its own artifact only. The queue takes artifacts for 25 minutes after a cancellation (facts
    page), so it most likely means that the task itself made another artifact of that name. Where the run is no
    longer ours, nobody asks for the verdict.
    """

    def __init__(
        self,
        services: Services,
        run: Run[ArtifactsPayload],
        result: Result,
        report: Report,
        max_file_size: int | None = None,
    ) -> None:
        self._services = services
        self._run = run
        self._result = result
        self._report = report
        self._max_file_size = max_file_size

    async def upload(self, upload: Upload, progress: Progress) -> None:
        """Upload a file. Cancellation ends it at once; the artifact may then be there without its content."""
        try:
            async with self._result.open(upload.path) as file:
                self._check_size(upload, file)
                async with self._content(upload, file, progress) as content:
                    await self._send(upload, content)
        except FILE_FAULTS as error:
            await self.fail(upload, error)
        except Conflict as error:
            self.blame(upload, f"the queue refuses it: {error.message}")
        except (QueueError, HttpError, OSError) as error:
            # A file's own OSErrors are file faults: this one is of a spool, so the disk is full, most likely.
            self._remark(upload, Severity.RESOURCE_UNAVAILABLE, str(error))

    async def fail(self, upload: Upload, error: FileFault) -> None:
        """Say what is wrong with a file, to the queue too where the task is to blame."""
        text = f"{upload.path} changed its length while it was sent" if isinstance(error, WrongLength) else str(error)
        self.blame(upload, text)
        if self._blameless(upload):
            return
        request = ErrorArtifactRequest(
            expires=upload.item.expires, message=text[:MAX_MESSAGE], reason=_reason(error), storage_type="error"
        )
        try:
            await self._run.queue.create_artifact(self._run.key, upload.name, request)
        except Conflict:
            pass  # The upload had begun: an artifact does not become an error. The log has it, and the verdict.
        except QueueError as error:
            self._remark(upload, Severity.RESOURCE_UNAVAILABLE, str(error))

    def blame(self, upload: Upload, text: str) -> None:
        """The task fails for this, unless the artifact was optional or the task had no time for it."""
        self._remark(upload, Severity.COMPLETED if self._blameless(upload) else Severity.FAILED, text)

    def _blameless(self, upload: Upload) -> bool:
        return upload.item.optional or self._result.ended is None

    def _remark(self, upload: Upload, severity: Severity, text: str) -> None:
        name = upload.name.encode("ascii", "backslashreplace").decode()
        self._report.add(Remark(upload.order, severity, f"artifact {name} was not uploaded: {text}"))

    def _check_size(self, upload: Upload, file: SandboxFile) -> None:
        if self._max_file_size is not None and file.size > self._max_file_size:
            limit = format_size(self._max_file_size)
            raise FileTooLarge(f"{upload.path} has {file.size} bytes, and this worker uploads {limit} at most")

    @asynccontextmanager
    async def _content(self, upload: Upload, file: SandboxFile, progress: Progress) -> AsyncGenerator[Content, None]:
        if upload.encoding == "identity":
            yield plain(self._result, upload.path, file, progress)
            return
        services = self._services
        async with compressed(services.ports, upload.path, file, services.work_dir, progress) as content:
            yield content

    async def _send(self, upload: Upload, content: Content) -> None:
        await upload_artifact(
            self._run.queue,
            self._services.http,
            self._services.ports,
            self._run.key,
            upload.name,
            content_type=upload.content_type,
            content_encoding=upload.encoding if upload.encoding != "identity" else None,
            expires=upload.item.expires,
            open_content=content.open,
            length=content.length,
        )


def _reason(error: FileFault) -> Reason:
    match error:
        case FileMissing():
            return "file-missing-on-worker"
        case FileUnreadable():
            return "file-not-readable-on-worker"
        case FileTooLarge():
            return "too-large-file-on-worker"
        case _:
            return "invalid-resource-on-worker"
