"""Where the benchmark `claim` can be run, and what it takes for a regression."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import taskcluster
from bench_smoke import run_smoke

from bench.__main__ import run_each
from bench.claim_report import regressions
from bench.processes import BenchmarkFailed
from worker.proctree import descendants, is_alive

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


def temporary(deployment: dict[str, str]) -> dict[str, str]:
    """The same with credentials as `taskcluster signin` gives them, and no more scopes than bench/README.md names."""
    scopes = [
        f"queue:create-task:lowest:{POOL}",
        "queue:create-task:project:none",
        "queue:scheduler-id:-",
        f"queue:claim-work:{POOL}",
        "queue:worker-id:*",
        "queue:status:*",
    ]
    now = datetime.now(UTC)
    made = taskcluster.createTemporaryCredentials(
        deployment["TASKCLUSTER_CLIENT_ID"],
        deployment["TASKCLUSTER_ACCESS_TOKEN"],
        now - timedelta(minutes=5),
        now + timedelta(minutes=30),
        scopes,
    )
    names = {"CLIENT_ID": "clientId", "ACCESS_TOKEN": "accessToken", "CERTIFICATE": "certificate"}
    return {**deployment, **{f"TASKCLUSTER_{name}": made[key] for name, key in names.items()}}


def test_a_deployment_is_measured_with_the_credentials_of_the_environment(
    deployment: dict[str, str], tmp_path: Path
) -> None:
    root_url = deployment["TASKCLUSTER_ROOT_URL"]
    done = claim(temporary(deployment), "--root-url", root_url, "--task-queue-id", POOL, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "claim.json").read_text())
    assert report["place"] == f"{POOL} at {root_url}"
    assert [each["variant"] for each in report["measurements"]] == ["bare calls, queue", "mock, queue"]
    for path in tmp_path.iterdir():
        assert deployment["TASKCLUSTER_ACCESS_TOKEN"] not in path.read_text()


def test_what_a_deployment_refuses_is_told(deployment: dict[str, str], tmp_path: Path) -> None:
    options = ["--root-url", deployment["TASKCLUSTER_ROOT_URL"], "--task-queue-id", POOL, "--out", str(tmp_path)]
    done = claim({**deployment, "TASKCLUSTER_ACCESS_TOKEN": "wrong"}, *options)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: claim: the tasks could not be created: queue.createTask: 401 AuthenticationFailed"
    )


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


def ratios(name: str, speed: float) -> dict[str, dict[str, dict[str, float]]]:
    return {name: {"tasks_per_second": {"median": speed}}}


def test_an_order_of_magnitude_is_a_regression_and_less_is_noise() -> None:
    recorded = ratios("mock of bare calls", 0.5)
    assert regressions(ratios("mock of bare calls", 0.06), recorded) == []
    assert regressions(ratios("mock of bare calls", 0.04), recorded) == [
        "mock of bare calls: 0.04 of its tasks/s, recorded are 0.5"
    ]
    assert regressions(ratios("native of spawn", 0.04), recorded) == []


def test_a_benchmark_that_fails_keeps_no_other_from_running() -> None:
    ran = []

    def fails() -> None:
        raise ExceptionGroup("", [BenchmarkFailed("there is no figure")])

    failed = run_each({"first": fails, "second": lambda: ran.append("second")})
    assert (failed, ran) == (["first: there is no figure"], ["second"])


def test_what_is_not_foreseen_is_no_sentence() -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_each({"first": fails})


def test_a_benchmark_that_fails_is_told_in_a_sentence(tmp_path: Path) -> None:
    # There is nothing to divide by when every task is over before the soak's first look.
    argv = [sys.executable, "-m", "bench", "soak", "--smoke", "--tasks", "1", "--out", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "Error: soak: mock: the tasks were over before the worker could be looked at twice"


def test_what_a_benchmark_has_started_ends_with_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "soak", "--out", str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read(1)  # It tells of the first tasks.
        started = descendants([process.pid])
        process.terminate()
        process.communicate()
    assert len(started) >= 2
    assert not [each for each in started if is_alive(*each)]
