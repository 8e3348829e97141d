"""One claimed run, from the claim to the report.

claim ─ [ prepare ─ start ─ alongside ] ─ stopped ─ finished ─ report
        execution: what a Cause cancels
└ upkeep: reclaims, and the deadline ──────────────────────────────┘
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
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
        self._execution = trio.CancelScope()
        self._executed = False  # whether the execution is over
        self._reported = False
        self.cause: Cause | None = None
        self.fatal = False  # whether the worker is to stop because of what happened here

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
        async with enter_plugins(members, runs, self._classify) as host:
            if parsed.problems:
                host.fail(MalformedPayload(parsed.problems))
            if not host.verdicts:
                await self._work(host, self._run_for(parsed.slices, ENGINE, tasklog))
            resolution = resolve(combine(host.verdicts), self.cause)
            try:
                await _close(tasklog, resolution)
            except OSError as error:  # a full disk, most likely: the log that there is is uploaded all the same
                host.fail(WorkerFault(f"the log could not be written: {error.strerror}"))
            # What goes wrong from here on can change the report, no longer the log.
            before = len(host.verdicts)
            await host.every(lambda hooks: hooks.finished(resolution))
            resolution = resolve(combine(host.verdicts), self.cause)
            for verdict in host.verdicts[before:]:
                log.warning("%s: after its log was closed: %s", self.key, verdict.message)
            await self._report(resolution)
        return resolution

    async def _work(self, host: PluginHost, run: Run[Any]) -> None:
        """Everything between the plugins' scopes and the log's end; what goes wrong becomes verdicts of `host`."""
        try:
            async with self._workshop.engine.builder(run) as builder:
                started = await self._execute(host, builder)
                if not started:
                    await _judge(host, None)
                else:
                    async with builder.result() as result:
                        await _judge(host, result)
        except Exception as error:  # noqa: BLE001 - the engine's builder or result failed
            host.fail(error)

    async def _execute(self, host: PluginHost, builder: Builder) -> bool:
        """Prepare, start and accompany the sandbox until it ended or a cause came; whether it was started."""
        started = False
        try:
            with self._execution:
                async with trio.open_nursery() as background:
                    background.start_soon(partial(host.each, lambda hooks: hooks.background(), ordered=False))
                    await host.each(lambda hooks: hooks.prepare(builder))
                    async with builder.sandbox() as sandbox, trio.open_nursery() as beside:
                        started = True
                        beside.start_soon(partial(host.each, lambda hooks: hooks.alongside(sandbox), ordered=False))
                        await sandbox.wait()
                        beside.cancel_scope.cancel()
                    background.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - a hook's or the sandbox's; classify says whose fault it is
            host.fail(error)
        self._executed = True
        return started

    # What happens beside it

    async def _keep_claim(self) -> None:
        """Reclaim in time, until the queue says that the run is no longer ours or the claim cannot be kept."""
        grace = self._workshop.services.kill_grace
        while True:
            times = claim_times(self._workshop.deployment.server_now(), self._taken_until, grace)
            await self._sleep_until(times.reclaim_at)
            with trio.move_on_after(self._seconds_until(times.end_at)) as in_time:
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
        await self._sleep_until(self._task.deadline)
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
            with trio.move_on_after(self._seconds_until(self._taken_until)) as in_time:
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

    def _seconds_until(self, moment: datetime) -> float:
        # By the queue's clock, since the moment is the queue's.
        return max(0.0, (moment - self._workshop.deployment.server_now()) / timedelta(seconds=1))

    async def _sleep_until(self, moment: datetime) -> None:
        # The wall clock may be set while we sleep; an hour at most is slept in error.
        while seconds := self._seconds_until(moment):  # noqa: ASYNC110 - nothing tells that a clock was set
            await trio.sleep(min(seconds, 3600))


async def _judge(host: PluginHost, result: Result | None) -> None:
    await host.every(lambda hooks: hooks.stopped(result))


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
