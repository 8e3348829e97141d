"""A PID namespace of a run's own: when its init dies, the kernel ends everything in it, wherever it has moved.

Made and entered by `unshare` and `nsenter` (util-linux), which takes CAP_SYS_ADMIN. The init is a `cat` that reads from
the worker: when the worker lets go of the other end, or dies itself, it reads the end of its input and exits.
Source: pid_namespaces(7).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache

import trio

from worker import proctree
from worker.proctree import Identity

# A mount namespace comes with it, for a /proc of its own: mounts that the machine makes appear there, a task's do not
# appear on the machine.
_HOLDER = ("--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave", "--")
# With SIGCHLD ignored the kernel itself reaps the orphans that the init adopts. It stays out of the task's cgroups: to
# join them takes milliseconds.
_INIT = ("env", "--ignore-signal=CHLD", "cat")
_READY_LIMIT = 10.0  # seconds
_END_LIMIT = 1.0  # seconds, from KILL to the end of all


class NoNamespace(Exception):
    """It could not be made; the text says why."""


class PidNamespace:
    """`init` is its process 1, by the worker's own numbers; `holder` is init's parent, outside."""

    def __init__(self, holder: trio.Process, init: int) -> None:
        self.holder = holder
        self.init = init
        self._init_descriptor = os.pidfd_open(init)

    def entry(self) -> Sequence[str]:
        """The argv that a command's own is appended to, to run in here. A process outside waits for it.

        It comes with the session and the process group that it had outside: `session` gives it its own.
        """
        own = f"/proc/{self.holder.pid}/ns"
        return _program("nsenter"), f"--pid={own}/pid_for_children", f"--mount={own}/mnt", "--"

    @staticmethod
    def session() -> Sequence[str]:
        """The argv that a command's own is appended to, inside, to lead a session."""
        return _program("setsid"), "--"

    def members(self, leaders: Iterable[int]) -> set[Identity]:
        """Who is in here, `leaders` being the processes that were started with `entry`."""
        found = proctree.descendants([self.holder.pid, *leaders])
        return {each for each in found if each.pid != self.init}

    def kill(self) -> None:
        """KILL to all, at once."""
        with suppress(ProcessLookupError):  # Where it has ended all others have.
            signal.pidfd_send_signal(self._init_descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Let go of a namespace that has ended."""
        os.close(self._init_descriptor)


@asynccontextmanager
async def open_pidns(env: Mapping[str, str]) -> AsyncGenerator[PidNamespace, None]:
    """A namespace for as long as the block lasts; when it is left, KILL is sent to all in it.

    Its init has the environment `env` and PATH. Raises NoNamespace. Cancellation is noticed before it is made. Leaving
    it takes a second at most; when `holder` has ended all in it are dead and reaped.
    """
    ours, theirs = socket.socketpair()
    with theirs, trio.socket.from_stdlib_socket(ours) as line:
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            holder = await trio.lowlevel.open_process(
                [_program("unshare"), *_HOLDER, *_INIT],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), **env},
                start_new_session=True,
            )
            theirs.close()
            namespace = await _await_init(holder, line)
        try:
            yield namespace
        finally:
            namespace.kill()
            with trio.move_on_after(_END_LIMIT, shield=True):
                await holder.wait()
            namespace.close()


async def _await_init(holder: trio.Process, line: trio.socket.SocketType) -> PidNamespace:
    assert holder.stderr is not None
    async with holder.stderr:
        with trio.move_on_after(_READY_LIMIT), suppress(ConnectionError):
            # It runs when it sends back what it was sent.
            await line.send(b"\n")
            if await line.recv(1):
                return PidNamespace(holder, proctree.children(holder.pid)[0])
        holder.kill()
        await holder.wait()
        said = (await holder.stderr.receive_some(4096)).decode(errors="replace").strip()
    raise NoNamespace(said or f"unshare did not begin in {_READY_LIMIT:.0f} s")


async def namespaces_work() -> bool:
    """Whether this machine permits all this; it is tried."""
    try:
        async with open_pidns({}) as namespace:
            argv = [*namespace.entry(), *namespace.session(), "true"]
            return (await trio.run_process(argv, check=False, capture_stderr=True)).returncode == 0
    except NoNamespace:
        return False


@cache
def _program(name: str) -> str:
    """The path of a program, by the worker's own PATH: never by that of a task. Raises NoNamespace."""
    if (path := shutil.which(name)) is None:
        raise NoNamespace(f"{name} is not installed")
    return path
