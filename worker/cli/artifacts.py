"""`tc-worker artifacts`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import FAILED, config_option, open_session, read_config, run_async, task_id_argument


@click.command()
@task_id_argument
@click.option(
    "--download", "directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Bring them here."
)
@config_option
def artifacts(task_id: str, directory: Path | None, config_path: Path | None) -> None:
    """List the artifacts of a task's last run: size in bytes where known, storage, type and name."""
    config = read_config(config_path)

    async def show() -> int:
        from worker.cli.fetching import download_all, tell
        from worker.cli.tasks import latest_run

        async with open_session(config) as session:
            key = latest_run(await session.queue.status(task_id))
            if directory is not None:
                return FAILED if await download_all(session, key, directory, tell) else 0
            for found in await session.queue.list_artifacts(key):
                size = "-" if found.content_length is None else str(found.content_length)
                click.echo(f"{size:>12} {found.storage_type:<9} {found.content_type:<24} {found.name}")
        return 0

    run_async(show)
