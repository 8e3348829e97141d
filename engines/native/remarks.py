"""What the log says of a process tree when it has ended."""

from __future__ import annotations

from collections.abc import Iterator

from worker.cgroups import Usage
from worker.process import Ending
from worker.quantities import approximate_size


def warnings_of(ending: Ending, *, by_itself: bool) -> Iterator[str]:
    """What a task's author should know; `by_itself`: the commands had ended, nobody had ended them."""
    if by_itself and ending.left:
        yield f"ended {_processes(ending.left)} that the commands had left running"
    if ending.killed:
        yield f"killed {_processes(ending.killed)} that did not end when asked to (TERM)"
    if ending.strayed:
        yield f"{_processes(ending.strayed)} had left the task's cgroup, and did not get away"


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def in_words(usage: Usage, wall: float) -> str:
    """One line with all that was counted; `wall` in seconds."""
    parts = [f"{usage.user:.3f} s user", f"{usage.kernel:.3f} s kernel", f"{wall:.3f} s wall"]
    if usage.peak_memory is not None:
        parts.append(f"peak memory {approximate_size(usage.peak_memory)}")
    if usage.read is not None and usage.written is not None:
        parts.append(f"read {approximate_size(usage.read)}, written {approximate_size(usage.written)}")
    return f"Resources used: {', '.join(parts)}"
