"""`tc-worker logs`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import config_option, open_session, read_config, run_async, task_id_argument


@click.command()
@task_id_argument
@click.option("--follow", is_flag=True, help="Wait for the log to begin, and go on until it ends.")
@config_option
def logs(task_id: str, follow: bool, config_path: Path | None) -> None:
    """Print the log of a task's last run, or what there is of it while it runs."""
    config = read_config(config_path)

    async def show() -> int:
        from worker.cli.following import copy_log

        async with open_session(config) as session:
            await copy_log(session, task_id, follow=follow)
        return 0

    run_async(show)
