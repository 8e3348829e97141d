"""Whether a task costs more when many have gone before it, and a line of a log more when the log is long.

Tasks come in ten equal batches to one worker with the engine `mock`, and one task of the engine `native` writes a log
in ten equal parts. A cost that grows with what went before shows as a rise from the first tenth to the last.
"""

from __future__ import annotations

import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench import writing
from bench.load import add_tasks, create_tasks, seconds_of, seconds_to_run, wait_counted
from bench.parameters import Parameters
from bench.processes import POOL, RUN_LIMIT, cpu_of, open_canned, open_queue, open_worker
from bench.report import Figure, Grid, Record, figure, load_average

TENTHS = 10
LINES = 500  # of the log, for each task that there would be
MB = 1e6  # bytes

NOTES = """CPU: milliseconds of the worker for a task, or for a megabyte of the log. wall: of the time that passes.
rise: from the first tenth to the last, as a share of the first, on the straight line that fits all ten best."""


@dataclass(frozen=True, slots=True)
class Tenth:
    """Milliseconds for each of its units: CPU of the worker, and time."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Grown:
    """One run, tenth by tenth."""

    round: int
    unit: str
    tenths: list[Tenth]


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `growth.json` and `growth.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        found = trio.run(_measure_all, Path(name), parameters)
    size = _log_part(parameters) * TENTHS * writing.LINE / MB
    counts = f"{parameters.tasks} tasks, {parameters.capacity} at once, and a log of {size:.3g} MB"
    record = Record("growth", f"{counts}; {parameters.rounds} rounds.", _grid(found), NOTES, begun, before)
    print(record.write(out, found=[asdict(each) for each in found]))


def rise(values: Sequence[float]) -> float:
    """From the first to the last by the line that fits best, as a share of the first; 0 where the line begins at 0."""
    line = statistics.linear_regression(range(len(values)), values)
    return line.slope * (len(values) - 1) / line.intercept if line.intercept else 0.0


async def _measure_all(folder: Path, parameters: Parameters) -> list[Grown]:
    found = []
    for number in range(1, parameters.rounds + 1):
        for unit, measure in (("task", _tasks), ("MB of a log", _log)):
            own = trio.Path(folder / f"{number}-{unit}")
            await own.mkdir()
            found.append(Grown(number, unit, await measure(Path(own), parameters)))
            cpu = rise([each.cpu for each in found[-1].tenths])
            print(f"round {number}, {unit}: CPU rises by {cpu:.1%}", file=sys.stderr, flush=True)
    return found


class _Account:
    """What a worker uses from one tenth to the next."""

    def __init__(self, pid: int, units: float) -> None:
        self._pid = pid
        self._units = units
        self._before = (cpu_of(pid).own, time.monotonic())

    def tenth(self) -> Tenth:
        (cpu, wall), now = self._before, (cpu_of(self._pid).own, time.monotonic())
        self._before = now
        return Tenth(1000 * (now[0] - cpu) / self._units, 1000 * (now[1] - wall) / self._units)


async def _tasks(folder: Path, parameters: Parameters) -> list[Tenth]:
    batch, capacity = max(1, parameters.tasks // TENTHS), parameters.capacity
    tenths = []
    async with (
        open_canned(folder, {"maxRunTime": 60}, capacity) as queue,
        open_worker(folder, queue, "mock", capacity=capacity) as worker,
    ):
        # The start, and what only the first tasks do, is over before the first tenth.
        await wait_counted(queue, "reported", capacity, RUN_LIMIT, worker)
        account = _Account(worker.pid, batch)
        for number in range(1, TENTHS + 1):
            await add_tasks(queue, batch)
            await wait_counted(queue, "reported", capacity + number * batch, RUN_LIMIT, worker)
            tenths.append(account.tenth())
        await seconds_of(queue, capacity + TENTHS * batch)
        worker.send_signal(signal.SIGINT)  # With the TERM that follows it waits for no claim.
    return tenths


async def _log(folder: Path, parameters: Parameters) -> list[Tenth]:
    lines, pipe = _log_part(parameters), folder / "written"
    os.mkfifo(pipe)
    # In this pipe the task says that it has written a part; the first part warms up. It is open for writing too, or
    # it would be at its end before there is a task.
    said = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write = shlex.join([sys.executable, writing.__file__, "/", f"{lines}", "0"])
        script = f"for part in $(seq {1 + TENTHS}); do {write} && echo >{shlex.quote(str(pipe))} || exit; done"
        async with open_queue(folder) as queue, open_worker(folder, queue, "native", numberOfTasks=1) as worker:
            payload = {"command": [["/bin/sh", "-c", script]], "maxRunTime": int(RUN_LIMIT)}
            ids = await create_tasks(queue, POOL, payload, 1)
            tenths: list[Tenth] = []
            with trio.fail_after(RUN_LIMIT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_written, said, _Account(worker.pid, lines * writing.LINE / MB), tenths)
                    await worker.wait()
                    nursery.cancel_scope.cancel()
            await seconds_to_run(queue, ids)
    finally:
        os.close(said)
    return tenths


async def _written(said: int, account: _Account, tenths: list[Tenth]) -> None:
    """A tenth for each line but the first that the task says. Runs until cancelled."""
    warm = False
    while True:
        await trio.lowlevel.wait_readable(said)
        for _ in os.read(said, 1 + TENTHS):
            tenth = account.tenth()
            if warm:
                tenths.append(tenth)
            warm = True


def _log_part(parameters: Parameters) -> int:
    return max(1, parameters.tasks * LINES // TENTHS)


def _grid(found: list[Grown]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for unit in dict.fromkeys(each.unit for each in found):
        mine = [each.tenths for each in found if each.unit == unit]
        for name in ("CPU", "wall"):
            values = [[getattr(tenth, name.lower()) for tenth in tenths] for tenths in mine]
            ends = [figure(each[place] for each in values) for place in (0, -1)]
            rows[f"{name}, {unit}"] = [*ends, figure(rise(each) for each in values)]
    return Grid(["first tenth", "last tenth", "rise"], rows)
