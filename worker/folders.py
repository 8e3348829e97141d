"""Removes what tasks leave on disk, whatever they have made of it."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

log = logging.getLogger("worker")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it. Blocks. What cannot be removed is told in the worker's log."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # Folders without permissions, or more of them in one another than Python can follow.
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            done = subprocess.run([*command, "--", folder], capture_output=True, text=True, check=False)
        if folder.exists():
            log.error("%s could not be removed: %s", folder, done.stderr.strip()[:500])
