"""`tc-worker` without a command."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from worker.cli.common import WORKER_FAULT, read_config, run_async, set_up_logging


def standalone(config_path: Path | None) -> None:
    """As `run`; where neither a config file nor a root URL is to be found, with a queue of its own on loopback."""
    from worker.cli.run import run
    from worker.config import find_config

    if os.environ.get("TASKCLUSTER_ROOT_URL") or find_config(config_path, os.environ):
        click.get_current_context().invoke(run, config_path=config_path)
        return
    config = read_config(config_path)
    set_up_logging(logging.INFO)

    async def work() -> int:
        from worker.claims import StopReason
        from worker.cli.queueing import exports, joined, open_queue
        from worker.cli.running import supervise
        from worker.ports import Ports

        ports = Ports()
        async with open_queue(ports, "127.0.0.1", 0, None) as queue:
            click.echo("A queue and a worker run on this machine. Their page:\n")
            click.echo(f"  {queue.page_url()}\n")
            click.echo("They keep nothing when they end. To submit a task from another terminal:\n")
            for line in exports(queue):
                click.echo(f"  export {line}")
            click.echo("  tc-worker submit TASK.yml --wait\n")
            reason = await supervise(joined(config, queue), ports, on_stop=queue.answer_polls)
        return WORKER_FAULT if reason is StopReason.FAULT else 0

    run_async(work)
