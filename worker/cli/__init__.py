"""The commands. Each is a thin file, which imports what it needs only when it is called: `--help` is quick."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.artifacts import artifacts
from worker.cli.cancel import cancel
from worker.cli.check import check
from worker.cli.common import config_option
from worker.cli.doctor import doctor
from worker.cli.exec import exec_
from worker.cli.logs import logs
from worker.cli.queue import queue
from worker.cli.run import run
from worker.cli.schema import schema
from worker.cli.standalone import standalone
from worker.cli.status import status
from worker.cli.submit import submit


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.version_option(package_name="tc-worker", prog_name="tc-worker")
@click.pass_context
def commands(context: click.Context, config_path: Path | None) -> None:
    """A Taskcluster worker: claims tasks from a queue, runs them, streams their logs, reports how they ended.

    Without a command it is `run`. If in addition there is neither a config file nor TASKCLUSTER_ROOT_URL, it starts a
    queue on this machine too, and says how to submit a task.

    Exit codes: 0 done or completed, 1 failed, 2 bad usage, config or task file, 3 exception, 4 the queue refused or
    could not be reached, 5 the worker cannot work, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        standalone(config_path)


for command in (run, exec_, queue, submit, status, cancel, logs, artifacts, schema, check, doctor):
    commands.add_command(command)
