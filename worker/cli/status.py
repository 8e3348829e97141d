"""`tc-worker status`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import config_option, open_session, read_config, run_async, task_id_argument


@click.command()
@task_id_argument
@config_option
def status(task_id: str, config_path: Path | None) -> None:
    """Print the state of a task and of each of its runs."""
    config = read_config(config_path)

    async def show() -> int:
        async with open_session(config) as session:
            found = await session.queue.status(task_id)
        click.echo(f"{found.task_id}: {found.state} in {found.task_queue_id}, deadline {found.deadline:%FT%TZ}")
        for run in found.runs:
            words = [f"run {run.run_id}: {run.state}"]
            if run.reason_resolved and run.reason_resolved != run.state:
                words.append(f"({run.reason_resolved})")
            if run.worker_id:
                words.append(f"on {run.worker_group}/{run.worker_id}")
            if run.started:
                words.append(f"started {run.started:%FT%TZ}")
            if run.resolved:
                words.append(f"resolved {run.resolved:%FT%TZ}")
            click.echo("  " + " ".join(words))
        return 0

    run_async(show)
