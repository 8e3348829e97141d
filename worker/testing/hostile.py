"""A process tree that does not want to die, made as its options say. It imports next to nothing, so it starts fast.

    python -ISE hostile.py --mark=abc123 --ready=/tmp/fifo --seconds=300 --traits=orphan,deaf,respawn

    first process ── (gone) ── second ── third      `orphan`, else the second is the first's child
        command         fork, setsid    `respawn`: each of the two makes the other anew when it dies

The mark stands in the arguments of every process, by which a test finds survivors from outside of any namespace. When
all are there, the line `hostile MARK complete` goes to stdout and to the file, or FIFO, of `--ready`. Everything ends
by itself after `--seconds`, in case that a worker does not end it, but for who is frozen.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TRAITS = {
    "orphan": "the second process is forked twice, so that its parent is gone",
    "setsid": "the second process has a session of its own",
    "deaf": "TERM, HUP and INT are ignored",
    "respawn": "two processes make each other anew",
    "cgroup": "the second process moves to the root of every cgroup hierarchy that it may write",
    "env": "the environment is cleared",
    "frozen": "one more process is in a group `hostile-MARK` of the v1 freezer, where there is one that it may write",
    "stopped": "the first process stops itself, by STOP, whenever it goes on",
    "exit": "the first process ends as soon as the tree is complete, and with success",
}
# Unless it has the trait `mute`, the tree keeps stdout open.
MUTE = "mute"
# All but what leaves traces outside of the tree: the frozen one's group is for who runs it to remove.
HOSTILE = ("orphan", "setsid", "deaf", "respawn", "cgroup", "env")

_DEAF_TO = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PAUSE = 0.01  # seconds between attempts to fork where there is a limit of processes


def command(
    mark: str, *traits: str, ready: object = None, seconds: int = 300, python: str = sys.executable
) -> list[str]:
    """The argv of a tree with these `TRAITS`; none make one that obeys TERM. Any `python` of version 3 will do."""
    unknown = {*traits} - {*TRAITS, MUTE}
    if unknown:
        raise ValueError(f"no such traits: {', '.join(sorted(unknown))}")
    options = [f"--mark={mark}", f"--traits={','.join(traits)}", f"--seconds={seconds}"]
    argv = [python, "-ISE", __file__, *options]
    return argv if ready is None else [*argv, f"--ready={ready}"]


class _Tree:
    def __init__(self, options: dict[str, str]) -> None:
        self.mark = options["mark"]
        self.traits = {*options.get("traits", "").split(",")} - {""}
        self.ready = options.get("ready")
        # The clock is the machine's, so that every process knows how much is left.
        self.end = float(options.get("end") or time.monotonic() + float(options.get("seconds", "300")))

    def limit(self) -> None:
        # A child does not inherit its parent's alarm.
        signal.alarm(max(1, round(self.end - time.monotonic())))

    def first(self) -> None:
        """What the command does."""
        self.limit()
        if "deaf" in self.traits:
            for number in _DEAF_TO:
                signal.signal(number, signal.SIG_IGN)
        if MUTE in self.traits:
            _close_output()
        reader, writer = os.pipe()
        if not _fork():
            os.close(reader)
            if "setsid" in self.traits:
                os.setsid()
            if "orphan" in self.traits and _fork():
                os._exit(0)
            self.second(writer)
        os.close(writer)
        if "orphan" in self.traits:
            os.wait()
        if not os.read(reader, 1):
            sys.exit("the tree did not come to be")
        os.close(reader)
        self.tell()
        if "exit" in self.traits:
            os._exit(0)
        while "stopped" in self.traits:
            os.kill(os.getpid(), signal.SIGSTOP)
        _pause()

    def second(self, complete: int) -> None:
        """One of the two that are left when the first is killed."""
        self.limit()
        if "cgroup" in self.traits:
            _leave_cgroups()
        if "frozen" in self.traits:
            _have_frozen(f"hostile-{self.mark}")
        if "respawn" in self.traits:
            self.watch(complete)
        os.write(complete, b"x")
        os.close(complete)
        _pause()

    def watch(self, complete: int) -> None:
        """Have a child, always; the child takes over when this process dies."""
        while True:
            reader, writer = os.pipe()
            child = _fork()
            if child:
                os.close(reader)
                if complete >= 0:
                    os.write(complete, b"x")
                    os.close(complete)
                    complete = -1
                os.waitpid(child, 0)
                os.close(writer)
                continue
            self.limit()
            os.close(writer)
            if complete >= 0:
                os.close(complete)
                complete = -1
            os.read(reader, 1)  # ends when the parent does, since only the parent has the other end
            os.close(reader)

    def tell(self) -> None:
        line = f"hostile {self.mark} complete\n".encode()
        if MUTE not in self.traits:
            os.write(1, line)
        if self.ready:
            descriptor = os.open(self.ready, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, line)
            os.close(descriptor)


def _fork() -> int:
    while True:
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(_PAUSE)


def _pause() -> None:
    while True:
        signal.pause()


def _close_output() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _hierarchies() -> list[tuple[str, list[str]]]:
    """Where each hierarchy of cgroups is mounted, v1 and v2, and with which options: v1's controllers among them."""
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY)
    lines = os.read(mounts, 1 << 20).decode().splitlines()
    os.close(mounts)
    found = [line.split(" ") for line in lines]
    return [(each[4], each[-1].split(",")) for each in found if each[each.index("-") + 1].startswith("cgroup")]


def _leave_cgroups() -> None:
    """Into the root of every hierarchy; where that is forbidden, it stays."""
    for place, _ in _hierarchies():
        try:
            _write(f"{place}/cgroup.procs", "0")
        except OSError:
            continue


def freezer() -> str | None:
    """Where the freezer of v1 is, if its groups may be made by this process."""
    places = [place for place, options in _hierarchies() if "freezer" in options and os.access(place, os.W_OK)]
    return places[0] if places else None


def _have_frozen(group: str) -> None:
    """Make one more process, frozen in that group; none where there is no freezer."""
    if (place := freezer()) is None:
        return
    child = _fork()
    if not child:
        _pause()
    os.mkdir(f"{place}/{group}")  # noqa: PTH102 - it imports next to nothing
    _write(f"{place}/{group}/cgroup.procs", str(child))
    _write(f"{place}/{group}/freezer.state", "FROZEN")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def main(argv: list[str]) -> None:
    """Become what the options in `argv` say."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in argv)
    tree = _Tree(options)
    # Not until the environment is empty: Python itself may put a locale into it.
    if "env" in tree.traits and "end" not in options:
        again = [sys.executable, "-ISE", __file__, *argv, f"--end={tree.end}"]
        os.execve(sys.executable, again, {})  # noqa: S606 - this is what it is for
    tree.first()


if __name__ == "__main__":
    main(sys.argv[1:])
