"""One claimed run, from the claim to the report.

claim ─ [ prepare ─ start ─ alongside ] ─ stopped ─ finished ─ report
        execution: what a Cause cancels
└ upkeep: reclaims, and the deadline ──────────────────────────────┘

After a shutdown `finished` comes before `stopped`: the log is saved first, other artifacts in the time that is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from math import inf
from typing import Any

import trio

from engines.base import Builder, Result, Sandbox
from worker.claims import ClaimTimes, claim_times
from worker.errors import FatalWorkerFault, MalformedPayload, TaskFault
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
ARTIFACTS_SHARE = 2 / 3  # of a shutdown's grace, where the log must wait for the artifacts' last remarks


class TaskRun:
    """Runs one claim; made by the supervisor, which can `stop` it at any time.

    `on_fatal` is called as soon as something happens by which the worker is not to be trusted with any more tasks.
    """

    def __init__(self, workshop: Workshop, claim: TaskClaim, on_fatal: Callable[[], None]) -> None:
        self._workshop = workshop
        self._on_fatal = on_fatal
        self._ports = workshop.services.ports
        self.key = RunKey(claim.status.task_id, claim.run_id)
        self._task = claim.task
        self._credentials = Credentials.from_wire(claim.credentials)
        self._taken_until: datetime = claim.taken_until
        self._queue = Queue(workshop.deployment, lambda: self._credentials)
        self._clock = workshop.deployment.clock
        self._limiter = workshop.limiter
        self._end_limit = workshop.services.kill_grace + self._limiter.config.kill
        self._execution = trio.CancelScope()
        self._execution_ends: Expectation | None = None
        self._executed = False  # whether the task's own part is over
        self._dead = False  # whether nothing of it executes any more
        self._grace = inf  # seconds to save what can be saved, once it is
        self._saving = trio.CancelScope()
        self._saving_share = 1.0  # how much of the grace that scope may use
        self._saving_since = self._saving_until = inf
        self._finished = False  # whether the log is closed, and saved if it can be
        self._upkeep = trio.CancelScope()
        self._reporting = trio.CancelScope()
        self._resolved_by_queue = False
        self.cause: Cause | None = None
        self.resolution: Resolution | None = None  # once it has ended as a run does: reported, or not to be reported

    def stop(self, cause: Cause) -> None:
        """End the execution, for the first cause that comes. What follows it goes on: uploads and report.

        A run that is lost is lost whenever that happens, so such a cause counts to the end and replaces another one.
        The others can end an execution alone: a task that has ended by itself is reported as it ended.
        """
        if self.resolution is not None:
            return
        if cause.told_by_queue:
            self._resolved_by_queue = True
            self._reporting.cancel()
        if cause.run_is_ours:
            counts = self.cause is None and not self._executed
        else:
            counts = self.cause is None or self.cause.run_is_ours
        if counts:
            log.info("%s: %s", self.key, cause.message)
            self.cause = cause
            self._execution.cancel()
            self._expect_end()

    def _expect_end(self) -> None:
        """What executes is ending, for whatever reason: if it does not end in time, the worker is stuck."""
        if self._execution_ends is not None:
            self._limiter.watchdog.limit(self._execution_ends, self._end_limit.total_seconds())

    def hurry(self, grace: float) -> None:
        """From the end of the execution on there are `grace` seconds to save log and artifacts; then it is reported."""
        self._grace = min(self._grace, grace)
        if self._dead:
            self._limit_saving()

    def _limit_saving(self) -> None:
        if self._grace < inf:
            now = trio.current_time()
            self._saving_since = min(self._saving_since, now)
            self._saving_until = min(self._saving_until, now + self._grace)
            seconds = self._saving_until - self._saving_since
            self._saving.deadline = self._saving_since + seconds * self._saving_share

    async def run(self) -> Resolution:
        """Run to the end and report it, once. Raises nothing of the run's own.

        Cancelled, it kills what executes (shielded, within the kill grace) and reports nothing.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            try:
                resolution = await self._run_and_report()
            except Exception as error:  # noqa: BLE001 - such as no disk for a log: the run still gets its report
                verdict = self._classify(error)
                resolution = self.resolution or await self._report(resolve(verdict, self.cause))
        return resolution

    # What happens in order

    async def _run_and_report(self) -> Resolution:
        path = self._workshop.services.work_dir / "logs" / f"{self.key.task_id}-{self.key.run_id}.log"
        async with open_tasklog(self._ports, path, self._workshop.log) as tasklog:
            return await self._run_with(tasklog)

    async def _run_with(self, tasklog: TaskLog) -> Resolution:
        parsed = self._workshop.schema.parse(self._task.payload)
        members = [member for member in self._workshop.plugins if not parsed.problems or member.plugin.malformed]
        runs = {member.name: self._run_for(parsed.slices, member.name, tasklog) for member in members}
        async with enter_plugins(members, runs, self._classify, self._limiter) as host:
            if parsed.problems:
                host.fail(MalformedPayload(parsed.problems))
            if not host.verdicts:
                await self._work(host, self._run_for(parsed.slices, ENGINE, tasklog))
            return await self._conclude(host, tasklog)

    async def _conclude(self, host: PluginHost, tasklog: TaskLog) -> Resolution:
        """Save the log and report, unless that is done."""
        if self.resolution is not None:
            return self.resolution
        self._end_execution()
        await self._finish(host, tasklog)
        return await self._report(resolve(combine(host.verdicts), self.cause))

    async def _finish(self, host: PluginHost, tasklog: TaskLog) -> None:
        """Close the log and have it saved, once. What goes wrong from here on can change the report, not the log."""
        if self._finished:
            return
        self._finished = True
        resolution = resolve(combine(host.verdicts), self.cause)
        if resolution.state is not State.COMPLETED:
            if full := await self._workshop.services.disk.full():
                tasklog.warn(f"the worker's disk is full: {full}")
            tasklog.error(resolution.message)  # last
        with suppress(OSError):  # What a full disk does not take is read from memory.
            await tasklog.close()
        before = len(host.verdicts)
        with self._within_grace(host, "its log was saved"):
            await host.every("finished", lambda hooks: hooks.finished(resolution), self._limiter.config.finished)
        for verdict in host.verdicts[before:]:
            log.warning("%s: after its log was closed: %s", self.key, verdict.message)

    async def _judge(self, host: PluginHost, tasklog: TaskLog, result: Result | None) -> None:
        if self.cause is not None and self.cause.kind is CauseKind.SHUTDOWN:
            await self._finish(host, tasklog)
        share = 1.0 if self._finished else ARTIFACTS_SHARE
        with self._within_grace(host, "all of its artifacts were saved", share):
            await host.every("stopped", lambda hooks: hooks.stopped(result), self._limiter.config.stopped)

    @contextmanager
    def _within_grace(self, host: PluginHost, what: str, share: float = 1.0) -> Generator[None, None, None]:
        """Around what saves something: it ends when that share of the grace does, if the worker was told to stop.

        Then the run is another worker's to do again, however it has ended here: what it made is not all there.
        """
        self._saving_share = share
        with trio.CancelScope() as self._saving:
            self._limit_saving()
            yield
        if self._saving.cancelled_caught:
            message = f"the worker was told to stop, and had no time left before {what}"
            log.warning("%s: %s", self.key, message)
            host.verdicts.append(Verdict(Severity.SHUTDOWN, message))

    async def _work(self, host: PluginHost, run: Run[Any]) -> None:
        """From the engine's builder to the report, and the cleanup; what goes wrong becomes verdicts of `host`.

        Nobody waits for the cleanup but the next task: what goes wrong there is in the worker's log alone.
        """
        step, limits = self._limiter.scope, self._limiter.config
        engine = self._workshop.engine
        try:
            async with step("the engine's builder", engine.builder(run), limits.enter, limits.clean_up) as builder:
                started = await self._execute(host, builder)
                run.log.end_output()
                if not started:
                    await self._judge(host, run.log, None)
                else:
                    async with step("the engine's result", builder.result(), limits.enter, limits.clean_up) as result:
                        await self._judge(host, run.log, result)
                await self._conclude(host, run.log)
        except Exception as error:  # noqa: BLE001 - the engine's builder or result failed
            host.fail(error)

    async def _execute(self, host: PluginHost, builder: Builder) -> bool:
        """Prepare, start and accompany the sandbox until it ended or a cause came; whether it was started."""
        started = False
        limits = self._limiter.config
        try:
            with self._limiter.watchdog.expects(f"{self.key}: its execution") as self._execution_ends, self._execution:
                async with trio.open_nursery() as background:
                    try:
                        background.start_soon(partial(host.each, "background", lambda hooks: hooks.background()))
                        await host.each("prepare", lambda hooks: hooks.prepare(builder), limit=limits.prepare)
                        if builder.volumes and not self._workshop.engine.mounts:
                            raise TaskFault("the engine of this worker can mount nothing, and the task needs a mount")
                        # A cause may have come while a hook kept itself from being cancelled: then nothing is started.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        sandbox_scope = self._limiter.scope(
                            "the engine's sandbox", builder.sandbox(), limits.prepare, self._end_limit
                        )
                        async with sandbox_scope as sandbox:
                            started = True
                            await self._accompany(host, sandbox)
                    finally:
                        self._expect_end()
                    background.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - a hook's or the sandbox's; classify says whose fault it is
            host.fail(error)
        self._end_execution()
        return started

    async def _accompany(self, host: PluginHost, sandbox: Sandbox) -> None:
        async with trio.open_nursery() as beside:
            try:
                beside.start_soon(partial(host.each, "alongside", lambda hooks: hooks.alongside(sandbox)))
                await sandbox.wait()
                self._executed = True
            finally:
                self._expect_end()
            beside.cancel_scope.cancel()

    def _end_execution(self) -> None:
        self._executed = self._dead = True
        self._limit_saving()

    # What happens beside it

    async def _keep_up(self) -> None:
        """Until the report."""
        with self._upkeep:
            times = self._claim_times()
            # Most runs end before there is anything to do, and need no more than this.
            await self._clock.sleep_until(min(times.reclaim_at, self._task.deadline))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_claim, times)
                nursery.start_soon(self._watch_deadline)

    async def _keep_claim(self, times: ClaimTimes) -> None:
        """Reclaim in time, until the queue says that the run is no longer ours or the claim cannot be kept."""
        while True:
            await self._clock.sleep_until(times.reclaim_at)
            with trio.move_on_after(self._clock.seconds_until(times.end_at)) as in_time:
                if not await self._reclaim():
                    return
            if in_time.cancelled_caught:
                message = f"the claim could not be renewed in time, it ends at {self._taken_until:%H:%M:%S} UTC"
                self.stop(Cause(CauseKind.CLAIM_LOST, message))
                return
            times = self._claim_times()

    def _claim_times(self) -> ClaimTimes:
        return claim_times(self._clock.now(), self._taken_until, self._workshop.services.kill_grace)

    async def _reclaim(self) -> bool:
        """Whether the run is still ours; insists until it knows."""
        while True:
            try:
                claim = await self._queue.reclaim(self.key)
            except Conflict as conflict:
                message = f"the queue ended this run: {conflict.message}"
                self.stop(Cause(CauseKind.CLAIM_LOST, message, told_by_queue=True))
                return False
            except QueueError as error:
                log.warning("%s: %s; it is tried again", self.key, error)
                await trio.sleep(RECLAIM_PAUSE)
            else:
                self._credentials = Credentials.from_wire(claim.credentials)
                self._taken_until = claim.taken_until
                return True

    async def _watch_deadline(self) -> None:
        await self._clock.sleep_until(self._task.deadline)
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
        if any(isinstance(leaf, FatalWorkerFault) for leaf in leaves(error)):
            self._on_fatal()
        return verdict

    async def _report(self, resolution: Resolution) -> Resolution:
        """Settle the run: tell the queue, if it wants to know, for as long as the claim lasts.

        If it cannot be told, the claim expires there.
        """
        if resolution.state is State.ABANDONED:
            log.info("%s: not reported: %s", self.key, resolution.message)
        else:
            await self._tell_queue(resolution)
        self.resolution = resolution
        self._upkeep.cancel()
        return resolution

    async def _tell_queue(self, resolution: Resolution) -> None:
        # Reclaims go on meanwhile, so that there may be more time than at the last attempt.
        while not self._resolved_by_queue and (seconds := self._clock.seconds_until(self._taken_until)):
            with trio.move_on_after(seconds) as self._reporting:
                try:
                    await self._report_once(resolution)
                except Unavailable as error:
                    log.warning("%s: %s; it is tried again", self.key, error)
                except QueueError as error:
                    log.warning("%s: not reported as %s: %s", self.key, resolution, error)
                    return
                else:
                    log.info("%s: %s %s", self.key, resolution, resolution.message)
                    return
        # The queue may have resolved it by this very report, of which the answer was still on its way.
        reason = "the queue has resolved the run" if self._resolved_by_queue else "the claim lasted no longer"
        log.warning("%s: its report as %s was not confirmed: %s", self.key, resolution, reason)

    async def _report_once(self, resolution: Resolution) -> None:
        match resolution.state:
            case State.COMPLETED:
                await self._queue.report_completed(self.key)
            case State.FAILED:
                await self._queue.report_failed(self.key)
            case State.EXCEPTION:
                assert resolution.reason is not None
                await self._queue.report_exception(self.key, resolution.reason)
