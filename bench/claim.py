"""How fast the worker claims and completes trivial tasks, what each costs it, and how that compares with the limits.

The limits are `bench.bare`, the same calls by the same client, with a process for each task where the engine starts
one, and `bench.raw`, the calls as fast as they can be made.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import trio

from bench.bare import COMMAND, Load, run_tasks
from bench.claim_report import Comparison, Measurement, Report, regressions
from bench.load import create_tasks, seconds_of, seconds_to_run
from bench.parameters import Parameters
from bench.processes import (
    POOL,
    RUN_LIMIT,
    BenchmarkFailed,
    Deployment,
    cpu_of,
    cpu_of_machine,
    delayed,
    open_canned,
    open_queue,
    plain_environment,
    run_measured,
)
from bench.recording import RecordingPorts, per_task
from bench.report import load_average, machine, newest
from worker.config import ConfigError, load_config, parse_config
from worker.supervisor import run_worker

RESULTS = Path(__file__).parent / "results"
RECORDED = 4  # times as many tasks as run at once are run to record the calls: how claims batch shows after the first


@dataclass(frozen=True, slots=True)
class Variant:
    """Something that runs the tasks of a pool, with canned answers or a real queue."""

    name: str
    engine: str
    runner: Literal["raw", "bare", "worker"]
    canned: bool = True

    @property
    def payload(self) -> dict[str, Any]:
        """The tasks': nothing to do, or next to nothing."""
        return {"maxRunTime": 60, **({"command": [[COMMAND]]} if self.engine == "native" else {})}

    def argv(self, folder: Path, pool: str, tasks: int, capacity: int) -> list[str]:
        """A process that runs so many tasks."""
        if self.runner == "worker":
            return ["-m", "worker", "run", "--config", str(folder / f"{self.engine}-{tasks}.yml")]
        spawn = ["--spawn"] if self.engine == "native" else []
        load = ["--pool", pool, "--tasks", str(tasks), "--capacity", str(capacity), *spawn]
        return ["-m", f"bench.{self.runner}", *load]


VARIANTS = (
    Variant("raw calls", "mock", "raw"),
    Variant("bare calls", "mock", "bare"),
    Variant("mock", "mock", "worker"),
    Variant("bare calls + spawn", "native", "bare"),
    Variant("native", "native", "worker"),
    Variant("bare calls, queue", "mock", "bare", canned=False),
    Variant("mock, queue", "mock", "worker", canned=False),
)
# What is compared with which limit, and the ratios that are aimed at: tasks a second at least, CPU at most.
COMPARED = (
    Comparison("mock", "bare calls", 0.85, 1.3),
    Comparison("mock", "raw calls", 0.6, None),
    Comparison("bare calls", "raw calls", None, None),
    Comparison("native", "bare calls + spawn", 0.75, 1.3),
    Comparison("mock, queue", "bare calls, queue", None, None),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tasks are: `pool` of a deployment, or of queues of our own that are `delay` seconds away."""

    pool: str = POOL
    delay: float = 0.0
    deployment: Deployment | None = None

    @property
    def variants(self) -> list[Variant]:
        """Those that can be measured there: nobody cans the answers of a real deployment."""
        return [each for each in VARIANTS if self.deployment is None or not each.canned]

    def __str__(self) -> str:
        if self.deployment is not None:
            return f"{self.pool} at {self.deployment.root_url}"
        return f"{self.delay * 1000:g} ms each way to the queue"


def place_at(root_url: str, pool: str) -> Place:
    """A deployment with the credentials of the environment. Raises BenchmarkFailed, which says what is wrong."""
    try:
        config = parse_config({"rootUrl": root_url, "worker": {"taskQueueId": pool}}, os.environ)
    except ConfigError as error:
        raise BenchmarkFailed(str(error)) from None
    if config.root_url is None or config.credentials is None:
        raise BenchmarkFailed("there are no credentials: set TASKCLUSTER_CLIENT_ID and TASKCLUSTER_ACCESS_TOKEN")
    return Place(pool, deployment=Deployment(None, config.root_url, config.credentials))


def run(parameters: Parameters, out: Path, place: Place = Place()) -> None:
    """Measure, print the table, and leave `claim.json` and `claim.md` in `out`.

    Raises BenchmarkFailed, also where a ratio is ten times worse than in the newest record.
    """
    date, before = datetime.now(UTC).isoformat(timespec="minutes"), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        _write_configs(folder, parameters, place.pool)
        recorded = [each for each in place.variants if each.canned and each.runner != "raw"]
        calls = {each.name: trio.run(_record, folder, each, parameters) for each in recorded}
        measurements, spawns = trio.run(_measure_all, folder, parameters, place)
    averages = (before, load_average())
    names = [each.name for each in place.variants]
    compared = [each for each in COMPARED if {each.variant, each.limit} <= {*names}]
    report = Report(date, machine(), averages, parameters, str(place), names, compared, calls, measurements, spawns)
    (out / "claim.json").write_text(report.to_json())
    (out / "claim.md").write_text(report.to_text())
    print(report.to_text())
    record = newest(RESULTS, "claim")
    if place == Place() and record is not None:
        worse = regressions(report.ratios(), json.loads(record.read_text())["ratios"])
        if worse:
            raise BenchmarkFailed(f"much worse than in {record.name}: {'; '.join(worse)}")


def _write_configs(folder: Path, parameters: Parameters, pool: str) -> None:
    """For each engine a worker with all tasks, one with none, and one for the recording. JSON is YAML."""
    for engine in {each.engine for each in VARIANTS}:
        for tasks in {parameters.tasks, RECORDED * parameters.capacity, 0}:
            # One that has nothing to do ends for idleness before its first claim: what is left is the start.
            end = {"numberOfTasks": tasks} if tasks else {"idleTimeout": 1e-6}
            own = {
                "taskQueueId": pool,
                "workerId": "bench",
                "capacity": parameters.capacity,
                "workDir": str(folder / "work"),
                "minimumDiskSpace": 0,
                **end,
            }
            (folder / f"{engine}-{tasks}.yml").write_text(json.dumps({"engine": engine, "worker": own}))


async def _record(folder: Path, variant: Variant, parameters: Parameters) -> dict[str, float]:
    """The calls for one task, as made inside of this process for a few tasks."""
    ports = RecordingPorts()
    tasks = RECORDED * parameters.capacity
    async with open_queue(folder) as queue:
        ids = await create_tasks(queue, POOL, variant.payload, tasks)
        if variant.runner == "bare":
            load = Load(POOL, tasks, parameters.capacity, spawn=variant.engine == "native")
            with trio.fail_after(RUN_LIMIT):
                await run_tasks(ports, queue.root_url, queue.credentials, load)
        else:
            config = load_config(folder / f"{variant.engine}-{tasks}.yml", {})
            with trio.fail_after(RUN_LIMIT):
                await run_worker(config, ports, root_url=queue.root_url, credentials=queue.credentials)
        await seconds_to_run(queue, ids)
    return per_task(ports.calls, tasks)


async def _measure_all(folder: Path, parameters: Parameters, place: Place) -> tuple[list[Measurement], list[float]]:
    measurements, spawns = [], []
    for number in range(1, parameters.rounds + 1):
        for variant in place.variants:
            async with _queue(folder, variant, parameters.tasks, place) as queue:
                measured = await _measure(queue, folder, number, variant, parameters, place.pool)
            _tell(
                f"round {number}, {variant.name}: {measured.tasks_per_second:.1f} tasks/s, {measured.cpu:.1f} ms each"
            )
            measurements.append(measured)
        spawns.append(await _measure_spawns(folder, parameters))
        _tell(f"round {number}, spawn alone: {spawns[-1]:.0f} a second")
    return measurements, spawns


@asynccontextmanager
async def _queue(folder: Path, variant: Variant, tasks: int, place: Place) -> AsyncGenerator[Deployment, None]:
    if place.deployment is not None:
        yield place.deployment
        return
    opened = open_canned(folder, variant.payload, tasks) if variant.canned else open_queue(folder)
    async with opened as queue, delayed(queue, place.delay, folder) as distant:
        yield distant


async def _measure(
    queue: Deployment, folder: Path, number: int, variant: Variant, parameters: Parameters, pool: str
) -> Measurement:
    environment, tasks, capacity = queue.environment(), parameters.tasks, parameters.capacity
    start, _ = await run_measured(variant.argv(folder, pool, 0, capacity), environment, folder)
    ids = [] if variant.canned else await create_tasks(queue, pool, variant.payload, tasks)
    queue_before, machine_before, begun = _used_by(queue), cpu_of_machine() - time.process_time(), trio.current_time()
    whole, _ = await run_measured(variant.argv(folder, pool, tasks, capacity), environment, folder)
    queue_used = _used_by(queue) - queue_before
    others = cpu_of_machine() - time.process_time() - machine_before - whole.own - whole.children - queue_used
    wall = trio.current_time() - begun
    seconds = await (seconds_of(queue, tasks) if variant.canned else seconds_to_run(queue, ids))
    used = whole - start
    return Measurement(
        round=number,
        variant=variant.name,
        seconds=seconds,
        tasks_per_second=tasks / seconds,
        cpu=1000 * used.own / tasks,
        children_cpu=1000 * used.children / tasks,
        queue_cpu=1000 * queue_used / tasks,
        busy=used.own / seconds,
        queue_busy=queue_used / seconds,
        others_busy=max(0.0, others) / wall,
        startup_cpu_seconds=start.own,
    )


def _used_by(queue: Deployment) -> float:
    return 0.0 if queue.pid is None else cpu_of(queue.pid).own


async def _measure_spawns(folder: Path, parameters: Parameters) -> float:
    """Processes a second, with no calls."""
    argv = ["-m", "bench.bare", "--tasks", str(parameters.tasks), "--capacity", str(parameters.capacity), "--spawn"]
    _, output = await run_measured(argv, plain_environment(), folder)
    return parameters.tasks / float(output)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
