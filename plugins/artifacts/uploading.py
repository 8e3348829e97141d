"""The upload of one file, and what is made of its failure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from engines.base import FileInvalid, FileMissing, FileUnreadable, Result, SandboxFile
from plugins.artifacts.content import StoredEncoding, content_type_of, encoding_of
from plugins.artifacts.contents import FileChanged, compressed, plain
from plugins.artifacts.payload import ArtifactsPayload, Declared, name_problem
from plugins.artifacts.progress import Progress
from plugins.artifacts.report import Remark, Report
from plugins.artifacts.stores import Store
from worker.http import HttpError, WrongLength
from worker.model import Severity
from worker.quantities import format_size
from worker.queue.errors import Conflict, QueueError
from worker.queue.models import ErrorArtifactRequest
from worker.queue.transfer import Content, NewArtifact
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
    encoding: StoredEncoding = "identity"

    @property
    def content_type(self) -> str:
        """As declared, else by the file's extension."""
        return self.item.content_type or content_type_of(self.path)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a worker does with files; sizes in bytes, None where there is no limit."""

    max_file_size: int | None = None
    max_total_size: int | None = None
    encodings: Mapping[str, StoredEncoding] = field(default_factory=dict)


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
        store: Store,
        rules: Rules,
    ) -> None:
        self._services = services
        self._run = run
        self._result = result
        self._report = report
        self._store = store
        self._rules = rules
        self._taken = 0  # bytes of files that were taken on
        self.stored = 0  # bytes
        self.files = 0

    def upload_of(self, order: int, item: Declared, path: str, name: str) -> Upload:
        """A file, with its encoding: as declared, else as the rules say; none where the store has none."""
        upload = Upload(order, item, path, name)
        if not self._store.encodes:
            return upload
        encoding = item.encoding or encoding_of(path, upload.content_type, self._rules.encodings)
        return replace(upload, encoding=encoding)

    async def upload(self, upload: Upload, progress: Progress) -> None:
        """Upload a file. Cancellation ends it at once; the artifact may then be there without its content."""
        announced = False
        try:
            async with self._result.open(upload.path) as file:
                self._check_size(upload, file)
                async with self._content(upload, file, progress) as content:
                    announced = self._store.announces
                    await self._send(upload, file, content, progress)
        except FILE_FAULTS as error:
            await self.fail(upload, error, announced=announced)
        except Conflict as error:
            self.blame(upload, f"the queue refuses it: {error.message}")
        except (QueueError, HttpError, OSError) as error:
            # A file's own OSErrors are file faults: this one is of a spool, so the disk is full, most likely.
            self._remark(upload, Severity.RESOURCE_UNAVAILABLE, str(error))

    async def fail(self, upload: Upload, error: FileFault, *, announced: bool = False) -> None:
        """Say what is wrong with a file, to the queue too where the task is to blame.

        An artifact that was `announced` is there without its content, so that no task with it is completed.
        """
        text = f"{upload.path} changed its length while it was sent" if isinstance(error, WrongLength) else str(error)
        if self._blameless(upload) and not (announced and self._result.ended is not None):
            self.blame(upload, text)
            return
        self._remark(upload, Severity.FAILED, text)
        if name_problem(upload.name):
            return  # A directory may be named `.`, which the queue would refuse: the log has it, and the verdict.
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
        most, total = self._rules.max_file_size, self._rules.max_total_size
        if most is not None and file.size > most:
            size = f"{upload.path} has {file.size} bytes"
            raise FileTooLarge(f"{size}, and this worker uploads {format_size(most)} at most")
        if total is not None and self._taken + file.size > total:
            size = f"{upload.path} has {file.size} bytes, and {self._taken} are uploaded already"
            raise FileTooLarge(f"{size}: this worker uploads {format_size(total)} of one task at most")
        self._taken += file.size

    @asynccontextmanager
    async def _content(self, upload: Upload, file: SandboxFile, progress: Progress) -> AsyncGenerator[Content, None]:
        if upload.encoding == "identity" or not self._store.encodes:
            yield plain(self._result, upload.path, file.size, progress, file)
            return
        services, path = self._services, upload.path
        async with compressed(services.ports, path, file, services.work_dir, progress, upload.encoding) as content:
            yield content

    async def _send(self, upload: Upload, file: SandboxFile, content: Content, progress: Progress) -> None:
        as_it_is = content if content.encoding is None else plain(self._result, upload.path, file.size, progress)
        run, expires = self._run, upload.item.expires
        artifact = NewArtifact(run.queue, run.key, upload.name, upload.content_type, expires, content, as_it_is)
        stored = await self._store.keep(artifact)
        self.stored += stored.length
        self.files += 1


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
