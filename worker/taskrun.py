"""One claimed run, from the claim to the report.

claim ─ [ prepare ─ start ─ alongside ] ─ stopped ─ finished ─ report
        execution: what a Cause cancels
└ upkeep: reclaims, and the deadline ──────────────────────────────┘

After a shutdown `finished` comes before `stopped`: the log is saved first, other artifacts in the time that is left.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import trio

from engines.base import Builder, Result
from worker.claims import claim_times
from worker.errors import FatalWorkerFault, MalformedPayload, WorkerFault
from worker.model import Cause, CauseKind, Resolution, RunKey, Severity, State, Verdict
from worker.outcome import classify, combine, leaves, resolve
from worker.pluginhost import PluginHost, enter_plugins
from worker.queue.credentials import Credentials
from worker.queue.errors import Conflict, QueueError, Unavailable
from worker.queue.models import TaskClaim
from worker.queue.services import Queue
from worker.run import Run
from worker.schema import Slice
from worker.tasklog import TaskLog, open_tasklog
from worker.watchdog import Expectation
from worker.workshop import ENGINE, Workshop

log = logging.getLogger("worker.run")

RECLAIM_PAUSE = 5.0  # seconds between attempts to reclaim, after the client's own have come to nothing


class TaskRun:
    """Runs one claim; made by the supervisor, which can `stop` it at any time."""

    def __init__(self, workshop: Workshop, claim: TaskClaim) -> None:
        self._workshop = workshop
        self._ports = workshop.services.ports
        self.key = RunKey(claim.status.task_id, claim.run_id)
        self._task = claim.task
        self._credentials = Credentials.from_wire(claim.credentials)
        self._taken_until: datetime = claim.taken_until
        self._queue = Queue(workshop.deployment, lambda: self._credentials)
        self._limiter = workshop.limiter
        self._execution = trio.CancelScope()
        self._execution_ends: Expectation | None = None
        self._executed = False  # whether the task's own part is over
        self._dead = False  # whether nothing of it executes any more
        self._grace = inf  # seconds to save what can be saved, once it is
        self._save_until = inf
        self._saving = trio.CancelScope()
        self._finished = False  # whether the log is closed, and saved if it can be
        self._reported = False
        self.cause: Cause | None = None
        self.fatal = False  # whether the worker is to stop because of what happened here
        self.settled = False  # whether it has ended as a run does: reported, or not to be reported

    def stop(self, cause: Cause) -> None:
        """End the execution, for the first cause that comes. What follows it goes on: uploads and report.

        A run that is lost is lost whenever that happens, so such a cause counts to the end and replaces another one.
        The others can end an execution alone: a task that has ended by itself is reported as it ended.
        """
        if self._reported:
            return
        if cause.run_is_ours:
            counts = self.cause is None and not self._executed
        else:
            counts = self.cause is None or self.cause.run_is_ours
        if counts:
            log.info("%s: %s", self.key, cause.message)
            self.cause = cause
            self._execution.cancel()
            if self._execution_ends is not None:
                seconds = (self._workshop.services.kill_grace + self._limiter.config.kill).total_seconds()
                self._limiter.watchdog.limit(self._execution_ends, seconds)

    def hurry(self, grace: float) -> None:
        """From the end of the execution on there are `grace` seconds to save log and artifacts; then it is reported."""
        self._grace = min(self._grace, grace)
        if self._dead:
            self._limit_saving()

    def _limit_saving(self) -> None:
        self._save_until = min(self._save_until, trio.current_time() + self._grace)
        self._saving.deadline = self._save_until

    async def run(self) -> Resolution:
        """Run to the end and report it, once. Raises nothing of the run's own.

        Cancelled, it kills what executes (shielded, within the kill grace) and reports nothing.
        """
        async with trio.open_nursery() as upkeep:
            upkeep.start_soon(self._keep_claim)
            upkeep.start_soon(self._watch_deadline)
            try:
                resolution = await self._run_and_report()
            except Exception as error:  # noqa: BLE001 - such as no disk for a log: the run still gets its report
                resolution = resolve(self._classify(error), self.cause)
                if not self._reported:
                    await self._report(resolution)
            upkeep.cancel_scope.cancel()
        self.settled = True
        return resolution

    # What happens in order

    async def _run_and_report(self) -> Resolution:
        path = await self._ports.run_sync(_log_path, self._workshop.services.work_dir, self.key)
        async with open_tasklog(self._ports, path) as tasklog:
            try:
                return await self._run_with(tasklog)
            finally:
                # No limit: one short call, and what is not removed here would stay.
                with trio.CancelScope(shield=True):
                    await self._ports.run_sync(_remove, path)

    async def _run_with(self, tasklog: TaskLog) -> Resolution:
        parsed = self._workshop.schema.parse(self._task.payload)
        members = [member for member in self._workshop.plugins if not parsed.problems or member.plugin.malformed]
        runs = {member.name: self._run_for(parsed.slices, member.name, tasklog) for member in members}
        async with enter_plugins(members, runs, self._classify, self._limiter) as host:
            if parsed.problems:
                host.fail(MalformedPayload(parsed.problems))
            if not host.verdicts:
                await self._work(host, self._run_for(parsed.slices, ENGINE, tasklog))
            await self._finish(host, tasklog)
            resolution = resolve(combine(host.verdicts), self.cause)
            await self._report(resolution)
        return resolution

    async def _finish(self, host: PluginHost, tasklog: TaskLog) -> None:
        """Close the log and have it saved, once. What goes wrong from here on can change the report, not the log."""
        if self._finished:
            return
        self._finished = True
        resolution = resolve(combine(host.verdicts), self.cause)
        try:
            await _close(tasklog, resolution)
        except OSError as error:  # a full disk, most likely: the log that there is is uploaded all the same
            host.fail(WorkerFault(f"the log could not be written: {error.strerror}"))
        before = len(host.verdicts)
        with self._within_grace(host, "its log was saved"):
            await host.every("finished", lambda hooks: hooks.finished(resolution), self._limiter.config.finished)
        for verdict in host.verdicts[before:]:
            log.warning("%s: after its log was closed: %s", self.key, verdict.message)

    async def _judge(self, host: PluginHost, tasklog: TaskLog, result: Result | None) -> None:
        if self.cause is not None and self.cause.kind is CauseKind.SHUTDOWN:
            await self._finish(host, tasklog)
        with self._within_grace(host, "all of its artifacts were saved"):
            await host.every("stopped", lambda hooks: hooks.stopped(result), self._limiter.config.stopped)

    @contextmanager
    def _within_grace(self, host: PluginHost, what: str) -> Generator[None, None, None]:
        """Around what saves something: it ends when the grace does, if the worker was told to stop.

        Then the run is another worker's to do again, however it has ended here: what it made is not all there.
        """
        with trio.CancelScope(deadline=self._save_until) as self._saving:
            yield
        if self._saving.cancelled_caught:
            message = f"the worker was told to stop, and had no time left before {what}"
            log.warning("%s: %s", self.key, message)
            host.verdicts.append(Verdict(Severity.SHUTDOWN, message))

    async def _work(self, host: PluginHost, run: Run[Any]) -> None:
        """Everything between the plugins' scopes and the log's end; what goes wrong becomes verdicts of `host`."""
        step, limits = self._limiter.scope, self._limiter.config
        engine = self._workshop.engine
        try:
            async with step("the engine's builder", engine.builder(run), limits.enter, limits.clean_up) as builder:
                started = await self._execute(host, builder)
                if not started:
                    await self._judge(host, run.log, None)
                else:
                    async with step("the engine's result", builder.result(), limits.enter, limits.clean_up) as result:
                        await self._judge(host, run.log, result)
        except Exception as error:  # noqa: BLE001 - the engine's builder or result failed
            host.fail(error)

    async def _execute(self, host: PluginHost, builder: Builder) -> bool:
        """Prepare, start and accompany the sandbox until it ended or a cause came; whether it was started."""
        started = False
        prepare = self._limiter.config.prepare
        try:
            with self._limiter.watchdog.expects(f"{self.key}: its execution") as self._execution_ends, self._execution:
                async with trio.open_nursery() as background:
                    background.start_soon(partial(host.each, "background", lambda hooks: hooks.background()))
                    await host.each("prepare", lambda hooks: hooks.prepare(builder), limit=prepare)
                    async with builder.sandbox() as sandbox, trio.open_nursery() as beside:
                        started = True
                        beside.start_soon(partial(host.each, "alongside", lambda hooks: hooks.alongside(sandbox)))
                        await sandbox.wait()
                        self._executed = True
                        beside.cancel_scope.cancel()
                    background.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - a hook's or the sandbox's; classify says whose fault it is
            host.fail(error)
        self._executed = self._dead = True
        self._limit_saving()
        return started

    # What happens beside it

    async def _keep_claim(self) -> None:
        """Reclaim in time, until the queue says that the run is no longer ours or the claim cannot be kept."""
        grace = self._workshop.services.kill_grace
        while True:
            times = claim_times(self._workshop.deployment.server_now(), self._taken_until, grace)
            await self._workshop.deployment.sleep_until(times.reclaim_at)
            with trio.move_on_after(self._workshop.deployment.seconds_until(times.end_at)) as in_time:
                if not await self._reclaim():
                    return
            if in_time.cancelled_caught:
                message = f"the claim could not be renewed in time, it ends at {self._taken_until:%H:%M:%S} UTC"
                self.stop(Cause(CauseKind.CLAIM_LOST, message))
                return

    async def _reclaim(self) -> bool:
        """Whether the run is still ours; insists until it knows."""
        while True:
            try:
                claim = await self._queue.reclaim(self.key)
            except Conflict as conflict:
                self.stop(Cause(CauseKind.CLAIM_LOST, f"the queue ended this run: {conflict.message}"))
                return False
            except QueueError as error:
                log.warning("%s: %s; it is tried again", self.key, error)
                await trio.sleep(RECLAIM_PAUSE)
            else:
                self._credentials = Credentials.from_wire(claim.credentials)
                self._taken_until = claim.taken_until
                return True

    async def _watch_deadline(self) -> None:
        await self._workshop.deployment.sleep_until(self._task.deadline)
        self.stop(
            Cause(CauseKind.DEADLINE, f"the task's deadline has passed: {self._task.deadline:%Y-%m-%dT%H:%M:%SZ}")
        )

    # Parts of these

    def _run_for(self, slices: Mapping[str, Slice], owner: str, tasklog: TaskLog) -> Run[Any]:
        return Run(self.key, self._task, slices.get(owner, Slice()), tasklog, self._queue, self.stop)

    def _classify(self, error: BaseException) -> Verdict:
        incident = self._ports.token(6)
        verdict = classify(error, incident)
        if verdict.severity is Severity.INTERNAL:
            log.error("%s: incident %s", self.key, incident, exc_info=error)
        self.fatal = self.fatal or any(isinstance(leaf, FatalWorkerFault) for leaf in leaves(error))
        return verdict

    async def _report(self, resolution: Resolution) -> None:
        """Tell the queue, for as long as the claim lasts; if it cannot be told, the claim expires there."""
        while not self._reported:
            if resolution.state is State.ABANDONED:
                log.info("%s: not reported: %s", self.key, resolution.message)
                return
            # Reclaims go on meanwhile, so that there may be more time than at the last attempt.
            with trio.move_on_after(self._workshop.deployment.seconds_until(self._taken_until)) as in_time:
                try:
                    await self._report_once(resolution)
                except Unavailable as error:
                    log.warning("%s: %s; it is tried again", self.key, error)
                    continue
                except QueueError as error:
                    log.warning("%s: not reported as %s: %s", self.key, resolution, error)
                    return
                self._reported = True
            if in_time.cancelled_caught:
                log.error("%s: could not be reported as %s while the claim lasted", self.key, resolution)
                return
        log.info("%s: %s %s", self.key, resolution, resolution.message)

    async def _report_once(self, resolution: Resolution) -> None:
        match resolution.state:
            case State.COMPLETED:
                await self._queue.report_completed(self.key)
            case State.FAILED:
                await self._queue.report_failed(self.key)
            case State.EXCEPTION:
                assert resolution.reason is not None
                await self._queue.report_exception(self.key, resolution.reason)


async def _close(tasklog: TaskLog, resolution: Resolution) -> None:
    """The last line says why, where the task did not complete."""
    if resolution.state is not State.COMPLETED:
        tasklog.error(resolution.message)
    await tasklog.close()


def _log_path(work_dir: Path, key: RunKey) -> Path:
    folder = work_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{key.task_id}-{key.run_id}.log"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s could not be removed: %s", path, error.strerror)
