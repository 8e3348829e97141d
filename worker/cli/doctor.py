"""`tc-worker doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import FAILED, config_option, read_config, run_async, set_up_logging


@click.command()
@config_option
def doctor(config_path: Path | None) -> None:
    """Say what this machine can do, and how to mend what it cannot. Exit 1 where a worker could not work."""
    import logging

    config = read_config(config_path)
    # What fails is told as a finding.
    set_up_logging(logging.CRITICAL)

    async def look() -> int:
        from worker.doctor import Finding, Health, examine
        from worker.ports import Ports

        healths = set()

        def tell(finding: Finding) -> None:
            click.echo(f"{finding.health:<5} {finding.subject:<18} {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':<24} → {finding.remedy}")
            healths.add(finding.health)

        tell(Finding("config", Health.OK, str(config.path or "no file: defaults and the environment")))
        await examine(config, Ports(), tell)
        return FAILED if Health.BAD in healths else 0

    run_async(look)
