from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from engines.base import Ended, FileInvalid, FileMissing, FileUnreadable
from engines.native.commands import shown
from engines.native.engine import Native, NativeConfig, NativeLimits, NativePayload, TaskLimits
from engines.native.files import FolderResult
from worker import proctree
from worker.cgroups import Limits
from worker.errors import MalformedPayload
from worker.orphans import MARK
from worker.ports import Ports
from worker.process import open_containment, owner_of
from worker.services import Services
from worker.testing.runs import log_text, open_run, open_services

T = TypeVar("T")


@asynccontextmanager
async def opened(services: Services, config: NativeConfig | None = None) -> AsyncGenerator[Native, None]:
    engine = Native(config or NativeConfig(), services)
    async with engine.worker_scope():
        yield engine


async def run_native(
    folder: Path,
    command: list[list[str]],
    env: dict[str, str] | None = None,
    config: NativeConfig | None = None,
    limits: TaskLimits | None = None,
) -> tuple[Ended | None, str]:
    """How it ended, and the log."""
    payload = NativePayload(command=command, limits=limits or TaskLimits())
    async with open_services(folder) as services, open_run(folder, payload) as run:
        async with opened(services, config) as engine, engine.builder(run) as builder:
            builder.env.update(env or {})
            async with builder.sandbox() as sandbox:
                await sandbox.wait()
            async with builder.result() as result:
                ended = result.ended
        assert not list((services.work_dir / "tasks").iterdir())
        return ended, await log_text(run)


def is_shell_or_sleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() in {"sh\n", "sleep\n"}


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            yield path.read_text(errors="replace")


def own_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if not line.startswith("[taskcluster")]


async def test_commands_run_in_order_up_to_the_first_that_fails(tmp_path: Path) -> None:
    ended, log = await run_native(tmp_path, [["echo", "one"], ["sh", "-c", "echo two; exit 3"], ["echo", "three"]])
    assert own_lines(log) == ["one", "two"]
    assert ended == Ended(False, 3, "command 1 exited with code 3")


async def test_stdout_and_stderr_keep_their_order(tmp_path: Path) -> None:
    _, log = await run_native(tmp_path, [["sh", "-c", "for i in 1 2 3 4; do echo out$i; echo err$i >&2; done"]])
    assert own_lines(log) == [f"{stream}{i}" for i in range(1, 5) for stream in ("out", "err")]


async def test_what_a_command_printed_last_comes_before_its_exit_code(tmp_path: Path) -> None:
    _, log = await run_native(tmp_path, [["sh", "-c", "seq 20000"], ["echo", "next"]])
    lines = log.splitlines()
    codes = [index for index, line in enumerate(lines) if "Exit Code" in line]
    assert lines[codes[0] - 1] == "20000"
    assert lines[codes[1] - 1] == "next"


async def test_output_is_not_taken_for_text(tmp_path: Path) -> None:
    everything = bytes(range(256)) * 1000
    script = f"import sys; sys.stdout.buffer.write(bytes(range(256)) * {1000})"
    async with (
        open_services(tmp_path) as services,
        open_run(tmp_path, NativePayload(command=[[sys.executable, "-c", script]])) as run,
        opened(services) as engine,
        engine.builder(run) as builder,
    ):
        async with builder.sandbox() as sandbox:
            await sandbox.wait()
        await run.log.close()
        assert everything in b"".join([chunk async for chunk in run.log.follow()])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no-such-command"], "command 0 exited with code 127 (not found)"),
        (["/etc/passwd"], "command 0 exited with code 126 (not executable)"),
        (["sh", "-c", "kill -9 $$"], "command 0 was ended by SIGKILL"),
    ],
)
async def test_a_command_that_cannot_run_fails_and_says_why(tmp_path: Path, argv: list[str], message: str) -> None:
    ended, _ = await run_native(tmp_path, [argv])
    assert ended is not None
    assert not ended.success
    assert ended.message == message


async def test_the_environment_is_the_tasks_and_not_the_workers(tmp_path: Path) -> None:
    _, log = await run_native(tmp_path, [["env"]], {"GREETING": "hello"})
    names = {line.partition("=")[0] for line in own_lines(log)}
    assert "GREETING=hello" in own_lines(log)
    assert names <= {
        "GREETING",
        "HOME",
        "LANG",
        "LC_ALL",
        "LOGNAME",
        "PATH",
        "PWD",
        "SHELL",
        "TASK_WORKDIR",
        "TC_WORKER_TREE",
        "TZ",
        "USER",
        "_",
    }


async def test_a_task_runs_in_its_own_empty_directory(tmp_path: Path) -> None:
    _, log = await run_native(tmp_path, [["sh", "-c", 'pwd; ls -A; test "$PWD" = "$TASK_WORKDIR" && echo same']])
    directory, same = own_lines(log)
    assert Path(directory).is_relative_to(tmp_path)
    assert same == "same"


async def test_directories_that_the_task_made_read_only_are_removed(tmp_path: Path) -> None:
    await run_native(tmp_path, [["sh", "-c", "mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 500 a"]])


async def test_what_a_command_leaves_running_ends_with_the_task(tmp_path: Path) -> None:
    mark = Ports().slug()
    script = (
        "setsid sh -c 'trap \"\" TERM; : > there; while :; do sleep 1000; done' $0 & until [ -e there ]; do :; done"
    )
    await run_native(tmp_path, [["sh", "-c", script, mark]])
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]  # noqa: ASYNC240 - a test
    assert not [line for line in lines if mark.encode() in line]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["echo", "a b"], "echo 'a b'"),
        (["echo", "it's", ""], "echo 'it'\"'\"'s' ''"),
        (["echo", "one\ntwo"], "echo $'one\\ntwo'"),
    ],
)
def test_a_command_is_shown_as_one_line_for_a_shell(argv: Sequence[str], line: str) -> None:
    assert shown(argv) == line


async def result_error(folder: Path, path: str) -> type[Exception] | None:
    try:
        async with FolderResult(Ports(), folder, None).open(path):
            return None
    except (FileInvalid, FileMissing, FileUnreadable) as error:
        return type(error)


async def test_files_are_found_where_a_task_may_leave_them(tmp_path: Path) -> None:
    task, outside = tmp_path / "task", tmp_path / "outside"
    task.mkdir()
    outside.write_text("x")
    (task / "file").write_text("x")
    (task / "inner").symlink_to("file")
    (task / "outer").symlink_to(outside)
    (task / "loop").symlink_to("loop")
    os.mkfifo(task / "fifo")
    assert await result_error(task, "file") is None
    assert await result_error(task, "inner") is None
    assert await result_error(task, str(outside)) is None
    assert await result_error(task, "../outside") is FileInvalid
    assert await result_error(task, "outer") is FileInvalid
    assert await result_error(task, "loop") is FileInvalid
    assert await result_error(task, "fifo") is FileInvalid
    assert await result_error(task, "file/below") is FileMissing
    assert await result_error(task, "x\0y") is FileInvalid
    assert await result_error(task, "x" * 5000) is FileInvalid


async def test_a_walk_finds_regular_files_and_follows_no_links(tmp_path: Path) -> None:
    task = tmp_path / "task"
    (task / "b").mkdir(parents=True)
    (task / "b" / "two").touch()
    (task / "a").touch()
    (task / "link").symlink_to("a")
    (task / "up").symlink_to("..")
    os.mkfifo(task / "fifo")
    result = FolderResult(Ports(), task, None)
    assert [name async for name in result.walk(".")] == ["a", "b/two"]


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


async def test_a_walk_never_has_a_large_folder_in_memory_as_a_whole(tmp_path: Path) -> None:
    class Watching(Ports):
        """Sees how many names come from a thread."""

        most = 0

        async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
            result = await super().run_sync(function, *args)
            if isinstance(result, list):
                self.most = max(self.most, len(result))
            return result

    names = [f"{number:05}" for number in range(25)]
    for name in names:
        (tmp_path / name).touch()
    for number in range(3):
        (tmp_path / f"folder{number}").mkdir()
        (tmp_path / f"folder{number}/file").touch()
    before, ports = open_files(), Watching()
    result = FolderResult(ports, tmp_path, None, piece=10)
    found = [name async for name in result.walk(".")]
    assert sorted(found) == [*names, *(f"folder{number}/file" for number in range(3))]
    assert 0 < ports.most <= 10
    async with aclosing(result.walk(".")) as walk:
        await anext(walk)
    assert open_files() == before


async def test_a_process_that_keeps_the_pipe_open_from_outside_delays_the_end_by_its_limit_only(tmp_path: Path) -> None:
    # A child of the test, not of the task, gets hold of the pipe through /proc.
    script = "echo ready; sleep 1000; :"  # the shell stays: in the midst of an exec a process has no environment
    async with (
        open_services(tmp_path) as services,
        open_run(tmp_path, NativePayload(command=[["sh", "-c", script]])) as run,
        opened(services) as engine,
        engine.builder(run) as builder,
    ):
        async with builder.sandbox():
            text = b""
            while not own_lines(text.decode()):
                text += await run.log.read(len(text))
            pid = next(filter(is_shell_or_sleep, proctree.marked(MARK, owner_of(services.work_dir))))
            # It says so when it has the pipe.
            script = f"exec 3> /proc/{pid}/fd/1; echo ready; exec sleep 1000"
            holder = await trio.lowlevel.open_process(["sh", "-c", script], stdout=subprocess.PIPE)
            assert holder.stdout is not None
            assert await holder.stdout.receive_some(6) == b"ready\n"
        holder.kill()
        await holder.wait()
        await holder.stdout.aclose()
        assert "holds its output open" in await log_text(run)


async def test_too_much_memory_fails_the_task_and_is_named(tmp_path: Path) -> None:
    async with open_containment(Ports(), "probe") as containment:
        if containment.lacking(Limits(memory=1)):
            pytest.skip("no memory controller that the worker may use")
    config = NativeConfig(limits=NativeLimits(memory=64 * 2**20))
    # A child runs out of memory, and the command takes no notice.
    script = f"{sys.executable} -c 'bytearray(200_000_000)'; exit 0"
    ended, log = await run_native(tmp_path, [["sh", "-c", script]], config=config)
    assert ended is not None
    assert not ended.success
    assert "out of memory" in ended.message
    assert "its limit of 64 MiB" in ended.message
    assert "limits: memory 64 MiB" in log


async def test_what_is_left_running_is_ended_and_told(tmp_path: Path) -> None:
    ended, log = await run_native(tmp_path, [["sh", "-c", "setsid sleep 1000 & exit 0"]])
    assert ended == Ended(True, 0)
    assert "ended 1 process that the commands had left running" in log
    assert "Resources used: " in log.splitlines()[-1]


async def test_a_grace_of_its_own(tmp_path: Path) -> None:
    # The command does not end before the process that it leaves behind is deaf.
    script = "(trap '' TERM; echo > deaf; while :; do sleep 1000; done) & until [ -e deaf ]; do sleep 0.01; done"
    payload = NativePayload(command=[["sh", "-c", script]], limits=TaskLimits(kill_grace=0))
    async with open_services(tmp_path) as services, open_run(tmp_path, payload) as run, opened(services) as engine:
        async with engine.builder(run) as builder, builder.sandbox() as sandbox:
            await sandbox.wait()
        assert "did not end when asked to" in await log_text(run)


async def test_a_longer_grace_than_the_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedPayload, match=r"limits\.killGrace: is more than this worker allows"):
        await run_native(tmp_path, [["true"]], limits=TaskLimits(kill_grace=1e6))
