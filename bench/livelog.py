"""How soon a line is at its viewers, how many lines reach one, and what many of them cost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench import writing
from bench.load import create_tasks, open_client
from bench.parameters import Parameters
from bench.processes import (
    POOL,
    BenchmarkFailed,
    Deployment,
    begin_peak,
    cpu_of,
    ended,
    memory_of,
    open_queue,
    open_worker,
)
from bench.report import Figure, Grid, Record, figure, load_average, quantile
from bench.static import PROGRAM, open_bare, open_nginx
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.errors import NotFound

PARTS = {"plugins": {"livelog": {"delay": 0, "lag": "5 minutes"}}}
LIVE = "public/logs/live.log"
ANNOUNCED_LIMIT = 30.0  # seconds until a live log is announced
VIEW_LIMIT = 300.0
LATENCY_RATE = 100  # lines/s where latencies are measured
MANY_RATE = 2000  # lines/s where there are many viewers

NOTES = """lines/s, MB/s: of all viewers together. Where the task writes at a rate, 100 or 2,000 lines/s, each gets
no more than that."""


@dataclass(frozen=True, slots=True)
class Question:
    """So many `lines` at a `rate` (0: as fast as it goes), seen by so many `viewers`."""

    name: str
    lines: int
    rate: float
    viewers: int
    way: str = "http"


@dataclass(slots=True)
class Answer:
    """Seconds, bytes; `cpu` is the server's. `latencies` are of lines, of the worker alone."""

    question: str
    server: str
    seconds: float
    bytes: int
    cpu: float
    memory: int
    viewers: int
    latencies: list[float]

    @property
    def lines(self) -> float:
        """Per second, over all viewers."""
        return self.bytes / writing.LINE / self.seconds if self.seconds else 0.0


def questions(parameters: Parameters) -> list[Question]:
    """`tasks` of the parameters scales the logs, `capacity` is how many viewers many are."""
    many = parameters.capacity
    return [
        Question("latency, http", parameters.tasks, LATENCY_RATE, 1),
        Question("latency, websocket", parameters.tasks, LATENCY_RATE, 1, "websocket"),
        Question("one viewer, http", parameters.tasks * 1000, 0, 1),
        Question("one viewer, websocket", parameters.tasks * 1000, 0, 1, "websocket"),
        Question(f"{many} viewers, http", parameters.tasks * 20, MANY_RATE, many),
    ]


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `livelog.json` and `livelog.md` in `out`. Raises BenchmarkFailed."""
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        answers = trio.run(_measure, Path(name), parameters)
    about = f"{parameters.rounds} rounds; lines of {writing.LINE} bytes."
    record = Record("livelog", about, _grid(parameters, answers), NOTES, begun, before)
    print(record.write(out, answers=[asdict(each) | {"latencies": _quantiles(each.latencies)} for each in answers]))


async def _measure(folder: Path, parameters: Parameters) -> list[Answer]:
    answers = []
    async with open_queue(folder) as queue, open_worker(folder, queue, "native", PARTS) as worker:
        for number in range(1, parameters.rounds + 1):
            for question in questions(parameters):
                answer = await _ask_worker(queue, worker.pid, folder, question)
                answers.append(answer)
                if question.way == "http" and not question.name.startswith("latency"):
                    answers += await _ask_others(folder, question, answer.bytes // question.viewers)
                print(f"round {number}, {question.name}", file=sys.stderr, flush=True)
        worker.send_signal(signal.SIGINT)  # With the TERM that follows it waits for no claim.
    return answers


async def _ask_worker(queue: Deployment, pid: int, folder: Path, question: Question) -> Answer:
    go = folder / "go"
    go.unlink(missing_ok=True)
    command = [sys.executable, writing.__file__, str(go), str(question.lines), str(question.rate)]
    (task_id,) = await create_tasks(queue, POOL, {"command": [command], "maxRunTime": 600}, 1)
    url = await _live_log(queue, task_id)
    if url is None:
        raise BenchmarkFailed(f"{question.name}: no live log after {ANNOUNCED_LIMIT:g} s")
    return await _view(url, pid, "worker", question, go.touch)


async def _live_log(queue: Deployment, task_id: str) -> str | None:
    """Where it is, once it is announced; None if it takes too long."""
    async with open_client(queue, Ports()) as client:
        with trio.move_on_after(ANNOUNCED_LIMIT):
            while True:
                try:
                    return (await client.get_artifact(RunKey(task_id, 0), LIVE)).url
                except NotFound:
                    await trio.sleep(0.1)  # the queue has no call that waits for an artifact
    return None


async def _ask_others(folder: Path, question: Question, size: int) -> list[Answer]:
    """nginx, where it is installed, and hypercorn alone send a file of as many bytes."""
    root = folder / "static"
    root.mkdir(exist_ok=True)
    path = root / "log"
    path.write_bytes((b"0" * (writing.LINE - 1) + b"\n") * (size // writing.LINE))
    answers = []
    if PROGRAM is not None:
        async with open_nginx(folder, root) as (pid, url):
            answers.append(await _view(f"{url}/log", pid, "nginx", question))
    async with open_bare(path) as (pid, url):
        return [*answers, await _view(url, pid, "hypercorn", question)]


async def _view(
    url: str, pid: int, server: str, question: Question, begin: Callable[[], None] = lambda: None
) -> Answer:
    """Have viewers in a process of their own see all of it; `begin` is called when all have begun."""
    before, rss = cpu_of(pid), memory_of(pid, "VmRSS")
    begin_peak(pid)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.viewing", url, str(question.viewers), question.way],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    async with ended(process):
        assert process.stdout is not None
        output = b""
        with trio.move_on_after(VIEW_LIMIT):
            async for chunk in process.stdout:
                output += chunk
                if b"begun\n" in output:
                    begin()
            await process.wait()
    if process.returncode != 0:
        raise BenchmarkFailed(f"{server}, {question.name}: the viewers failed")
    viewed = json.loads(output.splitlines()[-1])
    if len(viewed["digests"]) != 1:
        raise BenchmarkFailed(f"{server}, {question.name}: viewers saw {len(viewed['digests'])} different logs")
    return Answer(
        question.name,
        server,
        seconds=viewed["ended"] - viewed["began"],
        bytes=viewed["bytes"],
        cpu=(cpu_of(pid) - before).own,
        memory=memory_of(pid, "VmHWM") - rss,
        viewers=question.viewers,
        latencies=viewed["latencies"] if server == "worker" else [],
    )


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    return {f"p{share * 100:g}": quantile(latencies, share) for share in (0.5, 0.99, 1)} if latencies else {}


def _grid(parameters: Parameters, answers: Sequence[Answer]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for question in questions(parameters):
        for server in ("worker", "nginx", "hypercorn"):
            found = [each for each in answers if (each.question, each.server) == (question.name, server)]
            if found:
                rows[f"{question.name}, {server}"] = _row(question, found)
    return Grid(["p50 ms", "p99 ms", "highest", "lines/s", "MB/s", "CPU-s/GB", "memory, KiB a viewer"], rows)


def _row(question: Question, found: Sequence[Answer]) -> list[Figure | None]:
    latencies = [_quantiles(each.latencies) for each in found if each.latencies]
    return [
        *(
            figure(1000 * each[share] for each in latencies) if latencies and question.rate else None
            for share in ("p50", "p99", "p100")
        ),
        figure(each.lines for each in found),
        figure(each.bytes / each.seconds / 1e6 for each in found),
        None if found[0].bytes < 10**7 else figure(each.cpu / (each.bytes / 1e9) for each in found),
        figure(each.memory / 1024 / each.viewers for each in found),
    ]
