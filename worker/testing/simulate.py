"""`python -m worker.testing.simulate --seed N --seeds M`: lives through seeds, and prints the first that breaks."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context

import click

from worker.testing.simulation import limits
from worker.testing.simulation.seed import Outcome, simulate
from worker.testing.simulation.variants import VARIANTS

HASH_SEED = "0"


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--seeds", default=1, show_default=True, help="How many seeds, one after the other.")
@click.option("--jobs", default=1, show_default=True, help="How many at once.")
@click.option("--seconds", default=limits.SEED, show_default=True, help="Of real time, for one seed.")
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), default="none", help="A worker broken on purpose.")
@click.option("--keep-going", is_flag=True, help="Live through the other seeds too when one has failed.")
@click.option("--all-lines", is_flag=True, help="Print the history of a seed that has not failed, too.")
def main(seed: int, seeds: int, jobs: int, seconds: float, variant: str, keep_going: bool, all_lines: bool) -> None:
    """Run the worker in a faulty world, by seeds. Exits with 1 when a promise was broken."""
    begun = time.monotonic()
    faults: Counter[str] = Counter()
    failed: list[Outcome] = []
    done = 0
    live = partial(simulate, variant=variant, all_lines=all_lines, seconds=seconds)
    with closing(_outcomes(range(seed, seed + seeds), jobs, live)) as outcomes:
        for outcome in outcomes:
            done += 1
            faults += outcome.faults
            if outcome.broken:
                failed.append(outcome)
                _tell_failure(outcome, variant)
                if not keep_going:
                    break
            elif all_lines:
                click.echo("\n".join(outcome.tail))
            if seeds == 1:
                click.echo(f"history {outcome.digest} of {outcome.events} events")
            elif done % 50 == 0:
                click.echo(f"{done} seeds, {len(failed)} failed", err=True)
    minutes = (time.monotonic() - begun) / 60
    click.echo(f"{done} seeds, {done / minutes:.0f} a minute, {sum(faults.values())} faults, {len(failed)} failed")
    for kind, count in sorted(faults.items()):
        click.echo(f"  {count:8} {kind}")
    if failed:
        click.echo("failed: " + ", ".join(f"{outcome.seed} ({outcome.broken[:100]})" for outcome in failed))
    sys.exit(bool(failed))


def _outcomes(seeds: Iterable[int], jobs: int, live: Callable[[int], Outcome]) -> Generator[Outcome, None, None]:
    """The outcome of each seed, in order."""
    if jobs == 1:
        yield from map(live, seeds)
        return
    executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield from executor.map(live, seeds, chunksize=4)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _tell_failure(outcome: Outcome, variant: str) -> None:
    click.echo("\n".join(outcome.tail))
    click.echo(f"seed {outcome.seed} broke a promise: {outcome.broken}")
    click.echo(f"history {outcome.digest} of {outcome.events} events; the last {len(outcome.tail)} are above")
    option = "" if variant == "none" else f" --variant {variant}"
    click.echo(f"to see it again: python -m worker.testing.simulate --seed {outcome.seed}{option}")


def _with_fixed_hashes() -> None:
    """Begin anew with the hash seed that the order of sets depends on."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        environ = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
        os.execve(sys.executable, [sys.executable, "-m", "worker.testing.simulate", *sys.argv[1:]], environ)  # noqa: S606


if __name__ == "__main__":
    _with_fixed_hashes()
    main()
