"""Processes that are measured, with the CPU time that the kernel accounts for them (Linux: proc(5), /proc/PID/stat)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import trio

from worker.queue.credentials import Credentials

RUN_LIMIT = 600.0  # seconds for one run
QUEUE_LIMIT = 30.0  # seconds until the queue is ready
TERM_LIMIT = 10.0  # seconds from TERM to KILL
END_LIMIT = 15.0
TICKS = os.sysconf("SC_CLK_TCK")
POOL = "bench/canned"  # the task queue


class BenchmarkFailed(Exception):
    """There is no figure, since something did not do what it should; the text says what."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of user and system time: the process' own, and its reaped children's with theirs."""

    own: float
    children: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.own - other.own, self.children - other.children)


def cpu_of(pid: int) -> Cpu:
    """What the process has used until now; it may be a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return Cpu((user + system) / TICKS, (children_user + children_system) / TICKS)


def begin_peak(pid: int) -> None:
    """Have the peak of the process' memory, VmHWM, begin anew (proc(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_of(pid: int, name: str) -> int:
    """Bytes: VmRSS is what the process has in memory, VmHWM the most that it had (proc(5), /proc/PID/status)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def cpu_of_machine() -> float:
    """Seconds that all cores together have not been idle, taken by other machines on the same hardware included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / TICKS


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the queue is, and who may do everything there; `pid` is None where it is no process of ours."""

    pid: int | None
    root_url: str
    credentials: Credentials

    def environment(self) -> dict[str, str]:
        """The variables by which a process finds it; they are no arguments, which everybody may read."""
        variables = {
            "TASKCLUSTER_ROOT_URL": self.root_url,
            "TASKCLUSTER_CLIENT_ID": self.credentials.client_id,
            "TASKCLUSTER_ACCESS_TOKEN": self.credentials.access_token,
            "TASKCLUSTER_CERTIFICATE": self.credentials.certificate or "",
        }
        return {**plain_environment(), **{name: value for name, value in variables.items() if value}}


def plain_environment() -> dict[str, str]:
    """This process' own, without what names a queue and its credentials."""
    ours = ("TASKCLUSTER_", "TC_WORKER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def open_queue(folder: Path) -> AbstractAsyncContextManager[Deployment]:
    """An embedded queue in a process of its own, that keeps nothing; its stderr goes to a file in `folder`."""
    return _open_server(folder, ["-m", "worker", "queue", "--port", "0"])


def open_canned(folder: Path, payload: dict[str, Any], tasks: int) -> AbstractAsyncContextManager[Deployment]:
    """A process of `bench.canned` with so many tasks, as `open_queue`."""
    return _open_server(folder, ["-m", "bench.canned", "--payload", json.dumps(payload), "--tasks", str(tasks)])


@asynccontextmanager
async def open_worker(
    folder: Path, queue: Deployment, engine: str, parts: dict[str, Any] | None = None, **own: object
) -> AsyncGenerator[trio.Process, None]:
    """A worker for the tasks of `POOL`, with `own` in the part `worker` of its config, and other `parts` of that.

    Its log is in `folder`, and the end of it is shown where the block raises.
    """
    worker = {"taskQueueId": POOL, "workerId": "bench", "minimumDiskSpace": 0}
    config = {
        **(parts or {}),
        "engine": engine,
        "worker": {**worker, "workDir": str(folder / "work"), **own},
    }
    path, log = trio.Path(folder / "worker.yml"), folder / "worker.log"
    await path.write_text(json.dumps(config))
    with _log(log) as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "worker", "run", "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=queue.environment(),
        )
    async with ended(process):
        try:
            yield process
        except Exception:
            print(f"the worker's log:\n{_tail(log)}", file=sys.stderr)
            raise


@asynccontextmanager
async def delayed(deployment: Deployment, seconds: float, folder: Path) -> AsyncGenerator[Deployment, None]:
    """The same deployment over a network that takes so long, each way."""
    if not seconds:
        yield deployment
        return
    argv = [
        sys.executable,
        "-m",
        "bench.delay",
        "--port",
        deployment.root_url.rpartition(":")[2],
        "--delay",
        f"{seconds}",
    ]
    with _log(folder / "delay.log") as stderr:
        process = await trio.lowlevel.open_process(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=plain_environment()
        )
    async with ended(process):
        assert process.stdout is not None
        port = (await process.stdout.receive_some()).decode().strip()
        if not port:
            raise BenchmarkFailed(f"the slow network did not start: {_tail(folder / 'delay.log')}")
        yield replace(deployment, root_url=f"http://127.0.0.1:{port}")


@asynccontextmanager
async def _open_server(folder: Path, arguments: Sequence[str]) -> AsyncGenerator[Deployment, None]:
    argv = [sys.executable, *arguments]
    with _log(folder / "queue.log") as stderr:
        process = await trio.lowlevel.open_process(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=plain_environment()
        )
    async with ended(process):
        variables: dict[str, str] = {}
        with trio.move_on_after(QUEUE_LIMIT):
            variables = await _variables(process)
        if not variables:
            raise BenchmarkFailed(f"the queue did not start: {_tail(folder / 'queue.log')}")
        credentials = Credentials(variables["TASKCLUSTER_CLIENT_ID"], variables["TASKCLUSTER_ACCESS_TOKEN"])
        yield Deployment(process.pid, variables["TASKCLUSTER_ROOT_URL"], credentials)


async def _variables(process: trio.Process) -> dict[str, str]:
    """What the queue prints when it is ready; nothing where it ended before."""
    assert process.stdout is not None
    text = b""
    while text.count(b"\n") < 3:
        chunk = await process.stdout.receive_some()
        if not chunk:
            return {}
        text += chunk
    return dict(line.split("=", 1) for line in text.decode().splitlines())


async def run_measured(argv: Sequence[str], environment: dict[str, str], folder: Path) -> tuple[Cpu, str]:
    """Run a Python process to its end: what it used, and what it wrote to stdout (little). Raises BenchmarkFailed."""
    path = folder / "run.log"
    with _log(path) as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    async with ended(process):
        with trio.move_on_after(RUN_LIMIT) as limit:
            assert process.stdout is not None
            output = b"".join([chunk async for chunk in process.stdout])
            cpu = await _cpu_at_end(process)
            await process.wait()
    if limit.cancelled_caught or process.returncode != 0:
        outcome = "took too long" if limit.cancelled_caught else f"exited with code {process.returncode}"
        raise BenchmarkFailed(f"{' '.join(argv)} {outcome}: {_tail(path)}")
    return cpu, output.decode()


async def _cpu_at_end(process: trio.Process) -> Cpu:
    # Until it is reaped, a process that has ended keeps its account.
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return cpu_of(process.pid)


@asynccontextmanager
async def ended(process: trio.Process) -> AsyncGenerator[None, None]:
    """When the block ends the process does too: TERM, and KILL where that does not help."""
    try:
        yield
    finally:
        with trio.move_on_after(END_LIMIT, shield=True):
            await _end(process)


async def _end(process: trio.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    with trio.move_on_after(TERM_LIMIT):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            await pipe.aclose()


@contextmanager
def _log(path: Path) -> Generator[IO[bytes], None, None]:
    with path.open("wb") as file:
        yield file


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:]
