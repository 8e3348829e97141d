"""How a command comes into its cgroups and its PID namespace before it runs: by a small program that becomes it.

The environment of a task may name libraries to be loaded (ld.so(8)), so nothing outside of its tree runs with it: the
launcher gets it on stdin, when it is inside. It also sees to it that the kernel, when the machine has no memory left,
takes the task before the worker (proc(5), oom_score_adj).
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Arguments: the directory, cgroups, `--`, the command. A shell is soonest there.
_SHELL = (
    "/bin/sh",
    "-c",
    'cd "$1" || exit 126; unset PWD OLDPWD SHLVL; shift; '
    "{ read score < /proc/self/oom_score_adj; "
    "echo $((score > 500 ? 1000 : score + 500)) > /proc/self/oom_score_adj; } 2> /dev/null; "
    'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 126; shift; done; shift; '
    '. /proc/self/fd/0; exec "$@" < /dev/null',
    "sh",
)
# Shells drop variables whose names they cannot use, and give some names a meaning: for these Python does the same.
_PYTHON = (
    sys.executable,
    "-ISc",
    "import os, sys\n"
    "end = sys.argv.index('--')\n"
    "os.chdir(sys.argv[1])\n"
    "for group in sys.argv[2:end]:\n"
    "    with open(group + '/cgroup.procs', 'w') as file:\n"
    "        file.write('0')\n"
    "try:\n"
    "    with open('/proc/self/oom_score_adj', 'r+') as file:\n"
    "        file.write(str(min(1000, int(file.read()) + 500)))\n"
    "except OSError:\n"
    "    pass\n"
    "pairs = [entry.split(b'=', 1) for entry in sys.stdin.buffer.read().split(b'\\0') if entry]\n"
    "os.dup2(os.open('/dev/null', os.O_RDONLY), 0)\n"
    "try:\n"
    "    os.execvpe(sys.argv[end + 1], sys.argv[end + 1:], dict(pairs))\n"
    "except OSError as error:\n"
    "    print(f'{sys.argv[end + 1]}: {error.strerror}', file=sys.stderr)\n"
    "    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)\n",
)
_SHELL_NAME = re.compile(
    "(?!(BASH.*|SHELLOPTS|E?UID|PPID|GROUPS|DIRSTACK|FUNCNAME|PIPESTATUS|OPT...|LINENO|S?RANDOM|SECONDS|EPOCH.*|HISTCMD"
    "|IFS|(OLD)?PWD|SHLVL|_)$)[A-Za-z_][A-Za-z0-9_]*"
)


def launch(directory: Path, groups: Iterable[Path], env: Mapping[str, str]) -> tuple[Sequence[str], bytes]:
    """The argv that a command's own is appended to, and what its stdin must have. Its own stdin is empty."""
    if all(map(_SHELL_NAME.fullmatch, env)):
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in env.items()]
        return (*_SHELL, str(directory), *map(str, groups), "--"), os.fsencode("".join(lines))
    entries = [f"{name}={value}" for name, value in env.items()]
    return (*_PYTHON, str(directory), *map(str, groups), "--"), os.fsencode("\0".join(entries))


def memory_file(content: bytes) -> int:
    """A descriptor of a file in memory with that content, to be read from its start. The caller closes it."""
    descriptor = os.memfd_create("environment")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
