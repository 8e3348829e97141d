"""`tc-worker run`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from worker.cli.common import (
    BAD_INPUT,
    WORKER_FAULT,
    Failure,
    config_option,
    read_config,
    root_url_of,
    run_async,
    set_up_logging,
)


@click.command()
@config_option
def run(config_path: Path | None) -> None:
    """Claim tasks and run them until told to stop.

    The first SIGTERM or SIGINT stops the claiming, and running tasks end as `shutdown.onTerm` says. The second ends
    everything at once.
    """
    config = read_config(config_path)
    root_url_of(config)
    if config.credentials is None:
        raise Failure(
            "there are no credentials: set credentials in the config, or TASKCLUSTER_CLIENT_ID and"
            " TASKCLUSTER_ACCESS_TOKEN",
            BAD_INPUT,
        )
    set_up_logging(logging.INFO)
    from worker.claims import StopReason
    from worker.cli.running import supervise
    from worker.ports import Ports

    async def work() -> int:
        return WORKER_FAULT if await supervise(config, Ports()) is StopReason.FAULT else 0

    run_async(work)
