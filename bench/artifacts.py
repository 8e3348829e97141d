"""How fast artifacts are uploaded, beside the same PUTs alone, and what that takes of memory."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import trio

from bench.load import create_tasks, open_client
from bench.parameters import Parameters
from bench.processes import (
    POOL,
    RUN_LIMIT,
    BenchmarkFailed,
    Deployment,
    begin_peak,
    cpu_of,
    memory_of,
    open_queue,
    open_worker,
    run_measured,
)
from bench.report import Figure, Grid, Record, figure, load_average
from worker.model import RunKey
from worker.ports import Ports

SMALL = 1024  # bytes
LARGE = 5 * 2**30  # bytes, of 10,000 tasks in the parameters
POLL = 0.2  # seconds; the queue has no call that waits for a run's end
NOTES = "memory: what the worker's resident memory grew by at most."
IDENTITY = {"contentEncoding": "identity"}


@dataclass(frozen=True, slots=True)
class Question:
    """So many files of so many bytes each, to be uploaded by the storage type `storage`."""

    name: str
    files: int
    size: int
    storage: str

    @property
    def bytes(self) -> int:
        return self.files * self.size


@dataclass(slots=True)
class Answer:
    """Seconds and bytes; `memory` is what the worker's grew by at most."""

    question: str
    uploader: str
    files: int
    bytes: int
    seconds: float
    cpu: float
    memory: int


def questions(parameters: Parameters) -> list[Question]:
    """`tasks` of the parameters scales both: it is how many small files there are."""
    size = LARGE * parameters.tasks // 10_000
    return [
        question
        for storage in ("s3", "object")
        for question in (
            Question(f"{parameters.tasks} files of 1 KiB, {storage}", parameters.tasks, SMALL, storage),
            Question(f"one sparse file of {size / 2**20:.0f} MiB, {storage}", 1, size, storage),
        )
    ]


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `artifacts.json` and `artifacts.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    answers = []
    for number in range(1, parameters.rounds + 1):
        for question in questions(parameters):
            # What was stored goes with the queue, so that the disk need not hold all of it.
            with TemporaryDirectory(prefix="bench-") as name:
                answers += trio.run(_measure, Path(name), parameters, question)
            print(f"round {number}, {question.name}", file=sys.stderr, flush=True)
    about = f"{parameters.rounds} rounds; {parameters.capacity} uploads at once."
    record = Record("artifacts", about, _grid(parameters, answers), NOTES, begun, before)
    print(record.write(out, answers=[asdict(each) for each in answers]))


async def _measure(folder: Path, parameters: Parameters, question: Question) -> list[Answer]:
    answers = []
    for limit in limits(question):
        async with open_queue(folder) as queue:
            answers.append(await _ask_limit(limit, queue, folder, parameters, question))
    parts = {"plugins": {"artifacts": {"parallelism": parameters.capacity}}}
    async with (
        open_queue(folder) as queue,
        open_worker(folder, queue, "native", parts, artifactStorage=question.storage) as worker,
    ):
        answers.append(await _ask_worker(queue, worker.pid, folder, question))
        worker.send_signal(signal.SIGINT)  # With the TERM that follows it waits for no claim.
    return answers


def _script(question: Question, out: str, done: str) -> list[str]:
    """A command that makes the files in `out`, and then the file `done`."""
    lines = [
        "import os, pathlib, sys",
        "out, done, files, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])",
        "os.makedirs(out)",
        "for number in range(files):",
        "    with open(f'{out}/{number:06}', 'wb') as file: file.truncate(size)",
        "pathlib.Path(done).touch()",
    ]
    return [sys.executable, "-c", "\n".join(lines), out, done, str(question.files), str(question.size)]


def limits(question: Question) -> list[str]:
    """What else uploads the same files. To start curl for each of many small ones would measure the starts."""
    if question.storage != "s3":
        return []
    return ["bare", "curl"] if question.files == 1 and which("curl") else ["bare"]


async def _ask_limit(limit: str, queue: Deployment, folder: Path, parameters: Parameters, question: Question) -> Answer:
    files = folder / limit
    await trio.run_process(_script(question, str(files), str(folder / "made")))
    await create_tasks(queue, POOL, {}, 1)
    curl = ["--curl"] if limit == "curl" else []
    argv = ["-m", "bench.puts", POOL, str(files), str(parameters.capacity), *curl]
    _, printed = await run_measured(argv, queue.environment(), folder)
    seconds, cpu = json.loads(printed)
    return Answer(question.name, limit, question.files, question.bytes, seconds, cpu, 0)


async def _ask_worker(queue: Deployment, pid: int, folder: Path, question: Question) -> Answer:
    # A first task has everything loaded that any task needs.
    await _run_task(queue, Question("warm-up", 1, SMALL, question.storage), folder / "warm")
    before, memory = cpu_of(pid), memory_of(pid, "VmRSS")
    begin_peak(pid)
    done = folder / "done"
    resolved = await _run_task(queue, question, done)
    seconds = resolved - done.stat().st_mtime
    cpu, grown = (cpu_of(pid) - before).own, memory_of(pid, "VmHWM") - memory
    return Answer(question.name, "worker", question.files, question.bytes, seconds, cpu, grown)


async def _run_task(queue: Deployment, question: Question, done: Path) -> float:
    """Have a task run and upload; when it was resolved, by the clock that files have too."""
    artifacts = [{"type": "directory", "path": "out", "name": "public", **IDENTITY}]
    payload = {"command": [_script(question, "out", str(done))], "maxRunTime": 600, "artifacts": artifacts}
    (task_id,) = await create_tasks(queue, POOL, payload, 1)
    async with open_client(queue, Ports()) as client:
        with trio.move_on_after(RUN_LIMIT):
            while True:
                status = await client.status(task_id)
                if status.state not in {"unscheduled", "pending", "running"}:
                    break
                await trio.sleep(POLL)
        if status.state != "completed":
            raise BenchmarkFailed(f"{question.name}: {status.state}")
        listed = await client.list_artifacts(RunKey(task_id, 0))
        uploaded = sum(artifact.storage_type == question.storage for artifact in listed)
        if uploaded != question.files + 1:  # and the log
            raise BenchmarkFailed(f"{question.name}: {uploaded} artifacts are there")
    resolved = status.runs[0].resolved
    assert resolved is not None
    return (resolved - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


def _grid(parameters: Parameters, answers: Sequence[Answer]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for question in questions(parameters):
        for uploader in (*limits(question), "worker"):
            found = [each for each in answers if (each.question, each.uploader) == (question.name, uploader)]
            memory = figure(each.memory / 2**20 for each in found) if uploader == "worker" else None
            rows[f"{question.name}, {uploader}"] = [
                figure(each.seconds for each in found),
                figure(each.files / each.seconds for each in found),
                figure(each.bytes / each.seconds / 1e6 for each in found),
                figure(each.cpu for each in found),
                memory,
            ]
    return Grid(["seconds", "files/s", "MB/s", "CPU-s", "memory, MiB"], rows)
