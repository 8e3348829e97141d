"""The life of a task, as pure functions on records.

        unscheduled ──schedule──▶ pending ──claim──▶ running ──resolve──▶ completed, failed, exception
             │                      ▲                  │                          │
             └──cancel, deadline    └──────retry───────┴──────────rerun───────────┘

A task's state is the state of its last run; a task without runs is unscheduled. Only the last run can be pending or
running. Times are text in the one form of `times.to_wire`, which compares as time does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from worker.embedded.errors import RequestConflict, ResourceNotFound

Json: TypeAlias = dict[str, Any]

PRIORITIES = ("lowest", "very-low", "low", "medium", "high", "very-high", "highest")
RESOLVED = frozenset({"completed", "failed", "exception"})
# What a worker's report makes the queue try again as, while retries remain.
RETRIED = {"worker-shutdown": "retry", "intermittent-task": "task-retry", "claim-expired": "retry"}
MAX_RUNS = 1000


@dataclass(frozen=True)
class Run:
    """One attempt at a task."""

    reason_created: str
    scheduled: str
    state: str = "pending"
    reason_resolved: str | None = None
    worker_group: str | None = None
    worker_id: str | None = None
    taken_until: str | None = None
    started: str | None = None
    resolved: str | None = None


@dataclass(frozen=True)
class Task:
    """A task's definition, which never changes, and what became of it."""

    task_id: str
    definition: Json
    priority: str
    retries_left: int
    runs: tuple[Run, ...] = ()

    @property
    def state(self) -> str:
        """`unscheduled`, or the state of the last run."""
        return self.runs[-1].state if self.runs else "unscheduled"

    @property
    def deadline(self) -> str:
        """After this the task is resolved, whatever it does."""
        return str(self.definition["deadline"])

    @property
    def due(self) -> str | None:
        """When the queue itself must act on the task, if nobody does before."""
        if self.state in RESOLVED:
            return None
        taken_until = self.runs[-1].taken_until if self.runs else None
        return min(self.deadline, taken_until or self.deadline)

    def run(self, run_id: int) -> Run:
        """Run number `run_id`. Raises ResourceNotFound."""
        if not 0 <= run_id < len(self.runs):
            raise ResourceNotFound(f"Run {run_id} of task {self.task_id} does not exist")
        return self.runs[run_id]


def schedule(task: Task, now: str) -> Task:
    """Make an unscheduled task pending; a task that is scheduled, or was, is left as it is."""
    _refuse_after_deadline(task, now, "scheduled")
    return task if task.runs else _append(task, "scheduled", now)


def rerun(task: Task, now: str) -> Task:
    """A new pending run with fresh retries, unless the task is pending or running."""
    _refuse_after_deadline(task, now, "rerun")
    if task.state in {"pending", "running"}:
        return task
    retries = min(task.definition["retries"], MAX_RUNS - len(task.runs) - 1)
    if retries < 0:
        raise RequestConflict(f"Task {task.task_id} has had its {MAX_RUNS} runs")
    return _append(replace(task, retries_left=retries), "rerun" if task.runs else "scheduled", now)


def cancel(task: Task, now: str) -> Task:
    """Resolve an unresolved task as `canceled`; a resolved one is left as it is."""
    return _end_by_queue(task, "canceled", now)


def meet_deadline(task: Task, now: str) -> Task:
    """Resolve an unresolved task as `deadline-exceeded`."""
    return _end_by_queue(task, "deadline-exceeded", now)


def expire_claim(task: Task, now: str) -> Task:
    """Resolve the running run as `claim-expired`, and try again while retries remain."""
    return _resolve_last(task, "exception", "claim-expired", now)


def claim(task: Task, worker_group: str, worker_id: str, now: str, until: str) -> Task:
    """Give the pending run to a worker, until `until`."""
    if task.state != "pending":
        raise RequestConflict(f"Task {task.task_id} is {task.state}, not pending")
    _refuse_after_deadline(task, now, "claimed")
    claimed = replace(
        task.runs[-1],
        state="running",
        worker_group=worker_group,
        worker_id=worker_id,
        taken_until=until,
        started=now,
    )
    return replace(task, runs=(*task.runs[:-1], claimed))


def reclaim(task: Task, run_id: int, now: str, until: str) -> Task:
    """Let the worker that has run `run_id` keep it until `until`."""
    run = task.run(run_id)
    if run.state != "running":
        raise RequestConflict(f"Run {run_id} of task {task.task_id} is {_ended(run)}, not running")
    _refuse_after_deadline(task, now, "reclaimed")
    return replace(task, runs=(*task.runs[:-1], replace(run, taken_until=until)))


def report(task: Task, run_id: int, state: str, reason: str, now: str) -> Task:
    """Resolve run `run_id` as its worker says; to say the same again changes nothing.

    A reason in `RETRIED` makes a further run while retries remain.
    """
    run = task.run(run_id)
    if (run.state, run.reason_resolved) == (state, reason):
        return task
    if run.state != "running":
        raise RequestConflict(
            f"Run {run_id} of task {task.task_id} is {_ended(run)}: it cannot be resolved as {reason}"
        )
    return _resolve_last(task, state, reason, now)


def prioritise(task: Task, priority: str) -> Task:
    """Change the priority of an unresolved task."""
    if task.state in RESOLVED:
        raise RequestConflict(f"Task {task.task_id} is resolved: its priority cannot change")
    return replace(task, priority=priority)


def status(task: Task) -> Json:
    """The task's status, as the schema `task-status` has it."""
    definition = task.definition
    copied = (
        "provisionerId",
        "workerType",
        "taskQueueId",
        "schedulerId",
        "projectId",
        "taskGroupId",
        "deadline",
        "expires",
    )
    return {
        "taskId": task.task_id,
        **{name: definition[name] for name in copied},
        "retriesLeft": task.retries_left,
        "state": task.state,
        "priority": task.priority,
        "runs": [_run_status(run_id, run) for run_id, run in enumerate(task.runs)],
    }


def _run_status(run_id: int, run: Run) -> Json:
    document = {
        "runId": run_id,
        "state": run.state,
        "reasonCreated": run.reason_created,
        "reasonResolved": run.reason_resolved,
        "workerGroup": run.worker_group,
        "workerId": run.worker_id,
        "takenUntil": run.taken_until,
        "scheduled": run.scheduled,
        "started": run.started,
        "resolved": run.resolved,
    }
    return {name: value for name, value in document.items() if value is not None}


def _append(task: Task, reason_created: str, now: str) -> Task:
    return replace(task, runs=(*task.runs, Run(reason_created, now)))


def _end_by_queue(task: Task, reason: str, now: str) -> Task:
    if task.state in RESOLVED:
        return task
    # The schema wants a run to carry the resolution, also of a task that was never scheduled.
    return _resolve_last(task if task.runs else _append(task, "exception", now), "exception", reason, now)


def _resolve_last(task: Task, state: str, reason: str, now: str) -> Task:
    ended = replace(task.runs[-1], state=state, reason_resolved=reason, resolved=now)
    task = replace(task, runs=(*task.runs[:-1], ended))
    if reason in RETRIED and task.retries_left > 0 and now < task.deadline:
        return _append(replace(task, retries_left=task.retries_left - 1), RETRIED[reason], now)
    return task


def _refuse_after_deadline(task: Task, now: str, verb: str) -> None:
    if now >= task.deadline:
        raise RequestConflict(f"Task {task.task_id} cannot be {verb}: its deadline {task.deadline} has passed")


def _ended(run: Run) -> str:
    return f"{run.state} ({run.reason_resolved})" if run.reason_resolved else run.state
