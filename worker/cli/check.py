"""`tc-worker check`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from worker.cli.common import BAD_INPUT, Failure, config_option, read_config


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@config_option
def check(file: Path, config_path: Path | None) -> None:
    """Validate a config or a task file; every problem is told with its path. Exit 0 or 2.

    A file with a `payload`, or mostly with names of a task definition, is a task file; its payload is looked at as the
    engine and the plugins that are configured would.
    """
    from worker.documents import BadDocument, read_document

    try:
        if _is_task(set(read_document(file))):
            _check_task(file, config_path)
            kind = "task file"
        else:
            from worker.config import load_config

            load_config(file, os.environ)
            kind = "config"
    except BadDocument as error:
        raise Failure(str(error), BAD_INPUT) from None
    click.echo(f"{file}: a valid {kind}")


def _is_task(names: set[str]) -> bool:
    from worker.config import ConfigFile
    from worker.queue.models import CreateTaskRequest
    from worker.schema import names_by_path

    task, config = (len(names & names_by_path(model)[""]) for model in (CreateTaskRequest, ConfigFile))
    return "payload" in names or task > config


def _check_task(file: Path, config_path: Path | None) -> None:
    from worker.errors import Problem
    from worker.ports import Ports
    from worker.taskfile import TaskFileError, load_task
    from worker.workshop import configured_payload

    config = read_config(config_path)
    try:
        schema = configured_payload(config)
    except ValueError as error:
        raise Failure(str(error), BAD_INPUT) from None
    task = load_task(file, config.worker.task_queue_id, Ports().now())
    if found := schema.parse(task.payload).problems:
        problems = [Problem(f"payload.{problem.path}".rstrip("."), problem.message) for problem in found]
        raise TaskFileError(str(file), problems)
