"""Brings a task's log to stdout, while it is written and across interruptions."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from math import inf

import httpx
import trio

from worker.cli.common import NO_QUEUE, Failure, Session
from worker.cli.fetching import open_artifact, tell
from worker.cli.tasks import EXIT_CODES, described, latest_run
from worker.http import HttpError, HttpStream, plain_url
from worker.lognames import log_names
from worker.model import RunKey
from worker.queue.errors import NotFound, Unavailable

SILENCE = 1.0  # seconds after which what there is of a running task's log has come, without --follow
PAUSE = 0.5  # seconds between looks for a log that is not there yet
LONGEST_PAUSE = 5.0
ATTEMPTS = 10  # in a row without a byte
PATIENCE = 5.0  # seconds after which an attempt that failed may have had a log that is silent
VERY_LARGE = 2**53 - 1  # beyond the end of any log (RFC 8673, section 2.3)


class LogCopy:
    """One log on its way to `write`, across interruptions; `write` may block while its reader is slow."""

    def __init__(
        self,
        session: Session,
        key: RunKey,
        name: str,
        write: Callable[[bytes], object],
        *,
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        self._session = session
        self._patience = patience
        self._pause = pause
        self._key = key
        self._name = name
        self._write = write
        self._live: httpx.URL | None = None  # where it was found to be streamed
        self._ended = False  # the last answer that was read came to its end
        self.offset = 0  # bytes that were written

    async def run(self, *, whole: bool) -> None:
        """Copy to the end of the log; or, not `whole`, to its present end. Raises what the last of many attempts did.

        Between the end of the live log and the upload of the whole one there is a moment without either.
        """
        failures = 0
        while True:
            before, began = self.offset, trio.current_time()
            failure: Exception | None = None
            try:
                if await self._copy(whole=whole):
                    return
            except (HttpError, Failure, NotFound, Unavailable) as error:
                failure = error
            # A task may be silent for hours, for which a proxy does not keep a connection; and uploads take their time
            # after the end of its log.
            silent = (failure is None or trio.current_time() - began >= self._patience) and await self._runs()
            failures = 0 if silent or self.offset > before else failures + 1
            if failures >= ATTEMPTS:
                if self._ended and not await self._runs():
                    return  # A log that is not stored, whose worker has let go of it.
                raise failure or Failure(f"{self._name}: it ends again and again where nothing follows", NO_QUEUE)
            if self.offset == before or failure is not None:
                await trio.sleep(self._pause)

    async def _runs(self) -> bool:
        """Whether more may come, as far as the queue can tell."""
        try:
            return (await self._session.queue.status(self._key.task_id)).state not in EXIT_CODES
        except Unavailable:
            return True

    async def _copy(self, *, whole: bool) -> bool:
        """One attempt; whether all is copied."""
        before = self.offset
        wanted = self._wanted if whole else self._present
        async with open_artifact(self._session, self._key, self._name, wanted) as (url, stream):
            self._live = url if stream.headers.get("X-Streaming") == "true" else None
            if stream.status == 416:
                return True  # It has ended, and there is no more of it.
            position = _first_byte(stream)
            if position is None or position > self.offset:
                raise Failure(f"{self._name}: {plain_url(url)} answers with another range than asked", NO_QUEUE)
            # What there is has a length; of a worker that knows no ranges it has come when nothing more does.
            patience = SILENCE if self._live and stream.status == 200 and not whole else inf
            self._ended = False
            if not await self._take(stream, position, patience):
                return True
            self._ended = True
            if not whole:
                return True
        # The answer of a live log may end as if it were whole where something on the way has broken, such as a tunnel:
        # the log has ended when there is no more of it. Another worker's, without ranges, brings nothing new then.
        return self._live is None or (stream.status == 200 and self.offset == before and not await self._runs())

    async def _take(self, stream: HttpStream, position: int, patience: float) -> bool:
        """Write what is new; whether that was to the end of the answer, or to `patience` seconds without a byte."""
        chunks = aiter(stream.chunks())
        while True:
            with trio.move_on_after(patience) as waiting:
                chunk = await anext(chunks, b"")
            if waiting.cancelled_caught:
                return False
            if not chunk:
                return True
            # What does not begin where it was asked to begins with the first byte.
            fresh = chunk[max(0, self.offset - position) :]
            position += len(chunk)
            if fresh:
                await self._session.ports.run_sync(self._write, fresh)
                self.offset += len(fresh)

    def _wanted(self, url: httpx.URL) -> Mapping[str, str]:
        """Of a live log the rest, as it is written (RFC 8673). A stored one is compressed, and its ranges are too."""
        return {"Range": f"bytes={self.offset}-{VERY_LARGE}"} if self.offset and url == self._live else {}

    def _present(self, url: httpx.URL) -> Mapping[str, str]:
        """Of a live log what is there by now. It is not known yet where that is; a stored log is whole from 0 on."""
        return {"Range": f"bytes={self.offset if url == self._live else 0}-"}


def _first_byte(stream: HttpStream) -> int | None:
    """Where the answer begins; None where it does not say so (RFC 9110, section 14.4)."""
    if stream.status != 206:
        return 0
    found = re.match(r"bytes (\d+)-", stream.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


async def copy_log(session: Session, task_id: str, *, follow: bool) -> None:
    """Copy the log of the task's last run to stdout. Raises Failure where there is none."""
    key, name, running = await _find_log(session, task_id, follow=follow)
    await LogCopy(session, key, name, _write_out).run(whole=follow or not running)


def _write_out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _find_log(session: Session, task_id: str, *, follow: bool) -> tuple[RunKey, str, bool]:
    """The run, its log's name, and whether it was still running."""
    told, pause = False, PAUSE
    names = log_names((await session.queue.task(task_id)).payload)
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
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
