"""Whether a worker grows with the number of tasks that it has run: memory, descriptors, threads, disk, time for a task.

The queue's answers are canned. With the engine `mock` there are `--tasks` of them, with `native` a tenth.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import counted, seconds_of
from bench.parameters import Parameters
from bench.processes import BenchmarkFailed, memory_of, open_canned, open_worker
from bench.report import Figure, Grid, Record, figure, load_average

BETWEEN = 1.0  # seconds between two looks
WARM = 0.1  # share of the tasks before which is not looked: caches and pools fill
LIMIT = 3600.0  # seconds for one engine


NOTES = "bytes a task: the slope of the resident memory over all looks, by least squares."


@dataclass(frozen=True, slots=True)
class Look:
    """The worker after so many tasks; memory in bytes, files in its directory."""

    tasks: int
    seconds: float
    memory: int
    descriptors: int
    threads: int
    files: int


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `soak.json` and `soak.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    found: dict[str, list[Look]] = {}
    with TemporaryDirectory(prefix="bench-") as name:
        for engine, tasks in (("mock", parameters.tasks), ("native", max(1, parameters.tasks // 10))):
            found[engine] = trio.run(_measure, Path(name), engine, tasks, parameters.capacity)
    about = f"{parameters.capacity} tasks at once; looked at each second, from {WARM:.0%} of the tasks on."
    record = Record("soak", about, _grid(found), NOTES, begun, before)
    print(record.write(out, looks={engine: [asdict(look) for look in each] for engine, each in found.items()}))


async def _measure(folder: Path, engine: str, tasks: int, capacity: int) -> list[Look]:
    folder = folder / engine
    await trio.Path(folder).mkdir()
    payload = {"maxRunTime": 60, **({"command": [["/bin/true"]]} if engine == "native" else {})}
    looks: list[Look] = []
    async with open_canned(folder, payload, tasks) as queue:
        begun = time.monotonic()
        async with open_worker(folder, queue, engine, capacity=capacity, numberOfTasks=tasks) as process:
            with trio.fail_after(LIMIT):
                while process.returncode is None:
                    with trio.move_on_after(BETWEEN):
                        await process.wait()
                    if process.returncode is None:
                        done = await counted(queue, "reported")
                        # It may have ended meanwhile, and then has neither memory nor files.
                        with suppress(FileNotFoundError, ProcessLookupError, StopIteration):
                            looks.append(_look(process.pid, done, time.monotonic() - begun, folder / "work"))
                        print(f"{engine}: {done} of {tasks} tasks", end="\r", file=sys.stderr, flush=True)
        await seconds_of(queue, tasks)
    print(file=sys.stderr)
    return [look for look in looks if look.tasks >= WARM * tasks]


def _look(pid: int, tasks: int, seconds: float, work: Path) -> Look:
    descriptors, threads = (sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir()) for what in ("fd", "task"))
    return Look(tasks, seconds, memory_of(pid, "VmRSS"), descriptors, threads, sum(1 for _ in work.rglob("*")))


def _grid(found: dict[str, list[Look]]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for engine, looks in found.items():
        if len(looks) < 2:
            raise BenchmarkFailed(f"{engine}: the tasks were over before the worker could be looked at twice")
        tenth = max(1, len(looks) // 10)
        for name, part in (("first", looks[: tenth + 1]), ("last", looks[-tenth - 1 :])):
            rows[f"{engine}, {name} tenth, to {part[-1].tasks}"] = [
                figure(look.memory / 2**20 for look in part),
                figure([_slope(looks)]) if name == "last" else None,
                figure(look.descriptors for look in part),
                figure(look.threads for look in part),
                figure(look.files for look in part),
                figure([_rate(part)]),
            ]
    return Grid(["memory, MiB", "bytes a task", "descriptors", "threads", "files", "tasks/s"], rows)


def _slope(looks: list[Look]) -> float:
    tasks, memory = [float(look.tasks) for look in looks], [float(look.memory) for look in looks]
    return statistics.linear_regression(tasks, memory).slope


def _rate(looks: list[Look]) -> float:
    return (looks[-1].tasks - looks[0].tasks) / (looks[-1].seconds - looks[0].seconds)
