"""`python -m bench [NAME]`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import click
import trio

from bench import abort, artifacts, claim, growth, latency, livelog, profile, scale, soak, workers
from bench.compare import NotComparable, compare
from bench.parameters import DEFAULTS, SMOKES, Parameters
from bench.processes import BenchmarkFailed
from worker.http import HttpError
from worker.outcome import leaves
from worker.queue.errors import QueueError

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
@click.option("--delay", type=click.FloatRange(min=0), help="Milliseconds each way to the queue, for claim.")
@click.option("--root-url", help="A deployment for claim, with the environment's credentials; else queues of its own.")
@click.option("--task-queue-id", "pool", help="The deployment's task queue, where nobody else claims.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, help="Folder for the results.")
@click.option("--compare", "records", nargs=2, type=FILE, help="Two records, such as of NAME: tell their differences.")
def main(
    name: str | None,
    smoke: bool,
    tasks: int | None,
    rounds: int | None,
    capacity: int | None,
    delay: float | None,
    root_url: str | None,
    pool: str | None,
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
    benchmarks = dict(BENCHMARKS)
    if (delay, root_url, pool) != (None, None, None):
        benchmarks["claim"] = partial(claim.run, place=_place(name, delay, root_url, pool))
    out.mkdir(parents=True, exist_ok=True)
    # What was started ends with the benchmark, also where that is told to end.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    chosen: dict[str, Callable[[], None]] = {}
    for each in [name] if name else sorted(benchmarks):
        base = (SMOKES if smoke else DEFAULTS)[each]
        parameters = replace(
            base, tasks=tasks or base.tasks, rounds=rounds or base.rounds, capacity=capacity or base.capacity
        )
        chosen[each] = partial(benchmarks[each], parameters, out)
    if failed := run_each(chosen):
        raise click.ClickException("\n".join(failed))


def run_each(benchmarks: Mapping[str, Callable[[], None]]) -> list[str]:
    """Run all of them: one that fails, such as for want of root, keeps no other from running. Which failed, and why."""
    failed = []
    for name, benchmark in benchmarks.items():
        try:
            benchmark()
        except Exception as error:  # noqa: BLE001 - what is not foreseen is raised again
            failed.append(f"{name}: {_sentence(error)}")
    return failed


def _sentence(error: Exception) -> str:
    """What is foreseen to go wrong, in words. Raises what is not."""
    for leaf in leaves(error):
        match leaf:
            case BenchmarkFailed() | HttpError() | QueueError():
                return str(leaf)
            case trio.TooSlowError():
                return "something took too long"
            case PermissionError():
                return f"{leaf}: what the kernel tells of the worker takes root (CAP_SYS_PTRACE)"
    raise error


def _place(name: str | None, delay: float | None, root_url: str | None, pool: str | None) -> claim.Place:
    if name != "claim":
        raise click.UsageError("--delay, --root-url and --task-queue-id are for the benchmark claim alone")
    if (root_url is None) != (pool is None):
        raise click.UsageError("--root-url and --task-queue-id go together")
    if root_url is None or pool is None:
        return claim.Place(delay=(delay or 0.0) / 1000)
    if delay is not None:
        raise click.UsageError("--delay is for queues of the benchmark's own; a deployment is as far away as it is")
    try:
        return claim.place_at(root_url, pool)
    except BenchmarkFailed as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="python -m bench")
