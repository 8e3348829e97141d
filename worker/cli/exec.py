"""`tc-worker exec`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from worker.cli.common import (
    BAD_INPUT,
    INTERRUPTED,
    WORKER_FAULT,
    Failure,
    config_option,
    open_session,
    read_config,
    run_async,
    set_up_logging,
)

if TYPE_CHECKING:
    from worker.config import Config
    from worker.ports import Ports
    from worker.queue.models import CreateTaskRequest


@click.command("exec")
@click.argument("task_file", metavar="TASK.yml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--artifacts", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Bring them here.")
@config_option
def exec_(task_file: Path, artifacts: Path | None, config_path: Path | None) -> None:
    """Run one task file here and now, without a server; its log goes to stdout.

    It takes the same way as through a queue: one inside of this process. Exit codes: 0 completed, 1 failed,
    3 exception, 130 interrupted.
    """
    from worker.ports import Ports
    from worker.taskfile import TaskFileError, load_task

    config = read_config(config_path)
    ports = Ports()
    try:
        task = load_task(task_file, config.worker.task_queue_id, ports.now())
    except TaskFileError as error:
        raise Failure(str(error), BAD_INPUT) from None
    set_up_logging()
    # Tasks may leave what cannot be removed; that is no reason to fail.
    with TemporaryDirectory(prefix="tc-worker-", ignore_cleanup_errors=True) as folder:
        run_async(lambda: _execute(config, ports, task, Path(folder), artifacts))


async def _execute(
    config: Config, ports: Ports, task: CreateTaskRequest, work_dir: Path, artifacts: Path | None
) -> int:
    from worker.claims import StopReason
    from worker.cli.echo import Echo
    from worker.cli.fetching import download_all, tell
    from worker.cli.queueing import joined, open_queue
    from worker.cli.running import supervise
    from worker.cli.tasks import EXIT_CODES, create_task
    from worker.model import RunKey

    async with open_queue(ports, "127.0.0.1", 0, None) as queue:
        here = joined(
            config,
            queue,
            task_queue_id=task.task_queue_id or f"{task.provisioner_id}/{task.worker_type}",
            capacity=1,
            number_of_tasks=1,
            work_dir=work_dir,
        )
        async with open_session(here) as session:
            task_id = await create_task(session, task)
            reason = await supervise(here, ports, {"echo": Echo}, queue.answer_polls)
            # The first run is the one that there was: a retry would be the second.
            runs = (await session.queue.status(task_id)).runs
            code = EXIT_CODES.get(runs[0].state, WORKER_FAULT) if runs else WORKER_FAULT
            interrupted = reason is StopReason.STOPPED or (runs and runs[0].reason_resolved == "worker-shutdown")
            missing = await download_all(session, RunKey(task_id, 0), artifacts, tell) if artifacts else 0
            if interrupted:
                return INTERRUPTED
            return code or (WORKER_FAULT if missing else 0)
