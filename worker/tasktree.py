"""What the process is doing: its Trio tasks as a tree, and its threads. For when it hangs.

Shows names, files and lines of code, never the values of variables: these may be secrets.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Collection, Iterator
from itertools import islice
from typing import TypeVar

import trio

T = TypeVar("T")

FRAMES = 12  # of each task, the innermost ones
TASKS = 2000  # a worker has some dozens
ATTEMPTS = 10  # at reading a set that the event loop may be changing


def describe_tasks(root: trio.lowlevel.Task) -> str:
    """Every task below `root`, with its nurseries and the innermost frames of its stack. Works from any thread."""
    return "\n".join(islice(_describe(root, ""), TASKS * (FRAMES + 2)))


def describe_threads() -> str:
    """The stack of every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    return "\n".join(stacks)


def _describe(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}task {task.name}"
    frames = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    for code, line in frames[-FRAMES:]:
        yield f"{indent}  {code.co_filename}:{line} {code.co_qualname}"
    for nursery in _copy(task.child_nurseries):
        yield f"{indent}└ nursery"
        for child in _copy(nursery.child_tasks):
            yield from _describe(child, f"{indent}   ")


def _copy(tasks: Collection[T]) -> list[T]:
    for _ in range(ATTEMPTS):
        try:
            return list(tasks)
        except RuntimeError:  # it changed size
            continue
    return []
