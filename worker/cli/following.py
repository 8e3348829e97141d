"""Brings a task's log to stdout, while it is written and across interruptions."""

from __future__ import annotations

import sys
from math import inf

import trio

from worker.cli.common import NO_QUEUE, Failure, Session
from worker.cli.fetching import open_artifact, tell
from worker.cli.tasks import EXIT_CODES, described, latest_run
from worker.http import HttpError
from worker.model import RunKey
from worker.queue.errors import NotFound

LIVE_LOG = "public/logs/live.log"  # while the task runs a stream, afterwards a link to the log that was uploaded
SILENCE = 1.0  # seconds after which what there is of a running task's log has come, without --follow
PAUSE = 0.5  # seconds between looks for a log that is not there yet
ATTEMPTS = 10  # in a row without a byte


class _Stdout:
    """Where bytes go as they are; `offset` of them went."""

    def __init__(self) -> None:
        self.offset = 0

    def write(self, data: bytes) -> None:
        """Blocks while the reader is slow."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        self.offset += len(data)


async def copy_log(session: Session, task_id: str, *, follow: bool) -> None:
    """Copy the log of the task's last run to stdout. Raises Failure where there is none."""
    key, running = await _find_log(session, task_id, follow=follow)
    stdout = _Stdout()
    failures = 0
    while True:
        before = stdout.offset
        try:
            await _copy_once(session, key, stdout, whole=follow or not running)
        except (HttpError, Failure, NotFound):
            # Between the end of the live log and the upload of the whole one there is a moment without either.
            failures = 0 if stdout.offset > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            await trio.sleep(PAUSE)
        else:
            return


async def _find_log(session: Session, task_id: str, *, follow: bool) -> tuple[RunKey, bool]:
    """The run, and whether it was still running."""
    told = False
    while True:
        status = await session.queue.status(task_id)
        resolved = status.state in EXIT_CODES
        if status.runs:
            key = latest_run(status)
            if any(artifact.name == LIVE_LOG for artifact in await session.queue.list_artifacts(key)):
                return key, not resolved
        if resolved or not follow:
            raise Failure(f"task {task_id} has no log: it is {described(status)}", NO_QUEUE)
        if not told:
            tell(f"waiting for the log: {task_id} is {described(status)}")
            told = True
        await trio.sleep(PAUSE)


async def _copy_once(session: Session, key: RunKey, stdout: _Stdout, *, whole: bool) -> None:
    """From where `stdout` is to the end of the log; or, not `whole`, to its present end."""
    position = 0
    async with open_artifact(session, key, LIVE_LOG) as stream:
        chunks = aiter(stream.chunks())
        while True:
            with trio.move_on_after(inf if whole else SILENCE) as patience:
                chunk = await anext(chunks, b"")
            if patience.cancelled_caught or not chunk:
                return
            # Every stream begins with the first byte, also after an interruption.
            fresh = chunk[max(0, stdout.offset - position) :]
            position += len(chunk)
            if fresh:
                await session.ports.run_sync(stdout.write, fresh)
