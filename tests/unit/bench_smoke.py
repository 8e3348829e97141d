"""Benchmarks with counts so small that only their working is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_smoke(name: str, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What a run with tiny counts printed, and its JSON."""
    argv = [sys.executable, "-m", "bench", name, "--smoke", "--out", str(out), *options]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / f"{name}.md").read_text().strip() == done.stdout.strip()
    return done.stdout, json.loads((out / f"{name}.json").read_text())
