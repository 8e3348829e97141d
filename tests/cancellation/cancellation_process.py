"""Other users' workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from worker.testing.realworker import ROOT, environment_of

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--")


def nobodys_python() -> tuple[str, ...] | None:
    """How to run Python as nobody; None where that cannot be done, as when nobody may not read what it needs."""
    if os.geteuid() or shutil.which("setpriv") is None:
        return None
    for program in (sys.executable, "/usr/bin/python3"):
        python = (*AS_NOBODY, program)
        tried = [*python, "-m", "worker", "doctor"]
        done = subprocess.run(tried, env=environment_of(python), cwd=ROOT, capture_output=True, check=False)
        if done.returncode in {0, 1}:  # 1: something of this machine is not as it should be
            return python
    return None


@contextmanager
def common_folder(owner: int | None = None) -> Generator[Path, None, None]:
    """A folder to which every user finds the way, pytest's own being private; `owner` may write to it."""
    with tempfile.TemporaryDirectory(prefix="tc-worker-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if owner is not None:
            os.chown(folder, owner, owner)
        yield folder
