"""Which part of the worker a trivial task's CPU time goes to: claim, process, log, upload, report, and what is between.

How much it is comes from the kernel's account, for the main thread and for all others; each is split by where py-spy
found these threads when it looked. The queue's answers are canned.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import trio

from bench.load import add_tasks, seconds_of, wait_counted
from bench.parameters import Parameters
from bench.processes import RUN_LIMIT, TICKS, BenchmarkFailed, cpu_of, ended, open_canned, open_worker
from bench.report import Figure, Grid, Record, figure, load_average

RATE = 200  # looks a second
START_LIMIT = 30.0  # seconds until py-spy looks
ENGINES = ("mock", "native")
OTHER = "other"
PARTS = ("claim", "process", "log", "upload", "report", "hooks and scopes", "loop", OTHER)

NOTES = """CPU milliseconds of the worker for a task. hooks and scopes: the payload's validation, plugins and the order
of a run. loop: trio's own work and that of its threads. children: launcher, namespace and command, which are not in
`all`. other: what the table of bench/profile.py has no part for."""

# The beginnings of a file and of a function, and their part; the first that fits counts, from the innermost call on.
# What has no entry is done for its caller, such as HTTP and its signatures for the call that is made.
RULES: Sequence[tuple[str, str, str]] = (
    ("worker/queue/services.py", "Queue.claim_work", "claim"),
    ("worker/queue/services.py", "Queue.reclaim", "claim"),
    ("worker/queue/services.py", "Queue.status", "claim"),  # and `statuses`: whether claims still hold
    ("worker/queue/services.py", "Queue.create_artifact", "upload"),
    ("worker/queue/services.py", "Queue.finish_artifact", "upload"),
    ("worker/queue/services.py", "Queue._report", "report"),
    ("worker/queue/services.py", "Queue.report", "report"),
    ("worker/queue/upload.py", "", "upload"),
    ("worker/queue/transfer.py", "", "upload"),
    ("worker/queue/objects.py", "", "upload"),
    ("worker/supervisor.py", "Supervisor._claim", "claim"),
    ("worker/supervisor.py", "Supervisor._disk_suffices", "claim"),
    ("worker/cancelpoll.py", "", "claim"),
    ("worker/claims.py", "", "claim"),
    ("worker/disk.py", "", "claim"),
    ("worker/taskrun.py", "TaskRun._report", "report"),
    ("worker/taskrun.py", "TaskRun._tell_queue", "report"),
    ("worker/tasklog.py", "", "log"),
    ("worker/logfile.py", "", "log"),
    ("worker/linetimes.py", "", "log"),
    ("worker/redaction.py", "", "log"),
    ("worker/spellings.py", "", "log"),
    ("worker/spool.py", "", "log"),  # compression: trivial tasks have no other artifact
    ("worker/webhooks/", "", "log"),  # where the live log is served
    ("worker/serving/", "", "log"),
    ("worker/viewer/", "", "log"),
    ("plugins/livelog/", "", "log"),
    ("plugins/logprefix.py", "", "log"),
    ("engines/native/output.py", "", "log"),
    ("plugins/artifacts/", "", "upload"),
    ("engines/", "", "process"),
    ("worker/cgroups.py", "", "process"),
    ("worker/folders.py", "", "process"),
    ("worker/freezer.py", "", "process"),
    ("worker/launcher.py", "", "process"),
    ("worker/members.py", "", "process"),
    ("worker/orphans.py", "", "process"),
    ("worker/pidns.py", "", "process"),
    ("worker/process.py", "", "process"),
    ("worker/proctree.py", "", "process"),
    ("worker/trash.py", "", "process"),
    ("subprocess.py", "", "process"),  # in a thread, where nobody has called it
    ("plugins/", "", "hooks and scopes"),
    ("worker/limits.py", "", "hooks and scopes"),
    ("worker/outcome.py", "", "hooks and scopes"),
    ("worker/payload.py", "", "hooks and scopes"),
    ("worker/pluginhost.py", "", "hooks and scopes"),
    ("worker/schema.py", "", "hooks and scopes"),
    ("worker/supervisor.py", "", "hooks and scopes"),
    ("worker/taskrun.py", "", "hooks and scopes"),
    ("worker/watchdog.py", "", "hooks and scopes"),
    ("worker/workshop.py", "", "hooks and scopes"),
)
# Threads that wait for work: py-spy wakes them whenever it looks, and then takes them for busy.
WAITING = (("trio/_core/_thread_cache.py", "WorkerThread._work"), ("threading.py", "Condition.wait"))
_THREAD = ("threading.py", "Thread._bootstrap")
_ENTRY = ("worker/__main__.py", "worker/cli/")
_OURS = ("worker/", "plugins/", "engines/")
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)")

Frame = tuple[str, str]  # file and function


@dataclass(frozen=True, slots=True)
class Profile:
    """One run, in CPU milliseconds for a task: `parts` together are `all`, the worker's own.

    `samples` are what they are from; `threads` is the share of `all` that was not the main thread's.
    """

    round: int
    engine: str
    parts: dict[str, float]
    all: float
    threads: float
    children: float
    samples: dict[str, int]


def run(parameters: Parameters, out: Path) -> None:
    """Measure, print the table, and leave `profile.json` and `profile.md` in `out`. Raises BenchmarkFailed.

    The stacks of each engine's last round are left there too, `profile-ENGINE.raw`, as flame graphs are made of.
    """
    begun, before = datetime.now(UTC), load_average()
    with TemporaryDirectory(prefix="bench-") as name:
        found = trio.run(_measure_all, Path(name), parameters, out)
    about = f"{parameters.tasks} tasks a run, {parameters.capacity} at once; {parameters.rounds} rounds."
    record = Record("profile", about, _grid(found), NOTES, begun, before)
    print(record.write(out, found=[asdict(each) for each in found]))


async def _measure_all(folder: Path, parameters: Parameters, out: Path) -> list[Profile]:
    found = []
    for number in range(1, parameters.rounds + 1):
        for engine in ENGINES:
            path = trio.Path(folder / f"{number}-{engine}")
            await path.mkdir()
            found.append(await _measure(Path(path), number, engine, parameters, out / f"profile-{engine}.raw"))
            print(f"round {number}, {engine}: {found[-1].all:.2f} ms each", file=sys.stderr, flush=True)
    return found


async def _measure(folder: Path, number: int, engine: str, parameters: Parameters, stacks: Path) -> Profile:
    tasks, capacity = parameters.tasks, parameters.capacity
    payload = {"maxRunTime": 60, **({"command": [["/bin/true"]]} if engine == "native" else {})}
    async with (
        open_canned(folder, payload, capacity) as queue,
        open_worker(folder, queue, engine, capacity=capacity) as worker,
    ):
        # The start, and what only the first tasks do, is over before anybody looks.
        await wait_counted(queue, "reported", capacity, RUN_LIMIT, worker)
        async with _sampled(worker.pid, stacks):
            before, main_before = cpu_of(worker.pid), _cpu_of_main(worker.pid)
            await add_tasks(queue, tasks)
            await wait_counted(queue, "reported", capacity + tasks, RUN_LIMIT, worker)
            main, used = _cpu_of_main(worker.pid) - main_before, cpu_of(worker.pid) - before
        await seconds_of(queue, capacity + tasks)
        worker.send_signal(signal.SIGINT)  # With the TERM that follows it waits for no claim.
    threads = max(0.0, used.own - main)
    text = await trio.Path(stacks).read_text()
    samples = count(text.splitlines())
    parts = split(samples, used.own - threads, threads)
    each = 1000 / tasks
    return Profile(
        round=number,
        engine=engine,
        parts={part: each * seconds for part, seconds in parts.items()},
        all=each * used.own,
        threads=threads / used.own if used.own else 0.0,
        children=each * used.children,
        samples=dict(samples[True] + samples[False]),
    )


def _cpu_of_main(pid: int) -> float:
    """Seconds that the process' main thread has used, of those that `cpu_of` tells."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@asynccontextmanager
async def _sampled(pid: int, path: Path) -> AsyncGenerator[None, None]:
    """py-spy looks at the process while the block lasts; then there are collapsed stacks in `path`."""
    program = which("py-spy", path=sysconfig.get_path("scripts"))
    if program is None:
        raise BenchmarkFailed("py-spy is not installed: it is part of the extra `dev`")
    options = ["--format", "raw", "--function", "--rate", f"{RATE}", "--output", f"{path}"]
    process = await trio.lowlevel.open_process(
        [program, "record", "--pid", f"{pid}", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with ended(process):
        assert process.stdout is not None
        said = b""
        with trio.fail_after(START_LIMIT):
            while b"Sampling process" not in said:
                chunk = await process.stdout.receive_some()
                said += chunk
                if not chunk:
                    raise BenchmarkFailed(f"py-spy may not look at the worker, which takes root: {said.decode()}")
        yield
        process.send_signal(signal.SIGINT)
        said += b"".join([chunk async for chunk in process.stdout])
        if await process.wait() != 0:
            raise BenchmarkFailed(f"py-spy exited with code {process.returncode}: {said.decode()}")


def count(lines: Iterable[str]) -> dict[bool, Counter[str]]:
    """How often each part was found, in the main thread (True) and in others. Lines are `frame;frame;... number`."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for line in lines:
        stack, _, number = line.rpartition(" ")
        frames = [_parse(frame) for frame in stack.split(";")]
        part = part_of(frames)
        if part is not None:
            counts[not _begins(frames[0], _THREAD)][part] += int(number)
    return counts


def part_of(stack: Sequence[Frame]) -> str | None:
    """The part of PARTS that a stack, outermost call first, belongs to; None where its thread waits."""
    if any(_begins(stack[-1], waiting) for waiting in WAITING):
        return None
    for frame in reversed(stack):
        for file, function, part in RULES:
            if _begins(frame, (file, function)):
                return part
    files = [file for file, _ in stack]
    if any(file.startswith(_OURS) and not file.startswith(_ENTRY) for file in files):
        return OTHER
    return "loop" if any(file.startswith("trio/") for file in files) else OTHER


def split(samples: dict[bool, Counter[str]], main: float, threads: float) -> dict[str, float]:
    """The seconds that the main thread and the others have used, by part. What nobody has seen is `other`."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for used, counts in ((main, samples[True]), (threads, samples[False])):
        known = counts or Counter({OTHER: 1})
        for part, number in known.items():
            seconds[part] += used * number / known.total()
    return seconds


def _parse(frame: str) -> Frame:
    found = _FRAME.fullmatch(frame)
    return (found["file"], found["function"]) if found else ("", frame)


def _begins(frame: Frame, beginnings: Frame) -> bool:
    return all(text.startswith(beginning) for text, beginning in zip(frame, beginnings, strict=True))


def _grid(found: list[Profile]) -> Grid:
    rows: dict[str, list[Figure | None]] = {}
    for engine in ENGINES:
        mine = [each for each in found if each.engine == engine]
        parts = [figure(each.parts[part] for each in mine) for part in PARTS]
        rows[engine] = [*parts, figure(each.all for each in mine), figure(each.children for each in mine)]
    return Grid([*PARTS, "all", "children"], rows)
