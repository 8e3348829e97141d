from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.claim import VARIANTS
from bench.claim_report import FIGURES, RATIOS
from bench.recording import call_kind
from bench.report import figure, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run with tiny counts printed, and its JSON."""
    out = tmp_path_factory.mktemp("bench")
    argv = [sys.executable, "-m", "bench", "claim", "--smoke", "--out", str(out)]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "claim.md").read_text().strip() == done.stdout.strip()
    return done.stdout, json.loads((out / "claim.json").read_text())


def test_every_variant_has_every_figure(smoke: tuple[str, dict[str, Any]]) -> None:
    text, report = smoke
    assert set(report["figures"]) == {variant.name for variant in VARIANTS}
    for figures in report["figures"].values():
        assert set(figures) == set(FIGURES)
    assert {name: set(ratios) for name, ratios in report["ratios"].items()} == {
        variant.name: set(RATIOS) for variant in VARIANTS if variant.limit
    }
    assert report["spawns_per_second"][0] > 0
    for variant in VARIANTS:
        assert f"| {variant.name} " in text


def test_every_task_was_completed(smoke: tuple[str, dict[str, Any]]) -> None:
    _, report = smoke
    counts = {each["variant"]: each["completed"] for each in report["measurements"]}
    assert counts == {variant.name: report["parameters"]["tasks"] for variant in VARIANTS}


def test_the_limit_makes_the_calls_that_the_worker_makes(smoke: tuple[str, dict[str, Any]]) -> None:
    _, report = smoke
    # How many tasks a claim brings depends on when places become free.
    calls = {
        name: {kind: count for kind, count in each.items() if "claim-work" not in kind}
        for name, each in report["calls"].items()
    }
    for variant in VARIANTS:
        if variant.limit:
            assert calls[variant.name] == calls[variant.limit]


def test_figures_are_medians_with_their_spread() -> None:
    assert figure([3, 1, 2]).shown() == "2 (1 to 3)"
    assert figure([1234.5]).shown() == "1234"
    assert table(["", "a"], [["one", "2"]]) == "|     | a |\n| --- | - |\n| one | 2 |"


def test_calls_are_told_apart_by_kind_and_not_by_task() -> None:
    path = "/api/queue/v1/task/fN1SbArXTPSVFNUvaOlinQ/runs/0/completed"
    assert call_kind("POST", path) == "POST queue/task/…/runs/0/completed"
    assert call_kind("PUT", "/blobs/fN1SbArXTPSVFNUvaOlinQ/0/log") == "PUT (presigned URL)"
