"""How soon a task begins when it is there to be claimed, and how soon its end is reported.

The queue's answers are canned, so that all of the time is the worker's or the network's. Times are the queue's, of when
it had sent a claim and when a report had come, and the task's own: it writes down when it was begun.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import account_of, add_tasks, seconds_of, wait_counted
from bench.parameters import Parameters
from bench.processes import delayed, open_canned, open_worker
from bench.report import Figure, Grid, Record, figure, load_average, quantile
from worker.ports import Ports

DELAYS = (0.0, 0.02, 0.1)  # seconds each way
TASK_LIMIT = 30.0  # seconds until a task has been reported
PAUSE = 0.05  # seconds at most between two tasks, so that they do not keep step with anything


NOTES = """Milliseconds. begins: from the claim at the worker to the task's command. report: from then on until the
report has left the worker, all uploads between. A round trip is the network's, there and back."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One task, in seconds: until its command begins, from the claim's arrival at the worker; and from then on until
    its report has left the worker. The network's delay for these two ways is taken off."""

    round: int
    delay: float
    to_begin: float
    to_report: float


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `latency.json` and `latency.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        bare = [_bare(Path(name), number, parameters.tasks) for number in range(parameters.rounds)]
        found = trio.run(_measure_all, Path(name), parameters)
    about = f"{parameters.tasks} tasks, one after the other, with a free place each; {parameters.rounds} rounds."
    record = Record("latency", about, _grid(found, bare), NOTES, begun, before)
    print(record.write(out, bare=bare, found=[asdict(each) for each in found]))


def _command(times: Path) -> list[str]:
    return ["/bin/sh", "-c", f"date +%s.%N >>'{times}'"]


def _bare(folder: Path, number: int, tasks: int) -> list[float]:
    """Seconds until the task's command begins when it is started by nothing but a spawn."""
    times = folder / f"bare-{number}"
    begun = []
    for _ in range(tasks):
        begun.append(time.time())
        subprocess.run(_command(times), check=True, stdin=subprocess.DEVNULL, start_new_session=True)
    return [after - before for before, after in zip(begun, _read(times), strict=True)]


def _read(times: Path) -> list[float]:
    return [float(line) for line in times.read_text().split()]


async def _measure_all(folder: Path, parameters: Parameters) -> list[Measured]:
    found: list[Measured] = []
    for number in range(parameters.rounds):
        for delay in DELAYS:
            found += await _measure(folder, number, delay, parameters.tasks)
            print(f"round {number + 1}, {delay * 1000:.0f} ms each way", file=sys.stderr, flush=True)
    return found


async def _measure(folder: Path, number: int, delay: float, tasks: int) -> list[Measured]:
    times = folder / f"{number}-{delay}"
    payload = {"maxRunTime": 60, "command": [_command(times)]}
    pause = Ports().random
    async with (
        open_canned(folder, payload, 0) as queue,
        delayed(queue, delay, folder) as distant,
        open_worker(folder, distant, "native", numberOfTasks=tasks) as worker,
    ):
        for done in range(1, tasks + 1):
            await trio.sleep(pause.uniform(0, PAUSE) + 2 * delay)
            await add_tasks(queue, 1)
            await wait_counted(queue, "reported", done, TASK_LIMIT, worker)
        await seconds_of(queue, tasks)
        account = await account_of(queue)
    begun = trio.Path(times)
    moments = [float(line) for line in (await begun.read_text()).split()]
    return [
        Measured(number, delay, began - claimed - delay, reported - began - delay)
        for claimed, began, reported in zip(account.claims, moments, account.reports, strict=True)
    ]


def _grid(found: list[Measured], bare: list[list[float]]) -> Grid:
    rounds = sorted({each.round for each in found})
    rows: dict[str, list[Figure | None]] = {"bare spawn": [*_quantiles(bare), None, None, None, None]}
    for delay in DELAYS:
        mine = [[each for each in found if (each.round, each.delay) == (number, delay)] for number in rounds]
        reports = [[each.to_report for each in one] for one in mine]
        trips = figure(quantile(one, 0.5) / (2 * delay) for one in reports) if delay else None
        begins = _quantiles([[each.to_begin for each in one] for one in mine])
        rows[f"{delay * 1000:.0f} ms each way"] = [*begins, *_quantiles(reports), trips]
    names = [f"{what} {share}" for what in ("begins", "report") for share in ("p50", "p90", "p99")]
    return Grid([*names, "in round trips"], rows)


def _quantiles(rounds: list[list[float]]) -> list[Figure]:
    return [figure(1000 * quantile(one, share) for one in rounds) for share in (0.5, 0.9, 0.99)]
