"""Where the benchmark `claim` can be run, and what it takes for a regression."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from bench_smoke import run_smoke

from bench.claim_report import regressions
from bench.parameters import SMOKE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

ROOT = Path(__file__).parents[2]
POOL = "proj-bench/ci"


@pytest.fixture(scope="module")
def deployment() -> Generator[dict[str, str], None, None]:
    """The variables of a queue that the benchmark has not started."""
    argv = [sys.executable, "-m", "worker", "queue", "--port", "0"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield dict(process.stdout.readline().strip().split("=", 1) for _ in range(3))
        process.terminate()


def claim(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TASKCLUSTER_")}
    argv = [sys.executable, "-m", "bench", "claim", "--smoke", *options]
    return subprocess.run(
        argv, cwd=ROOT, env=own | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_deployment_is_measured_with_the_credentials_of_the_environment(
    deployment: dict[str, str], tmp_path: Path
) -> None:
    root_url = deployment["TASKCLUSTER_ROOT_URL"]
    done = claim(deployment, "--root-url", root_url, "--task-queue-id", POOL, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "claim.json").read_text())
    assert report["place"] == f"{POOL} at {root_url}"
    counts = {each["variant"]: each["completed"] for each in report["measurements"]}
    assert counts == {"bare calls, queue": SMOKE.tasks, "mock, queue": SMOKE.tasks}
    for path in tmp_path.iterdir():
        assert deployment["TASKCLUSTER_ACCESS_TOKEN"] not in path.read_text()


def test_what_a_deployment_refuses_is_told(deployment: dict[str, str], tmp_path: Path) -> None:
    options = ["--root-url", deployment["TASKCLUSTER_ROOT_URL"], "--task-queue-id", POOL, "--out", str(tmp_path)]
    done = claim({**deployment, "TASKCLUSTER_ACCESS_TOKEN": "wrong"}, *options)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the tasks could not be created: queue.createTask: 401 AuthenticationFailed")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--root-url", "ftp://localhost", "--task-queue-id", POOL], 1, "rootUrl: expected the http or https URL"),
        (["--root-url", "http://127.0.0.1", "--task-queue-id", "ci"], 1, "worker.taskQueueId"),
        (["--root-url", "http://127.0.0.1", "--task-queue-id", POOL], 1, "there are no credentials: set TASKCLUSTER_"),
        (["--root-url", "http://127.0.0.1"], 2, "go together"),
        (["--task-queue-id", POOL, "--root-url", "http://127.0.0.1", "--delay", "5"], 2, "as far away as it is"),
    ],
)
def test_a_place_that_cannot_be_is_told(options: list[str], code: int, message: str) -> None:
    done = claim({}, *options)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_other_benchmarks_have_queues_of_their_own() -> None:
    argv = [sys.executable, "-m", "bench", "soak", "--delay", "5"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "for the benchmark claim alone" in done.stderr


@pytest.mark.full
def test_a_slow_network_has_all_variants_slower(tmp_path: Path) -> None:
    _, report = run_smoke("claim", tmp_path, "--delay", "50")
    assert report["place"] == "50 ms each way to the queue"
    for each in report["measurements"]:
        assert each["seconds"] > 2 * 0.05, each  # there and back, to report


def ratios(speed: float, cpu: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"mock of bare calls": {"tasks_per_second": {"median": speed}, "cpu": {"median": cpu}}}


def test_an_order_of_magnitude_is_a_regression_and_less_is_noise() -> None:
    recorded = ratios(0.5, 2)
    assert regressions(ratios(0.06, 19), recorded) == []
    assert regressions(ratios(0.04, 2), recorded) == ["mock of bare calls: tasks_per_second 0.04, recorded were 0.5"]
    assert regressions(ratios(0.5, 21), recorded) == ["mock of bare calls: cpu 21, recorded were 2"]


def test_what_was_not_accounted_is_no_regression() -> None:
    assert regressions(ratios(0.5, 0), ratios(0.5, 2)) == []
    assert regressions(ratios(0.5, 2), ratios(0.5, 0)) == []
    assert regressions(ratios(0.5, 2), {"native of spawn": ratios(1, 1)["mock of bare calls"]}) == []
