"""The root of a worker: claims tasks up to the free capacity, runs each in a child of one nursery, and drains.

services        HTTP clients, webhook server, engine and plugins; beside the tasks: the poll for cancelled ones
└─ tasks        one child per claimed run; its deadline is the last resort of a drain and reports nothing
   └─ claiming  asks, waits for places, backs off, until there is a reason to stop
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import trio

from engines.base import Engine
from plugins.base import Plugin
from worker.cancelpoll import CancelPoll
from worker.claims import Claim, ClaimState, Finish, StopReason, Wait
from worker.config import Config, WorkerConfig
from worker.disk import Disk, Lacking
from worker.http import open_http
from worker.model import Cause, CauseKind, RunKey
from worker.ports import Ports
from worker.process import KILL_LIMIT
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.errors import ApiError, QueueError
from worker.queue.models import TaskClaim
from worker.queue.services import Auth, PurgeCache, Queue
from worker.queue.upload import DeploymentStorage
from worker.recovery import EndProcesses, end_leftovers, open_work_dir
from worker.services import Identity, Services
from worker.taskrun import TaskRun
from worker.trash import open_trash
from worker.watchdog import Expectation, OpenWatchdog, open_watchdog
from worker.webhooks import Webhooks, WebhooksConfig, open_webhooks
from worker.webhooks.tunnelconfig import default_client_id
from worker.workshop import Workshop, open_workshop

log = logging.getLogger("worker")

MakeRun = Callable[[Workshop, TaskClaim, Callable[[], None]], TaskRun]
OpenWebhooks = Callable[[Ports, WebhooksConfig, Auth, str], AbstractAsyncContextManager[Webhooks]]

# Limits in seconds. The queue's long poll is 20 s (facts page, 1); one that takes longer brings nothing any more.
CLAIM_LIMIT = 60.0  # for a claim with its answer
STOPPING_CLAIM_LIMIT = 25.0  # from being told to stop
GIVE_BACK_LIMIT = 10.0
REPORT_LIMIT = 10.0  # beyond `shutdown.grace`
ABORT_LIMIT = 5.0  # after the second signal, for reports and what else fits
DISK_LIMIT = 30.0  # for a look at the disk
DISK_PAUSE = 30.0  # until the disk is looked at again


class Supervisor:
    """Runs until there is a reason to stop; `stop` and `abort` may be called at any time, from the same thread."""

    def __init__(
        self,
        config: WorkerConfig,
        workshop: Workshop,
        queue: Queue,
        ending: Expectation,
        on_stop: Callable[[], None] = lambda: None,
        make_run: MakeRun = TaskRun,
    ) -> None:
        """`ending` is the end of the whole worker, which gets its limits here."""
        self._config = config
        self._ending = ending
        self._on_stop = on_stop
        self._make_run = make_run
        self._workshop = workshop
        self._watchdog = workshop.limiter.watchdog
        self._queue = queue
        self._ports = workshop.services.ports
        self._runs: dict[RunKey, TaskRun] = {}
        self._state = ClaimState(
            capacity=config.capacity,
            number_of_tasks=config.number_of_tasks,
            idle_timeout=config.idle_timeout.total_seconds(),
            idle_since=trio.current_time(),
        )
        self._changed = trio.Event()  # replaced whenever it is set
        self._asking = trio.CancelScope()
        self._looking = trio.CancelScope()
        self._tasks = trio.CancelScope()
        self._lacking = ""  # of what the disk has too little, as was told
        self._claim_is_out = False
        self._refusal = ""  # the last one that was told

    async def run(self) -> StopReason:
        """Claim and run tasks until told to stop, or until the config or a fault says so; why it stopped.

        When it returns nothing runs. Cancelled, it kills what runs and reports nothing.
        """
        try:
            async with trio.open_nursery() as monitors:
                poll = CancelPoll(self._queue, self._ports, self._config.cancel_poll_interval, self._runs)
                monitors.start_soon(poll.run)
                monitors.start_soon(self._watchdog.beat)
                await self._claim_and_drain()
                monitors.cancel_scope.cancel()
        finally:
            self._expect_end(0)
        return self._state.stop or StopReason.STOPPED

    async def _claim_and_drain(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as tasks:
                reason = await self._claim_until_finished(tasks)
                log.info("no more claims: %s; %d running", reason.value, len(self._runs))

    def stop(self) -> None:
        """Claim no more; running tasks end as `shutdown.onTerm` says."""
        self._finish(StopReason.STOPPED)
        if self._config.shutdown.on_term == "abort":
            self._end_runs(self._config.shutdown.grace.total_seconds(), REPORT_LIMIT)

    def abort(self) -> None:
        """End everything at once: no grace for anything, a pending claim is cut off, and reports get a few seconds."""
        self._finish(StopReason.STOPPED)
        self._workshop.services.hurry.set()
        self._asking.cancel()
        self._end_runs(0, ABORT_LIMIT)

    def _distrust(self) -> None:
        self._finish(StopReason.FAULT)

    def _finish(self, reason: StopReason) -> None:
        self._state.stopping(reason)
        self._on_stop()
        self._looking.cancel()
        if self._claim_is_out and self._asking.deadline > trio.current_time() + STOPPING_CLAIM_LIMIT:
            self._asking.deadline = trio.current_time() + STOPPING_CLAIM_LIMIT
            log.info(
                "waiting for the answer to a claim, %.0f s at most: what it brings is given back", STOPPING_CLAIM_LIMIT
            )
        self._wake()

    def _end_runs(self, grace: float, report: float) -> None:
        """End all runs: each has `grace` seconds to save what it can when it is dead, and then `report` seconds."""
        for run in self._runs.values():
            run.stop(Cause(CauseKind.SHUTDOWN, "the worker was told to stop"))
            run.hurry(grace)
        # The last resort. A run that is ended while it executes, or later, and keeps to its limits is reported by then.
        seconds = self._config.kill_grace.total_seconds() + KILL_LIMIT + grace + report
        deadline = trio.current_time() + seconds
        if self._claim_is_out and not self._asking.cancel_called:
            deadline = max(deadline, self._asking.deadline + GIVE_BACK_LIMIT)
        self._tasks.deadline = min(self._tasks.deadline, deadline)
        self._expect_end(max(0.0, self._tasks.deadline - trio.current_time()))

    def _expect_end(self, seconds: float) -> None:
        """All runs end within so many seconds; what they and the services have to clean up has its time beyond that."""
        hurries = self._workshop.services.hurry.is_set()
        cleanup = ABORT_LIMIT if hurries else self._config.limits.clean_up.total_seconds()
        self._watchdog.limit(self._ending, seconds + cleanup)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _claim_until_finished(self, tasks: trio.Nursery) -> StopReason:
        """Starts a child of `tasks` for each claimed run; returns when no more are to be claimed."""
        while True:
            match self._state.decide(trio.current_time()):
                case Finish(reason):
                    self._state.stopping(reason)
                    return reason
                case Wait(until):
                    with trio.move_on_at(until):
                        await self._changed.wait()
                case Claim(number):
                    if await self._disk_suffices():
                        await self._claim(number, tasks)

    async def _claim(self, number: int, tasks: trio.Nursery) -> None:
        if self._state.stop is not None:
            return
        identity = self._workshop.services.identity
        with self._asking_now():
            try:
                answer = await self._queue.claim_work(
                    identity.task_queue_id, identity.worker_group, identity.worker_id, number
                )
            except QueueError as error:
                self._tell_refusal(error)
                self._state.failed(trio.current_time(), self._ports.random.random())
                return
            # What comes when the worker stops goes back, and what a faulty queue gave beyond the request.
            wanted = 0 if self._state.stop is not None else number
            for claim in answer.tasks[wanted:]:
                tasks.start_soon(self._give_back, claim)
            runs = [self._make_run(self._workshop, claim, self._distrust) for claim in answer.tasks[:wanted]]
            new = {run.key: run for run in runs if run.key not in self._runs}
            self._state.answered(len(new))
            self._runs |= new
            self._refusal = ""
            for run in new.values():
                tasks.start_soon(self._run, run, name=str(run.key))
        if self._asking.cancelled_caught and self._state.stop is None:
            log.warning("a claim was not answered within %.0f s", CLAIM_LIMIT)
            self._state.failed(trio.current_time(), self._ports.random.random())

    @contextmanager
    def _asking_now(self) -> Generator[None, None, None]:
        """Around a claim that is under way: `_asking` can limit it."""
        self._asking = trio.CancelScope(deadline=trio.current_time() + CLAIM_LIMIT)
        self._claim_is_out = True
        try:
            with self._watchdog.expects("a claim", CLAIM_LIMIT), self._asking:
                yield
        finally:
            self._claim_is_out = False

    def _tell_refusal(self, error: QueueError) -> None:
        # Silence and nonsense were told by the client; a refusal is told here, once until it is another one.
        if isinstance(error, ApiError) and str(error) != self._refusal:
            self._refusal = str(error)
            log.warning("%s; it is tried again, for as long as this worker runs", error)

    async def _run(self, run: TaskRun) -> None:
        log.info("%s: claimed", run.key)
        try:
            await run.run()
        except* Exception as errors:
            # Only when it was cancelled and its cleanup failed on top: nothing else gets out of a run.
            log.error("%s: its cleanup failed", run.key, exc_info=errors)
        finally:
            if run.resolution is None:
                log.error("%s: gave up waiting for it to end; the queue will see its claim expire", run.key)
            del self._runs[run.key]
            self._state.ended(trio.current_time())
            self._wake()

    async def _give_back(self, claim: TaskClaim) -> None:
        """Hand a run that came too late to another worker."""
        key = RunKey(claim.status.task_id, claim.run_id)
        credentials = Credentials.from_wire(claim.credentials)
        with (
            self._watchdog.expects(f"{key}: giving it back", GIVE_BACK_LIMIT),
            trio.move_on_after(GIVE_BACK_LIMIT, shield=True) as in_time,
        ):
            try:
                await Queue(self._workshop.deployment, lambda: credentials).report_exception(key, "worker-shutdown")
                log.info("%s: given back, since this worker stops", key)
            except QueueError as error:
                log.warning("%s: could not be given back: %s", key, error)
        if in_time.cancelled_caught:
            log.warning("%s: could not be given back within %.0f s", key, GIVE_BACK_LIMIT)

    async def _disk_suffices(self) -> bool:
        """Whether there is room for another run, made by removing what nobody uses where it must be."""
        lacking: Lacking | None = Lacking("time", "it takes long to make room in workDir")
        with self._watchdog.expects("a look at the disk", DISK_LIMIT), trio.move_on_after(DISK_LIMIT) as self._looking:
            if self._state.stop is not None:
                return False
            try:
                lacking = await self._workshop.services.disk.make_room()
            except OSError as error:  # Its tasks may yet come to their ends.
                lacking = Lacking("sight", f"workDir cannot be looked at: {error.strerror}")
        if lacking and self._state.stop is None:
            self._state.postponed(trio.current_time() + DISK_PAUSE)
            if lacking.of != self._lacking:
                log.warning("claims nothing: %s", lacking)
        self._lacking = lacking.of if lacking else ""
        return not lacking


async def run_worker(
    config: Config,
    ports: Ports,
    *,
    root_url: str,
    credentials: Credentials,
    extra_plugins: Mapping[str, type[Plugin[Any, Any]]] | None = None,
    extra_engines: Mapping[str, type[Engine[Any, Any]]] | None = None,
    on_stop: Callable[[], None] = lambda: None,
    open_webhooks: OpenWebhooks = open_webhooks,
    open_watchdog: OpenWatchdog = open_watchdog,
    make_run: MakeRun = TaskRun,
    end_processes: EndProcesses = end_leftovers,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> StopReason:
    """A whole worker, from its services to the last report; why it stopped.

    Started with `nursery.start`, it gives the `Supervisor`, by which it can be stopped; `on_stop` is called when it is.
    A queue in the same process then answers its polls, so that nobody waits for them. The last parameters are what a
    simulation replaces. Raises OSError, ValueError or FatalWorkerFault where it cannot begin.
    """
    own = config.worker
    identity = Identity(root_url, own.task_queue_id, own.worker_group, own.worker_id)
    async with (
        open_work_dir(ports, own.work_dir, end_processes),
        open_watchdog(own.limits.stuck.total_seconds()) as watchdog,
        open_trash(ports, own.work_dir, hurry := trio.Event()) as trash,
    ):
        disk = Disk(ports, own.work_dir, trash, own.minimum_disk_space, own.minimum_inodes)
        with watchdog.expects("the end of the worker") as ending:
            async with open_http(ports) as http:
                deployment = Deployment(root_url, http, ports)
                auth = Auth(deployment, lambda: credentials)
                client_id = default_client_id(own.worker_group, own.worker_id)
                async with open_webhooks(ports, config.webhooks, auth, client_id) as webhooks:
                    services = Services(
                        identity,
                        ports,
                        http,
                        webhooks,
                        own.work_dir,
                        trash,
                        disk,
                        own.kill_grace,
                        DeploymentStorage(http, ports, own.artifact_storage),
                        own.capacity,
                        PurgeCache(deployment, lambda: credentials),
                        hurry,
                    )
                    async with open_workshop(
                        config, services, deployment, extra_plugins or {}, extra_engines, watchdog
                    ) as workshop:
                        queue = Queue(deployment, lambda: credentials)
                        supervisor = Supervisor(own, workshop, queue, ending, on_stop, make_run)
                        log.info("claims from %s at %s, %d at once", own.task_queue_id, root_url, own.capacity)
                        task_status.started(supervisor)
                        return await supervisor.run()


async def stop_on_signals(supervisor: Supervisor) -> None:
    """The first SIGTERM or SIGINT stops the worker, the second aborts it. Runs until cancelled."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(aiter(signals))
        log.info("told to stop: no more claims; running tasks end as shutdown.onTerm says; again to end at once")
        supervisor.stop()
        async for _ in signals:
            log.warning("told to stop again: ending at once")
            supervisor.abort()
