from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.profile import ENGINES, OTHER, PARTS, RULES, count, part_of, split

ROOT = Path(__file__).parents[2]
LOOP = [
    ("<frozen runpy>", "_run_module_as_main"),
    ("worker/__main__.py", "main"),
    ("worker/cli/common.py", "run_async"),
]
LOOP += [("trio/_core/_run.py", "run")]
RUN = [*LOOP, ("trio/_core/_run.py", "unrolled_run"), ("worker/supervisor.py", "Supervisor._run")]
RUN += [("worker/taskrun.py", "TaskRun.run")]
CALL = [("worker/queue/client.py", "ServiceClient.call"), ("worker/http.py", "HttpClient.request"), ("ssl.py", "send")]
THREAD = [("threading.py", "Thread._bootstrap"), ("trio/_core/_thread_cache.py", "WorkerThread._work")]
THREAD += [("trio/_core/_thread_cache.py", "WorkerThread._handle_job")]


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ([*RUN, ("trio/_core/_run.py", "NurseryManager.__aexit__")], "hooks and scopes"),
        ([*RUN, ("plugins/env.py", "EnvHooks.prepare")], "hooks and scopes"),
        ([*RUN, ("worker/payload.py", "PayloadSchema.parse"), ("pydantic/main.py", "validate")], "hooks and scopes"),
        # A call is what it is made for, and not what the client does for all of them.
        ([*LOOP, ("worker/supervisor.py", "Supervisor._claim"), *CALL], "claim"),
        ([*RUN, ("worker/queue/services.py", "Queue.report_completed"), *CALL], "report"),
        ([*RUN, ("plugins/livelog/plugin.py", "LiveLogHooks._link"), *CALL], "log"),
        (
            [
                *RUN,
                ("plugins/livelog/plugin.py", "LiveLogHooks._link"),
                ("worker/queue/services.py", "Queue.create_artifact"),
                *CALL,
            ],
            "upload",
        ),
        # The engine's own machinery, down to what it writes into the log.
        ([*RUN, ("engines/native/engine.py", "NativeBuilder.sandbox")], "process"),
        ([*RUN, ("engines/native/engine.py", "NativeBuilder.sandbox"), ("worker/tasklog.py", "TaskLog.say")], "log"),
        ([*THREAD, ("worker/cgroups.py", "Cgroup.kill"), ("pathlib.py", "Path.write_text")], "process"),
        ([*THREAD, ("subprocess.py", "Popen.__init__"), ("subprocess.py", "Popen._execute_child")], "process"),
        (THREAD, "loop"),
        ([*LOOP, ("trio/_core/_io_epoll.py", "EpollIOManager.get_events")], "loop"),
        ([*LOOP, ("worker/newcomer.py", "work"), ("trio/_core/_run.py", "checkpoint")], OTHER),
        ([*LOOP[:3], ("click/core.py", "invoke")], OTHER),
        # These wait: nothing is used there.
        (THREAD[:2], None),
        ([*THREAD, ("worker/watchdog.py", "Watchdog.wait_overdue"), ("threading.py", "Condition.wait")], None),
    ],
)
def test_a_stack_belongs_to_what_its_innermost_known_call_is_for(stack: list[tuple[str, str]], part: str) -> None:
    assert part_of(stack) == part


def test_samples_are_counted_by_thread_and_part() -> None:
    lines = [
        "run (trio/_core/_run.py:2424);TaskLog.write (worker/tasklog.py:90) 3",
        "run (trio/_core/_run.py:2424);_Tail.append.<locals>.<listcomp> (worker/tasklog.py:9) 2",
        "Thread._bootstrap (threading.py:988);Cgroup.kill (worker/cgroups.py:179) 4",
        "Thread._bootstrap (threading.py:988);WorkerThread._work (trio/_core/_thread_cache.py:209) 900",
    ]
    assert count(lines) == {True: {"log": 5}, False: {"process": 4}}


def test_each_thread_s_time_is_split_by_its_own_samples() -> None:
    samples = {True: Counter(log=3, upload=1), False: Counter(process=900)}
    parts = split(samples, 4.0, 0.5)
    assert parts == dict.fromkeys(PARTS, 0.0) | {"log": 3.0, "upload": 1.0, "process": 0.5}
    # What nobody has looked at is not lost.
    assert split({True: Counter(log=1), False: Counter()}, 1.0, 0.25)[OTHER] == 0.25


def test_the_rules_name_what_there_is() -> None:
    for file, function, part in RULES:
        assert part in PARTS
        if file.startswith(("worker/", "plugins/", "engines/")):
            path = ROOT / file
            assert path.exists(), file
            method = function.rpartition(".")[2]
            assert not function or f"def {method}" in path.read_text(), function


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
def test_a_worker_s_cpu_time_is_split_into_its_parts(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "profile", "--smoke", "--tasks", "150", "--out", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if "py-spy may not look" in done.stderr:
        pytest.skip("py-spy may not look at another process here: that takes root")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "profile.json").read_text())
    found = {each["engine"]: each for each in report["found"]}
    assert list(found) == list(ENGINES)
    for each in found.values():
        assert sum(each["parts"].values()) == pytest.approx(each["all"])
        assert each["all"] > 0
        for part in ("claim", "log", "upload", "report", "hooks and scopes"):
            assert each["samples"][part] > 0, part
        assert each["parts"][OTHER] < 0.1 * each["all"]
    assert found["native"]["parts"]["process"] > found["mock"]["parts"]["process"]
    assert found["native"]["children"] > 0
