"""What tasks that only wait cost the worker, one to a thousand of them at once, and how soon they are dead in the end.

The queue's answers are canned. What is measured of the worker is the kernel's account, but for the event loop's lag:
that is how long its web server takes to answer the shortest of questions.
"""

from __future__ import annotations

import itertools
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from bench.load import account_of, add_tasks
from bench.parameters import Parameters
from bench.processes import BenchmarkFailed, Deployment, cpu_of, memory_of, open_canned, open_worker
from bench.report import Figure, Grid, Record, figure, load_average, quantile
from worker.http import HttpClient, open_http
from worker.ports import Ports

SLEEP = "14399"  # seconds that a task would take; by this argument its process is known
COUNTS = (1, 10, 100, 1000)
WATCHED = 20.0  # seconds for which the tasks are watched; fewer where there are fewer than 200
BETWEEN_ASKED = 0.02  # seconds between two questions to the web server
BEGIN_LIMIT = 120.0  # seconds until all tasks run
END_LIMIT = 60.0  # seconds until all are dead


NOTES = """CPU: for a task that waits, in a minute. Memory and descriptors: for a task, beyond those before the first.
begin: until all tasks run. Lag: until the worker's web server answers. end: from SIGTERM until no process of any task
is left. idle: the whole worker without a task; 120 ms in a minute are 0.2 % of a core."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One worker with so many tasks. Memory and descriptors are beyond those before its first task."""

    engine: str
    tasks: int
    seconds_to_begin: float
    cpu_per_task_minute: float  # CPU seconds
    memory_per_task: float  # bytes
    descriptors_per_task: float
    threads: int
    lags: list[float]  # seconds
    seconds_to_end: float | None  # from SIGTERM; None where there are no processes


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker that has nothing to do: its share of a core, and bytes."""

    cpu: float
    memory: int


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `scale.json` and `scale.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        found, idle = trio.run(_measure_all, Path(name), parameters)
    about = f"{parameters.rounds} rounds; tasks were watched for {_watched(parameters):g} s."
    record = Record("scale", about, _grid(found, idle), NOTES, begun, before)
    print(record.write(out, found=[asdict(each) for each in found], idle=[asdict(each) for each in idle]))


def _watched(parameters: Parameters) -> float:
    return min(WATCHED, parameters.tasks / 10)


async def _measure_all(folder: Path, parameters: Parameters) -> tuple[list[Measured], list[Idle]]:
    found, idle = [], []
    counts = [*(count for count in COUNTS if count < parameters.tasks), parameters.tasks]
    watched = _watched(parameters)
    for number in range(parameters.rounds):
        idle.append(await _idle(folder / f"{number}-idle", watched))
        for engine, tasks in itertools.product(("mock", "native"), counts):
            found.append(await _measure(folder / f"{number}-{engine}-{tasks}", engine, tasks, watched))
            print(f"round {number + 1}, {engine}, {tasks} tasks", file=sys.stderr, flush=True)
    return found, idle


async def _measure(folder: Path, engine: str, tasks: int, watched: float) -> Measured:
    await trio.Path(folder).mkdir()
    own: dict[str, Any] = {"mock": {"seconds": float(SLEEP)}} if engine == "mock" else {"command": [["sleep", SLEEP]]}
    async with (
        open_canned(folder, {"maxRunTime": 14400, **own}, 0) as queue,
        _worker(folder, engine, queue, tasks) as (process, port),
        open_http(Ports()) as http,
    ):
        url = f"http://127.0.0.1:{port}/"
        await http.control.request("GET", url)
        memory, descriptors = memory_of(process.pid, "VmRSS"), _count(process.pid, "fd")
        begun = trio.current_time()
        await add_tasks(queue, tasks)
        await _until(lambda: _running(engine, queue, tasks), BEGIN_LIMIT, "begin")
        began = trio.current_time() - begun
        used = await _used(process, watched)
        lags = await _lags(http.control, url, watched)
        threads = _count(process.pid, "task")
        memory = memory_of(process.pid, "VmRSS") - memory
        descriptors = _count(process.pid, "fd") - descriptors
        process.send_signal(signal.SIGTERM)
        told = trio.current_time()
        ending = None
        if engine == "native":
            await _until(_none_sleeps, END_LIMIT, "end")
            ending = trio.current_time() - told
        with trio.fail_after(END_LIMIT):
            await process.wait()
    return Measured(
        engine,
        tasks,
        began,
        used / tasks / (watched / 60),
        memory / tasks,
        descriptors / tasks,
        threads,
        lags,
        ending,
    )


async def _idle(folder: Path, watched: float) -> Idle:
    await trio.Path(folder).mkdir()
    async with open_canned(folder, {}, 0) as queue, _worker(folder, "native", queue, 1) as (process, _):
        idle = Idle(await _used(process, watched) / watched, memory_of(process.pid, "VmRSS"))
        process.send_signal(signal.SIGTERM)  # With the one that follows it waits for no claim.
        return idle


async def _used(process: trio.Process, watched: float) -> float:
    """CPU seconds in as many seconds."""
    before = cpu_of(process.pid).own
    await trio.sleep(watched)
    return cpu_of(process.pid).own - before


async def _lags(client: HttpClient, url: str, watched: float) -> list[float]:
    lags = []
    with trio.move_on_after(watched):
        while True:
            asked = trio.current_time()
            await client.request("GET", url)
            lags.append(trio.current_time() - asked)
            await trio.sleep(BETWEEN_ASKED)
    return lags


async def _running(engine: str, queue: Deployment, tasks: int) -> bool:
    if engine == "native":
        return len(_sleepers()) == tasks
    return len((await account_of(queue)).claims) == tasks


async def _none_sleeps() -> bool:
    return not _sleepers()


def _sleepers() -> list[int]:
    wanted = f"sleep\0{SLEEP}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes() == wanted:
                found.append(int(process.name))
    return found


async def _until(condition: Callable[[], Awaitable[bool]], limit: float, what: str) -> None:
    with trio.move_on_after(limit):
        while True:
            if await condition():
                return
            await trio.sleep(0.02)
    raise BenchmarkFailed(f"not all tasks {what} within {limit:.0f} s")


def _count(pid: int, what: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir())


@asynccontextmanager
async def _worker(
    folder: Path, engine: str, queue: Deployment, tasks: int
) -> AsyncGenerator[tuple[trio.Process, int], None]:
    """The worker, and the port of its web server."""
    port = _free_port()
    async with open_worker(folder, queue, engine, {"webhooks": {"port": port}}, capacity=tasks) as process:
        await _until(lambda: _answers(port), 30, "begin")
        yield process, port


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def _answers(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


def _grid(found: list[Measured], idle: list[Idle]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for engine, tasks in dict.fromkeys((each.engine, each.tasks) for each in found):
        mine = [each for each in found if (each.engine, each.tasks) == (engine, tasks)]
        ends = [each.seconds_to_end for each in mine if each.seconds_to_end is not None]
        rows[f"{engine}, {tasks}"] = [
            figure(each.seconds_to_begin for each in mine),
            figure(1000 * each.cpu_per_task_minute for each in mine),
            figure(each.memory_per_task / 1024 for each in mine),
            figure(each.descriptors_per_task for each in mine),
            figure(each.threads for each in mine),
            figure(1000 * quantile(each.lags, 0.5) for each in mine),
            figure(1000 * quantile(each.lags, 0.99) for each in mine),
            figure(ends) if ends else None,
        ]
    share, memory = figure(1000 * 60 * each.cpu for each in idle), figure(each.memory / 1024 for each in idle)
    rows["idle"] = [None, share, memory, None, None, None, None, None]
    columns = ["begin, s", "CPU, ms", "memory, KiB", "descriptors", "threads", "lag p50, ms", "lag p99, ms", "end, s"]
    return Grid(columns, rows)
