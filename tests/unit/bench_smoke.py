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
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            printed, told = process.communicate(timeout=300)
        finally:
            process.terminate()  # not killed: it ends what it has started
    assert process.returncode == 0, told
    assert (out / f"{name}.md").read_text().strip() == printed.strip()
    report = json.loads((out / f"{name}.json").read_text())
    assert report["figures"], "without these it cannot be compared with another record"
    return printed, report
