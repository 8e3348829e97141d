"""The upload of one run's artifacts: files are found one by one and handed to a few workers.

    files, directories ─ schedule ─▶ bounded channel ─▶ uploads at once ─▶ report

Neither a large directory nor a large file is ever in memory as a whole; of directories that may share names the names
are (`Names`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from itertools import count
from posixpath import join

import trio

from engines.base import FileInvalid, FileMissing, FileUnreadable, Result
from plugins.artifacts.names import NameRefused, Names, prefix_of
from plugins.artifacts.payload import ArtifactsPayload, Declared
from plugins.artifacts.progress import ProgressLog
from plugins.artifacts.report import Report
from plugins.artifacts.stores import Store
from plugins.artifacts.uploading import Rules, Upload, Uploader
from worker.model import Verdict
from worker.queue.wire import format_time
from worker.run import Run
from worker.services import Services

TOLD_SINGLY = 100  # files of a directory, or of a run before there is a line on all of them


async def upload_all(
    services: Services,
    run: Run[ArtifactsPayload],
    result: Result,
    declared: Sequence[Declared],
    store: Store,
    rules: Rules,
    *,
    parallelism: int,
) -> Verdict:
    """Upload `declared`, as many files at once as `parallelism` says, and tell in the log which could not be.

    A service that fails costs the artifacts that it fails for, not the others. Cancellation ends uploads under way.
    """
    report = Report()
    uploader = Uploader(services, run, result, report, store, rules)
    progress = ProgressLog(run.log)
    send, receive = trio.open_memory_channel[Upload](parallelism)

    async def work(uploads: trio.MemoryReceiveChannel[Upload]) -> None:
        async with uploads:
            async for upload in uploads:
                with progress.of(upload.order, upload.name) as one:
                    await uploader.upload(upload, one)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.run)
        async with send, receive, trio.open_nursery() as workers:
            for _ in range(parallelism):
                workers.start_soon(work, receive.clone())
            await _Schedule(run, result, uploader, send).run(declared)
            await send.aclose()
        nursery.cancel_scope.cancel()
    report.tell(run.log)
    if uploader.files > TOLD_SINGLY:
        progress.summary(uploader.files, uploader.stored)
    return report.verdict()


class _Schedule:
    """Finds the files of a run's artifacts, says so in the log, in the payload's order, and hands them over."""

    def __init__(
        self, run: Run[ArtifactsPayload], result: Result, uploader: Uploader, send: trio.MemorySendChannel[Upload]
    ) -> None:
        self._log = run.log
        self._result = result
        self._uploader = uploader
        self._send = send
        self._order = count()

    async def run(self, declared: Sequence[Declared]) -> None:
        names = Names(declared)
        for item in declared:
            if item.kind == "file":
                await self._hand_over(self._uploader.upload_of(next(self._order), item, item.path, item.name))
            else:
                await self._directory(item, names)

    async def _directory(self, item: Declared, names: Names) -> None:
        prefix = prefix_of(item.name)
        self._log.say(f"Uploading artifacts {prefix}... from directory {item.path}")
        told = 0
        try:
            async with aclosing(self._result.walk(item.path)) as files:
                async for relative in files:
                    path, name = join(item.path, relative), prefix + relative
                    upload = self._uploader.upload_of(next(self._order), item, path, name)
                    try:
                        wanted = names.take(prefix, upload.name, upload.path)
                    except NameRefused as error:
                        self._uploader.blame(upload, str(error))
                        continue
                    if not wanted:
                        continue
                    told += 1
                    if told == TOLD_SINGLY + 1:
                        self._log.say(f"More files of directory {item.path} follow, without a line for each")
                    await self._hand_over(upload, say=told <= TOLD_SINGLY)
        except (FileMissing, FileInvalid, FileUnreadable) as error:
            await self._uploader.fail(Upload(next(self._order), item, item.path, item.name), error)

    async def _hand_over(self, upload: Upload, *, say: bool = True) -> None:
        if say:
            self._log.say(
                f'Uploading artifact {upload.name} from file {upload.path} with content encoding "{upload.encoding}", '
                f'mime type "{upload.content_type}" and expiry {format_time(upload.item.expires)}'
            )
        await self._send.send(upload)
