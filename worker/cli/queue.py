"""`tc-worker queue`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.common import config_option, run_async, set_up_logging


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything here, else nothing.",
)
@config_option
def queue(host: str, port: int, data: Path | None, config_path: Path | None) -> None:  # noqa: ARG001  # all take --config
    """Run the embedded queue alone: for development, tests and one machine.

    Prints the three variables that lead clients to it when it is ready; on stderr, the URL of its page.
    """
    set_up_logging()

    async def serve() -> int:
        from worker.cli.queueing import exports, open_queue
        from worker.cli.running import wait_for_signal
        from worker.ports import Ports

        async with open_queue(Ports(), host, port, data) as embedded:
            for line in exports(embedded):
                click.echo(line)
            click.echo(f"The queue's page: {embedded.page_url()}", err=True)
            await wait_for_signal()
        return 0

    run_async(serve)
