"""`tc-worker submit`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import BAD_INPUT, Failure, config_option, open_session, read_config, root_url_of, run_async


@click.command()
@click.argument("task_file", metavar="TASK.yml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--wait", is_flag=True, help="Wait for the end; exit 0 completed, 1 failed, 3 exception.")
@config_option
def submit(task_file: Path, wait: bool, config_path: Path | None) -> None:
    """Create the task that TASK.yml defines, and print its id.

    All but the payload may be left out of the file: task queue, times and metadata are filled in.
    """
    from worker.ports import Ports
    from worker.taskfile import TaskFileError, load_task

    config = read_config(config_path)
    root_url_of(config)
    try:
        task = load_task(task_file, config.worker.task_queue_id, Ports().now())
    except TaskFileError as error:
        raise Failure(str(error), BAD_INPUT) from None

    async def create() -> int:
        from worker.cli.fetching import tell
        from worker.cli.tasks import EXIT_CODES, create_task, wait_until_resolved

        async with open_session(config) as session:
            task_id = await create_task(session, task)
            click.echo(task_id)
            if not wait:
                return 0
            resolved = await wait_until_resolved(session.queue, task_id, tell)
            return EXIT_CODES[resolved.state]

    run_async(create)
