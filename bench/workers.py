"""What several workers on one machine bring that share one queue: 1, 4 and 16 processes.

The queue's answers are canned, and so many bare loops (`bench.bare`) are the limit. Everybody waits for tasks before
there are any, so that no start is in the figures.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import account_of, add_tasks, seconds_of, wait_counted
from bench.parameters import Parameters
from bench.processes import POOL, RUN_LIMIT, Deployment, cpu_of, ended, open_canned, open_worker
from bench.report import Figure, Grid, Record, figure, load_average

COUNTS = (1, 4, 16)  # those that the tasks are enough for
RUNNERS = ("bare calls", "mock")
READY_LIMIT = 120.0  # seconds until all processes wait for tasks

NOTES = """tasks/s: of all processes together. of the limit: of as many bare loops in the same round. of one: of one
process in the same round. CPU: milliseconds of all processes for a task, start-up not in it. share: of the tasks
that an equal share would be, for the process with the fewest and for that with the most."""


@dataclass(frozen=True, slots=True)
class Measured:
    """So many processes in one round; `tasks` is how many each had. `cpu` is in milliseconds for a task."""

    round: int
    runner: str
    processes: int
    tasks_per_second: float
    cpu: float
    tasks: list[int]


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `workers.json` and `workers.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        found = trio.run(_measure_all, Path(name), parameters)
    about = f"{parameters.tasks} tasks, {parameters.capacity} at once in each process; {parameters.rounds} rounds."
    record = Record("workers", about, _grid(found), NOTES, begun, before)
    print(record.write(out, found=[asdict(each) for each in found]))


async def _measure_all(folder: Path, parameters: Parameters) -> list[Measured]:
    found = []
    for number in range(1, parameters.rounds + 1):
        for processes in (count for count in COUNTS if count <= parameters.tasks):
            for runner in RUNNERS:
                own = trio.Path(folder / f"{number}-{processes}-{runner}")
                await own.mkdir()
                found.append(await _measure(Path(own), number, runner, processes, parameters))
                speed = found[-1].tasks_per_second
                print(f"round {number}, {runner} x {processes}: {speed:.0f} tasks/s", file=sys.stderr, flush=True)
    return found


async def _measure(folder: Path, number: int, runner: str, processes: int, parameters: Parameters) -> Measured:
    tasks = parameters.tasks
    async with open_canned(folder, {"maxRunTime": 60}, 0) as queue, AsyncExitStack() as stack:
        opened = []
        for index in range(processes):
            own = trio.Path(folder / f"{index}")
            await own.mkdir()
            opened.append(await stack.enter_async_context(_open(runner, Path(own), queue, parameters.capacity)))
        await wait_counted(queue, "waiting", processes, READY_LIMIT, *opened)
        before = [cpu_of(process.pid).own for process in opened]
        await add_tasks(queue, tasks)
        await wait_counted(queue, "reported", tasks, RUN_LIMIT, *opened)
        used = sum(cpu_of(process.pid).own for process in opened) - sum(before)
        seconds, claimed = await seconds_of(queue, tasks), (await account_of(queue)).claimed
        for process in opened:
            process.kill()  # There is nothing that it should still do.
    each = [claimed.get(f"{index}", 0) for index in range(processes)]
    return Measured(number, runner, processes, tasks / seconds, 1000 * used / tasks, each)


@asynccontextmanager
async def _open(runner: str, folder: Path, queue: Deployment, capacity: int) -> AsyncGenerator[trio.Process, None]:
    """A process that claims until it is ended, as the worker that the folder's name says."""
    if runner == "mock":
        async with open_worker(folder, queue, "mock", capacity=capacity, workerId=folder.name) as process:
            yield process
        return
    load = ["--pool", POOL, "--tasks", f"{sys.maxsize}", "--capacity", f"{capacity}", "--worker-id", folder.name]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.bare", *load], stdin=subprocess.DEVNULL, env=queue.environment()
    )
    async with ended(process):
        yield process


def _grid(found: list[Measured]) -> Grid:
    speeds = {(each.round, each.runner, each.processes): each.tasks_per_second for each in found}
    rows: dict[str, list[Figure | None]] = {}
    for processes in sorted({each.processes for each in found}):
        for runner in RUNNERS:
            mine = [each for each in found if (each.runner, each.processes) == (runner, processes)]
            limits = [speeds[each.round, RUNNERS[0], processes] for each in mine]
            ones = [speeds[each.round, runner, 1] for each in mine]
            fair = [sum(each.tasks) / processes for each in mine]
            rows[f"{runner}, {processes}"] = [
                figure(each.tasks_per_second for each in mine),
                figure(each.tasks_per_second / limit for each, limit in zip(mine, limits, strict=True)),
                figure(each.tasks_per_second / one for each, one in zip(mine, ones, strict=True)),
                figure(each.cpu for each in mine),
                figure(min(each.tasks) / share for each, share in zip(mine, fair, strict=True)),
                figure(max(each.tasks) / share for each, share in zip(mine, fair, strict=True)),
            ]
    return Grid(["tasks/s", "of the limit", "of one", "CPU, ms", "least share", "greatest share"], rows)
