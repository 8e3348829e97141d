"""A folder that cannot be removed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def stuck_folder(top: Path) -> Generator[Path, None, None]:
    """Ten files, of which nobody can remove the one that is called 5. The folder may be moved, below `top`."""
    (folder := top / "stuck").mkdir()
    for number in range(10):
        (folder / str(number)).touch()
    if shutil.which("chattr") is None or not _chattr("+i", folder / "5"):
        pytest.skip("no file can be made immutable here")
    try:
        yield folder
    finally:
        for path in top.rglob("5"):
            _chattr("-i", path)


def _chattr(change: str, path: Path) -> bool:
    return subprocess.run(["chattr", change, path], check=False, capture_output=True).returncode == 0
