"""`python -m bench [NAME]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import click

from bench import abort, artifacts, claim, growth, latency, livelog, profile, scale, soak, workers
from bench.compare import NotComparable, compare
from bench.parameters import DEFAULTS, SMOKE, Parameters

BENCHMARKS: Mapping[str, Callable[[Parameters, Path], None]] = MappingProxyType(
    {
        "abort": abort.run,
        "artifacts": artifacts.run,
        "claim": claim.run,
        "growth": growth.run,
        "latency": latency.run,
        "livelog": livelog.run,
        "profile": profile.run,
        "scale": scale.run,
        "soak": soak.run,
        "workers": workers.run,
    }
)
OUT = Path(__file__).parent / "out"

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
positive = click.IntRange(min=1)


@click.command()
@click.argument("name", type=click.Choice(sorted(BENCHMARKS)), required=False)
@click.option("--smoke", is_flag=True, help="Counts so small that only the working is shown.")
@click.option("--tasks", type=positive, help="Tasks in a run.")
@click.option("--rounds", type=positive, help="Rounds, of which the medians are taken.")
@click.option("--capacity", type=positive, help="Tasks at once.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, help="Folder for the results.")
@click.option("--compare", "records", nargs=2, type=FILE, help="Two records, such as of NAME: tell their differences.")
def main(
    name: str | None,
    smoke: bool,
    tasks: int | None,
    rounds: int | None,
    capacity: int | None,
    out: Path,
    records: tuple[Path, Path] | None,
) -> None:
    """Run the benchmark NAME, or all of them; a table goes to stdout, it and the figures as JSON to the folder."""
    if records is not None:
        try:
            print(compare(*records))
        except NotComparable as error:
            raise click.ClickException(str(error)) from None
        return
    out.mkdir(parents=True, exist_ok=True)
    for each in [name] if name else sorted(BENCHMARKS):
        base = SMOKE if smoke else DEFAULTS[each]
        parameters = replace(
            base, tasks=tasks or base.tasks, rounds=rounds or base.rounds, capacity=capacity or base.capacity
        )
        BENCHMARKS[each](parameters, out)


if __name__ == "__main__":
    main(prog_name="python -m bench")
