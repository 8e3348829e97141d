"""Hides the environment's secrets: what a process was started with can be read in /proc for as long as it lives.

Removing a variable from `os.environ` leaves `/proc/PID/environ` as it was. So the process executes itself anew, with
harmless variables only, and takes the others along in a file that exists in memory alone. Imports nothing heavy, since
all that was imported before is imported twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

CARRIER = "TC_WORKER_ENVIRONMENT_FD"

# What the loader, Python itself and the terminal read before or beside `os.environ`.
_HARMLESS = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LOGNAME", "NO_COLOR", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV"}
)
_HARMLESS_PREFIXES = ("DYLD_", "LC_", "LD_", "PYTHON", "XDG_")

WORKER_FAULT = 5  # that of worker.cli.common, which is too much to import here

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def hide_environment() -> None:
    """Execute this process anew where its initial environment has more than harmless variables.

    Call it first of all, before threads and handlers exist. Process id, working directory, open standard streams and
    arguments stay; `os.environ` is complete when the second call, in the new image, returns. On Linux no other process
    of the same user may read the memory of this one or trace it afterwards (prctl(2), PR_SET_DUMPABLE).
    """
    carried = os.environ.pop(CARRIER, None)
    if carried is not None:
        _restore(int(carried))
    elif not all(harmless(name) for name in os.environ):
        _execute_anew()
    if sys.platform == "linux":
        _forbid_dumps()


def harmless(name: str) -> bool:
    """Whether the variable of that name may be seen by others."""
    return name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES)


def encode_environment(environ: Mapping[bytes, bytes]) -> bytes:
    """The variables as one string of octets: neither names nor values can hold a zero."""
    return b"\0".join(name + b"=" + value for name, value in environ.items())


def decode_environment(data: bytes) -> dict[bytes, bytes]:
    """The variables that `encode_environment` was given."""
    pairs = (entry.partition(b"=") for entry in data.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def _execute_anew() -> None:
    descriptor = _memory_file()
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(encode_environment(os.environb))
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.set_inheritable(descriptor, True)
    environ = {name: value for name, value in os.environ.items() if harmless(name)}
    sys.stdout.flush()
    sys.stderr.flush()
    # Not argv[0]: a bare name would be looked up again, and may be another program by now.
    environ[CARRIER] = str(descriptor)
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
    except OSError as error:
        # To go on would break the promise that nobody checks.
        sys.stderr.write(f"error: cannot execute {sys.executable} anew, to hide its environment: {error.strerror}\n")
        sys.exit(WORKER_FAULT)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("environment")
    from tempfile import TemporaryFile

    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _restore(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as file:
        os.environb.update(decode_environment(file.read()))


def _forbid_dumps() -> None:
    import ctypes

    # It cannot fail on a kernel that Python runs on, and without it the worker works as well.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
