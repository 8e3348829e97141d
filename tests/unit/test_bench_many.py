"""The benchmarks of how long things take, and of what many tasks cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_smoke import run_smoke

from bench.growth import TENTHS, rise
from bench.latency import DELAYS
from bench.parameters import SMOKE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")


def test_latency_is_told_for_each_network(tmp_path: Path) -> None:
    text, report = run_smoke("latency", tmp_path)
    assert [each["delay"] for each in report["found"]] == [delay for delay in DELAYS for _ in range(SMOKE.tasks)]
    for each in report["found"]:
        assert each["to_begin"] > 0
        # The log is announced and stored before the report: there and back twice.
        assert each["to_report"] > 4 * each["delay"]
    assert "| 100 ms each way " in text


def test_scale_has_both_engines_and_every_count(tmp_path: Path) -> None:
    _, report = run_smoke("scale", tmp_path)
    assert [(each["engine"], each["tasks"]) for each in report["found"]] == [
        ("mock", 1),
        ("mock", 6),
        ("native", 1),
        ("native", 6),
    ]
    assert all((each["seconds_to_end"] is None) == (each["engine"] == "mock") for each in report["found"])
    assert all(each["lags"] for each in report["found"])
    assert report["idle"][0]["memory"] > 0


def test_soak_looks_at_the_worker_until_the_end(tmp_path: Path) -> None:
    _, report = run_smoke("soak", tmp_path)
    for engine, looks in report["looks"].items():
        assert len(looks) >= 2, engine
        assert [look["tasks"] for look in looks] == sorted(look["tasks"] for look in looks)


def test_growth_has_each_tenth_of_the_tasks_and_of_the_log(tmp_path: Path) -> None:
    _, report = run_smoke("growth", tmp_path)
    assert [(each["unit"], len(each["tenths"])) for each in report["found"]] == [
        ("task", TENTHS),
        ("MB of a log", TENTHS),
    ]
    assert all(tenth["wall"] > 0 for each in report["found"] for tenth in each["tenths"])


def test_a_rise_is_told_and_a_spread_around_a_level_is_none() -> None:
    assert rise([4.0 + tenth for tenth in range(10)]) == pytest.approx(9 / 4)
    assert rise([4.0, 5.0, 4.0]) == pytest.approx(0)


def test_several_workers_run_all_tasks_between_them(tmp_path: Path) -> None:
    _, report = run_smoke("workers", tmp_path)
    found = [(each["runner"], each["processes"], sum(each["tasks"])) for each in report["found"]]
    assert found == [(runner, processes, SMOKE.tasks) for processes in (1, 4) for runner in ("bare calls", "mock")]
    assert all(len(each["tasks"]) == each["processes"] for each in report["found"])
