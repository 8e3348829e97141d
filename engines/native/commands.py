"""A task's commands, one after the other."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

from engines.base import Ended
from engines.native.output import Output
from worker.cgroups import Usage
from worker.process import ProcessTree, SpawnFailed
from worker.tasklog import TaskLog


async def run_commands(
    commands: Sequence[Sequence[str]],
    directory: Path,
    env: Mapping[str, str],
    log: TaskLog,
    tree: ProcessTree,
    output: Output,
    end: Callable[[Ended], None],
) -> None:
    """Run `commands` in order up to the first that fails, then call `end` with how it went.

    The log gets what is run before, and exit code, times and result after each.
    """
    ended = Ended(success=True, exit_code=0)
    for index, argv in enumerate(commands):
        log.say(f"Executing command {index}: {shown(argv)}")
        ended = await _run(index, argv, directory, env, log, tree, output)
        if not ended.success:
            break
    end(ended)


async def _run(
    index: int,
    argv: Sequence[str],
    directory: Path,
    env: Mapping[str, str],
    log: TaskLog,
    tree: ProcessTree,
    output: Output,
) -> Ended:
    begun, before = trio.current_time(), tree.usage()
    try:
        process = await tree.spawn(argv, cwd=directory, env=env, output=output.writer)
    except SpawnFailed as error:
        return Ended(success=False, message=f"command {index} could not be started: {error}")
    code = await process.wait()
    await output.drain()
    log.end_output()
    wall, after = trio.current_time() - begun, tree.usage()
    for line in _closing_lines(code, wall, before, after):
        log.say(line)
    if (memory := tree.out_of_memory()) is not None:
        return Ended(success=False, exit_code=code, message=memory)
    if code == 0:
        return Ended(success=True, exit_code=0)
    if code < 0:
        return Ended(success=False, exit_code=code, message=f"command {index} was ended by {_signal(-code)}")
    return Ended(success=False, exit_code=code, message=f"command {index} exited with code {code}{_hint(code)}")


def _closing_lines(code: int, wall: float, before: Usage | None, after: Usage | None) -> list[str]:
    times = []
    if before is not None and after is not None:
        times = [f"User Time: {after.user - before.user:.3f}s", f"Kernel Time: {after.kernel - before.kernel:.3f}s"]
    result = "SUCCEEDED" if code == 0 else "FAILED"
    return [f"Exit Code: {code}", *times, f"Wall Time: {wall:.3f}s", f"Result: {result}"]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hint(code: int) -> str:
    # The launcher is a shell, so these two mean what they mean there (POSIX, Shell Command Language 2.8.2).
    return {126: " (not executable)", 127: " (not found)"}.get(code, "")


def shown(argv: Sequence[str]) -> str:
    """A command as one line that a shell would read the same way."""
    return " ".join(argument if _plain(argument) else _quoted(argument) for argument in argv)


def _plain(argument: str) -> bool:
    return bool(argument) and all(char.isalnum() or char in "@%+=:,./-_" for char in argument)


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return "'" + argument.replace("'", "'\"'\"'") + "'"
    return "$'" + argument.encode("unicode_escape").decode().replace("'", "\\'") + "'"
