"""`tc-worker cancel`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import config_option, open_session, read_config, run_async, task_id_argument


@click.command()
@task_id_argument
@config_option
def cancel(task_id: str, config_path: Path | None) -> None:
    """Cancel a task. One that is resolved stays as it is. Prints the state."""
    config = read_config(config_path)

    async def end() -> int:
        from worker.cli.tasks import described

        async with open_session(config) as session:
            found = await session.queue.cancel_task(task_id)
        click.echo(f"{task_id}: {described(found)}")
        return 0

    run_async(end)
