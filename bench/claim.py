"""How fast the worker claims and completes trivial tasks, what each costs it, and how that compares with the limit.

The limit is `bench.bare`: the same HTTP calls, or a process for each task, and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from bench.bare import COMMAND, Load, run_tasks
from bench.claim_report import Measurement, Report
from bench.load import create_tasks, seconds_to_run
from bench.parameters import Parameters
from bench.processes import Deployment, cpu_of, cpu_of_machine, open_queue, run_measured
from bench.recording import RecordingPorts, per_task
from bench.report import load_average, machine
from worker.config import load_config
from worker.supervisor import run_worker

POOL = "bench/claim"
RECORDED = 4  # times as many tasks as run at once are run to record the calls: how claims batch shows after the first


@dataclass(frozen=True, slots=True)
class Variant:
    """Something that runs the tasks of `POOL`; `limit` names the variant that it is compared with."""

    name: str
    engine: str
    limit: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The tasks': nothing to do, or next to nothing."""
        return {"maxRunTime": 60, **({"command": [[COMMAND]]} if self.engine == "native" else {})}

    def argv(self, folder: Path, tasks: int, capacity: int) -> list[str]:
        """A process that runs so many tasks."""
        if self.limit is not None:
            return ["-m", "worker", "run", "--config", str(folder / f"{self.engine}-{tasks}.yml")]
        spawn = ["--spawn"] if self.engine == "native" else []
        return ["-m", "bench.bare", "--pool", POOL, "--tasks", str(tasks), "--capacity", str(capacity), *spawn]


VARIANTS = (
    Variant("bare calls", "mock"),
    Variant("mock", "mock", limit="bare calls"),
    Variant("bare calls + spawn", "native"),
    Variant("native", "native", limit="bare calls + spawn"),
)


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `claim.json` and `claim.md` in `out`. Raises BenchmarkFailed."""
    date, before = datetime.now(UTC).isoformat(timespec="minutes"), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        _write_configs(folder, parameters)
        calls = {each.name: trio.run(_record, folder, each, parameters) for each in VARIANTS}
        measurements, spawns = trio.run(_measure_all, folder, parameters)
    limits = {each.name: each.limit for each in VARIANTS}
    averages = (before, load_average())
    report = Report(date, machine(), averages, parameters, limits, calls, measurements, spawns)
    (out / "claim.json").write_text(report.to_json())
    (out / "claim.md").write_text(report.to_text())
    print(report.to_text())


def _write_configs(folder: Path, parameters: Parameters) -> None:
    """For each engine a worker with all tasks, one with none, and one for the recording. JSON is YAML."""
    for engine in {each.engine for each in VARIANTS}:
        for tasks in {parameters.tasks, RECORDED * parameters.capacity, 0}:
            # One that has nothing to do ends for idleness before its first claim: what is left is the start.
            end = {"numberOfTasks": tasks} if tasks else {"idleTimeout": 1e-6}
            own = {
                "taskQueueId": POOL,
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
        if variant.limit is None:
            load = Load(POOL, tasks, parameters.capacity, spawn=variant.engine == "native")
            await run_tasks(ports, queue.root_url, queue.credentials, load)
        else:
            config = load_config(folder / f"{variant.engine}-{tasks}.yml", {})
            await run_worker(config, ports, root_url=queue.root_url, credentials=queue.credentials)
        await seconds_to_run(queue, ids)
    return per_task(ports.calls, tasks)


async def _measure_all(folder: Path, parameters: Parameters) -> tuple[list[Measurement], list[float]]:
    measurements, spawns = [], []
    for number in range(1, parameters.rounds + 1):
        for variant in VARIANTS:
            async with open_queue(folder) as queue:
                measured = await _measure(queue, folder, number, variant, parameters)
            _tell(
                f"round {number}, {variant.name}: {measured.tasks_per_second:.1f} tasks/s, {measured.cpu:.1f} ms each"
            )
            measurements.append(measured)
        spawns.append(await _measure_spawns(folder, parameters))
        _tell(f"round {number}, spawn alone: {spawns[-1]:.0f} a second")
    return measurements, spawns


async def _measure(
    queue: Deployment, folder: Path, number: int, variant: Variant, parameters: Parameters
) -> Measurement:
    environment, tasks, capacity = queue.environment(), parameters.tasks, parameters.capacity
    start, _ = await run_measured(variant.argv(folder, 0, capacity), environment, folder)
    ids = await create_tasks(queue, POOL, variant.payload, tasks)
    queue_before, machine_before, begun = cpu_of(queue.pid), cpu_of_machine() - time.process_time(), trio.current_time()
    whole, _ = await run_measured(variant.argv(folder, tasks, capacity), environment, folder)
    queue_used = (cpu_of(queue.pid) - queue_before).own
    others = cpu_of_machine() - time.process_time() - machine_before - whole.own - whole.children - queue_used
    wall = trio.current_time() - begun
    seconds = await seconds_to_run(queue, ids)
    used = whole - start
    return Measurement(
        round=number,
        variant=variant.name,
        completed=len(ids),
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


async def _measure_spawns(folder: Path, parameters: Parameters) -> float:
    """Processes a second, with no calls."""
    argv = ["-m", "bench.bare", "--tasks", str(parameters.tasks), "--capacity", str(parameters.capacity), "--spawn"]
    _, output = await run_measured(argv, dict(os.environ), folder)
    return parameters.tasks / float(output)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
