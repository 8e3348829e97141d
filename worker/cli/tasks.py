"""Tasks as commands see them: how they went, and waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from worker.cli.common import BAD_INPUT, COMPLETED, EXCEPTION, FAILED, NO_QUEUE, Failure, Session
from worker.model import RunKey
from worker.queue.errors import ApiError
from worker.queue.models import CreateTaskRequest, TaskStatus
from worker.queue.services import Queue

EXIT_CODES = {"completed": COMPLETED, "failed": FAILED, "exception": EXCEPTION}

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between looks at a task: the queue has no call that waits


async def create_task(session: Session, task: CreateTaskRequest) -> str:
    """Create the task and return its id. Raises Failure where the queue finds fault with the definition."""
    task_id = session.ports.slug()
    try:
        await session.queue.create_task(task_id, task)
    except ApiError as error:
        raise Failure(str(error), BAD_INPUT if error.status in {400, 413} else NO_QUEUE) from None
    return task_id


def latest_run(status: TaskStatus) -> RunKey:
    """The last run. Raises Failure where there was none."""
    if not status.runs:
        raise Failure(f"task {status.task_id} is {status.state} and has had no run", NO_QUEUE)
    return RunKey(status.task_id, status.runs[-1].run_id)


def described(status: TaskStatus) -> str:
    """The state of a task in a few words: `running, run 0 on local/w1`."""
    if not status.runs:
        return status.state
    run = status.runs[-1]
    words = f"{status.state}, run {run.run_id}"
    if run.worker_id:
        words += f" on {run.worker_group}/{run.worker_id}"
    return f"{words} ({run.reason_resolved})" if run.reason_resolved else words


async def wait_until_resolved(queue: Queue, task_id: str, tell: Callable[[str], None]) -> TaskStatus:
    """The status of the task once it is resolved; `tell` hears of each change until then."""
    told = ""
    pause = FIRST_PAUSE
    while True:
        status = await queue.status(task_id)
        if (words := described(status)) != told:
            tell(f"{task_id}: {words}")
            told, pause = words, FIRST_PAUSE
        if status.state in EXIT_CODES:
            return status
        await trio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
