"""`tc-worker schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from worker.cli.common import BAD_INPUT, Failure, config_option, read_config


@click.group()
def schema() -> None:
    """Print a JSON Schema."""


@schema.command()
@config_option
def config(config_path: Path | None) -> None:  # noqa: ARG001  # all take --config
    """Of config files, with all engines and plugins that are installed."""
    from worker.config_schema import config_json_schema

    try:
        click.echo(json.dumps(config_json_schema(), indent=2))
    except ImportError as error:
        raise Failure(str(error), BAD_INPUT) from None


@schema.command()
@config_option
def payload(config_path: Path | None) -> None:
    """Of task payloads, as the engine and the plugins that are configured take them."""
    from worker.workshop import configured_payload

    try:
        click.echo(json.dumps(configured_payload(read_config(config_path)).json_schema(), indent=2))
    except ValueError as error:
        raise Failure(str(error), BAD_INPUT) from None
