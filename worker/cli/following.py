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
from worker.schema import JsonObject

# The first is a stream while the task runs, afterwards a link to the second, which was uploaded then.
LOGS = {"live": "public/logs/live.log", "backing": "public/logs/live_backing.log"}
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
    key, name, running = await _find_log(session, task_id, follow=follow)
    stdout = _Stdout()
    failures = 0
    while True:
        before = stdout.offset
        try:
            await _copy_once(session, key, name, stdout, whole=follow or not running)
        except (HttpError, Failure, NotFound):
            # Between the end of the live log and the upload of the whole one there is a moment without either.
            failures = 0 if stdout.offset > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            await trio.sleep(PAUSE)
        else:
            return


async def _find_log(session: Session, task_id: str, *, follow: bool) -> tuple[RunKey, str, bool]:
    """The run, its log's name, and whether it was still running."""
    told = False
    names = _log_names((await session.queue.task(task_id)).payload)
    while True:
        status = await session.queue.status(task_id)
        resolved = status.state in EXIT_CODES
        if status.runs:
            key = latest_run(status)
            there = {artifact.name for artifact in await session.queue.list_artifacts(key)}
            if name := next((name for name in names if name in there), None):
                return key, name, not resolved
        if resolved or not follow:
            raise Failure(f"task {task_id} has no log: it is {described(status)}", NO_QUEUE)
        if not told:
            tell(f"waiting for the log: {task_id} is {described(status)}")
            told = True
        await trio.sleep(PAUSE)


def _log_names(payload: JsonObject) -> list[str]:
    """Where the payload says that the logs go (facts page, section 2: `logs`); the live log is better than its copy."""
    logs = payload.get("logs")
    given = logs if isinstance(logs, dict) else {}
    return [str(given.get(which, usual)) for which, usual in LOGS.items()]


async def _copy_once(session: Session, key: RunKey, name: str, stdout: _Stdout, *, whole: bool) -> None:
    """From where `stdout` is to the end of the log; or, not `whole`, to its present end."""
    position = 0
    async with open_artifact(session, key, name) as stream:
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
