"""How long it takes from the cancellation of a task until nothing of it is left.

Beside it stands what is promised, and how fast such trees die when they are signalled without a worker.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import create_tasks, open_client
from bench.parameters import Parameters
from bench.processes import BenchmarkFailed, Deployment, ended, open_queue
from bench.report import Figure, Grid, Record, figure, load_average, quantile
from worker import proctree
from worker.ports import Ports
from worker.testing.hostile import HOSTILE, command
from worker.testing.trees import Arrivals, survivors, wait_gone

POOL = "bench/abort"
POLL = 2.0  # seconds, `cancelPollInterval`
GRACE = 1.0  # seconds, `killGrace`
MARGIN = 1.0  # seconds that are promised beyond these
ARRIVAL_LIMIT = 60.0  # seconds until a batch of trees is complete
GONE_LIMIT = 60.0
OBEDIENT = ("orphan", "setsid")

NOTES = """Seconds: median (lowest to highest) of all trees, and p99. within both: the share of the trees that kept both
promises."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Trees of one kind; `at_once` of them are cancelled together."""

    kind: str
    at_once: int

    @property
    def traits(self) -> tuple[str, ...]:
        """See `worker.testing.hostile`."""
        return HOSTILE if self.kind == "hostile" else OBEDIENT

    @property
    def promised(self) -> tuple[float, float]:
        """Seconds from noticed to empty, and from cancelled to empty, at most."""
        grace = GRACE if self.kind == "hostile" else 0
        return grace + MARGIN, POLL + grace + MARGIN


@dataclass(slots=True)
class Times:
    """Of one tree, in seconds from the answer to the cancellation: until the worker noticed, and until all is dead."""

    noticed: float = 0.0
    empty: float = 0.0


@dataclass(slots=True)
class Found:
    """What a variant came to. `bare` has the seconds that trees without a worker took to die when signalled."""

    kind: str
    at_once: int
    times: list[Times] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


class Worker:
    """A worker's process, of which every line on stderr is kept with the time when it came."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._lines: list[tuple[float, str]] = []
        self._more = trio.Event()  # replaced whenever it is set

    async def listen(self) -> None:
        """Until it has ended."""
        assert self._process.stderr is not None
        rest = b""
        async for chunk in self._process.stderr:
            *lines, rest = (rest + chunk).split(b"\n")
            self._lines += [(trio.current_time(), line.decode(errors="replace")) for line in lines]
            self._more.set()
            self._more = trio.Event()

    async def heard(self, *words: str) -> float:
        """When the first line came that has all of `words` in it."""
        looked = 0
        while True:
            for at, line in self._lines[looked:]:
                if all(word in line for word in words):
                    return at
            looked = len(self._lines)
            await self._more.wait()


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `abort.json` and `abort.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        found = trio.run(_measure, Path(name), parameters)
    about = f"{parameters.rounds} rounds. Poll every {POLL:g} s, grace {GRACE:g} s."
    record = Record("abort", about, _grid(found), NOTES, begun, before)
    print(record.write(out, found=[asdict(each) for each in found]))


async def _measure(folder: Path, parameters: Parameters) -> list[Found]:
    variants = [Variant(kind, at_once) for kind in ("obedient", "hostile") for at_once in (1, parameters.capacity)]
    found = {variant: Found(variant.kind, variant.at_once) for variant in variants}
    with Arrivals(folder / "ready") as arrivals:
        async with open_queue(folder) as queue:
            for number in range(1, parameters.rounds + 1):
                for variant in variants:
                    batches = max(1, parameters.tasks // parameters.capacity)
                    async with _open_worker(queue, folder, variant.at_once) as worker:
                        for _ in range(batches):
                            found[variant].times += await _cancel_batch(queue, worker, arrivals, variant)
                    for _ in range(batches):
                        found[variant].bare += await _signal_batch(arrivals, variant)
                    print(f"round {number}, {variant.kind}, {variant.at_once} at once", file=sys.stderr, flush=True)
    return [found[variant] for variant in variants]


@asynccontextmanager
async def _open_worker(queue: Deployment, folder: Path, capacity: int) -> AsyncGenerator[Worker, None]:
    own = {
        "taskQueueId": POOL,
        "workerId": "bench",
        "capacity": capacity,
        "workDir": str(folder / "work"),
        "minimumDiskSpace": 0,
        "cancelPollInterval": POLL,
        "killGrace": GRACE,
    }
    (folder / "abort.yml").write_text(json.dumps({"engine": "native", "worker": own}))
    argv = [sys.executable, "-m", "worker", "run", "--config", str(folder / "abort.yml")]
    process = await trio.lowlevel.open_process(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=queue.environment()
    )
    worker = Worker(process)
    async with ended(process), trio.open_nursery() as nursery:
        nursery.start_soon(worker.listen)
        yield worker
        process.send_signal(signal.SIGTERM)
        await process.wait()


def _marks(number: int) -> Iterator[str]:
    slug = Ports().slug()
    return (f"bench-{slug}-{index}" for index in range(number))


async def _wait_complete(arrivals: Arrivals, marks: Sequence[str]) -> None:
    with trio.move_on_after(ARRIVAL_LIMIT) as limit:
        for mark in marks:
            await arrivals.wait(mark)
    if limit.cancelled_caught:
        raise BenchmarkFailed(f"not every tree was complete within {ARRIVAL_LIMIT:g} s")


async def _wait_gone(mark: str) -> float:
    with trio.move_on_after(GONE_LIMIT):
        return await wait_gone(mark)
    raise BenchmarkFailed(f"alive after {GONE_LIMIT:g} s: {[each.pid for each in survivors(mark)]}")


async def _cancel_batch(queue: Deployment, worker: Worker, arrivals: Arrivals, variant: Variant) -> list[Times]:
    """Run trees as tasks and cancel them, when all are complete."""
    marks = list(_marks(variant.at_once))
    ids = []
    for mark in marks:
        argv = command(mark, *variant.traits, ready=arrivals.path)
        ids += await create_tasks(queue, POOL, {"command": [argv], "maxRunTime": 600}, 1)
    await _wait_complete(arrivals, marks)
    times = [Times() for _ in marks]

    async with open_client(queue, Ports()) as client, trio.open_nursery() as nursery:

        async def cancel(task_id: str, mark: str, result: Times) -> None:
            await client.cancel_task(task_id)
            cancelled = trio.current_time()
            result.empty = await _wait_gone(mark) - cancelled
            with trio.fail_after(GONE_LIMIT):
                result.noticed = await worker.heard(task_id, "the task was cancelled") - cancelled

        for task_id, mark, result in zip(ids, marks, times, strict=True):
            nursery.start_soon(cancel, task_id, mark, result)
    return times


async def _signal_batch(arrivals: Arrivals, variant: Variant) -> list[float]:
    """Start trees here, and signal every process of theirs: TERM, or KILL where that is ignored."""
    marks = list(_marks(variant.at_once))
    processes = [
        await trio.lowlevel.open_process(
            command(mark, *variant.traits, ready=arrivals.path), stdout=subprocess.DEVNULL, start_new_session=True
        )
        for mark in marks
    ]
    await _wait_complete(arrivals, marks)
    seconds: list[float] = []

    async def end(mark: str) -> None:
        begun = trio.current_time()
        await trio.to_thread.run_sync(_signal, mark, variant.kind == "hostile")
        seconds.append(await _wait_gone(mark) - begun)

    async with trio.open_nursery() as nursery:
        for mark in marks:
            nursery.start_soon(end, mark)
    for process in processes:
        await process.wait()
    return seconds


def _signal(mark: str, kill: bool) -> None:
    def look() -> set[proctree.Identity]:
        return proctree.identify(lambda: {each.pid for each in survivors(mark)})

    if kill:
        proctree.kill_all(look)
    else:
        proctree.send(look(), signal.SIGTERM)


def _grid(found: list[Found]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for each in found:
        ending = [times.empty - times.noticed for times in each.times]
        whole = [times.empty for times in each.times]
        to_empty, in_all = Variant(each.kind, each.at_once).promised
        within = sum(end <= to_empty and all_of_it <= in_all for end, all_of_it in zip(ending, whole, strict=True))
        rows[f"{each.kind}, {each.at_once} at once"] = [
            figure(times.noticed for times in each.times),
            figure(ending),
            figure([quantile(ending, 0.99)]),
            figure([to_empty]),
            figure(each.bare),
            figure(whole),
            figure([quantile(whole, 0.99)]),
            figure([in_all]),
            figure([within / len(whole)]),
        ]
    parts = [
        f"{part}{what}" for part in ("noticed to empty", "cancel to empty") for what in ("", ", p99", ", promised")
    ]
    return Grid(["to noticed", *parts[:3], "bare", *parts[3:], "within both"], rows)
