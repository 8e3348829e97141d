"""The commands as people use them: real processes, a real queue, real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
WORKER = [sys.executable, "-m", "worker"]
LIMIT = 60  # seconds for one command

Environment = dict[str, str]


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKCLUSTER_", "TC_"))}
    return {**kept, "XDG_STATE_HOME": str(tmp_path / "state"), "TC_WORKER_CONFIG": str(_config(tmp_path))}


def _config(folder: Path) -> Path:
    path = folder / "config.yml"
    path.write_text("worker: {minimumDiskSpace: 0, workDir: work, capacity: 2, cancelPollInterval: 1}\n")
    return path


@contextmanager
def started(command: list[str], environ: Environment) -> Generator[subprocess.Popen[str], None, None]:
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=LIMIT)


def end(worker: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> str:
    """Stop an idle worker without waiting for its poll, which the second signal cuts off; what it said meanwhile."""
    assert worker.stderr is not None
    worker.send_signal(number)
    said = ""
    while "again to end at once" not in said:
        line = worker.stderr.readline()
        assert line, f"ended by itself: {said}"
        said += line
    return said + stop(worker, number)[1]


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    text = ""
    while not re.search(pattern, text):
        line = process.stdout.readline()
        assert line, f"ended before {pattern}: {text}"
        text += line
    return text


@pytest.fixture
def environ(bare: Environment) -> Generator[Environment, None, None]:
    with started([*WORKER, "queue", "--port", "0"], bare) as process:
        lines = read_until(process, "ACCESS_TOKEN=.+\n").splitlines()
        assert [line.partition("=")[0] for line in lines] == [
            "TASKCLUSTER_ROOT_URL",
            "TASKCLUSTER_CLIENT_ID",
            "TASKCLUSTER_ACCESS_TOKEN",
        ]
        yield {**bare, **dict(line.split("=", 1) for line in lines)}
        out, errors = stop(process)
        assert out == ""
        assert re.fullmatch(r"The queue's page: http://127\.0\.0\.1:\d+/\?token=[0-9a-f]{64}\n", errors)
        assert process.returncode == 0


def tc(environ: Environment, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*WORKER, *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)


def task(folder: Path, script: str, **payload: str) -> Path:
    path = folder / "task.yml"
    rest = "".join(f"  {name}: {value}\n" for name, value in payload.items())
    path.write_text(f"payload:\n  maxRunTime: 60\n  command: [[sh, -c, {script!r}]]\n{rest}")
    return path


def test_a_task_from_submit_to_download(environ: Environment, tmp_path: Path) -> None:
    with started([*WORKER, "run"], environ) as worker:
        submitted = tc(environ, "submit", EXAMPLES / "hello-world.yml", "--wait")
        assert submitted.returncode == 0, submitted.stderr
        task_id = submitted.stdout.strip()
        assert f"{task_id}: completed, run 0 on local/" in submitted.stderr

        shown = tc(environ, "status", task_id)
        assert re.match(
            f"{task_id}: completed in local/native, deadline .*\n  run 0: completed on local/", shown.stdout
        )

        for arguments in (["logs", task_id], ["logs", "--follow", task_id]):
            log = tc(environ, *arguments)
            assert (log.returncode, log.stderr) == (0, "")
            assert "\n5: hello, world\n" in log.stdout
            assert "=== Task Finished ===" in log.stdout

        listed = tc(environ, "artifacts", task_id)
        names = [line.split()[-1] for line in listed.stdout.splitlines()]
        assert names == ["public/hello.txt", "public/logs/live.log", "public/logs/live_backing.log"]

        fetched = tc(environ, "artifacts", task_id, "--download", tmp_path / "got")
        assert (fetched.returncode, fetched.stdout) == (0, "")
        assert (tmp_path / "got/public/hello.txt").read_text() == f"hello, world, from task {task_id}\n"
        assert (tmp_path / "got/public/logs/live.log").read_text() == log.stdout
        assert not list((tmp_path / "got").rglob("*.part"))

        examined = tc(environ, "doctor")
        assert examined.returncode == 0, examined.stdout
        assert re.search(r"^ok +credentials .* may claim from local/native$", examined.stdout, re.MULTILINE)

        assert "Traceback" not in end(worker)
        assert worker.returncode == 0


def test_a_running_task_is_followed_and_cancelled(environ: Environment, tmp_path: Path) -> None:
    with started([*WORKER, "run"], environ) as worker:
        task_id = tc(environ, "submit", task(tmp_path, "echo begun; sleep 600")).stdout.strip()
        with started([*WORKER, "logs", "--follow", task_id], environ) as follower:
            read_until(follower, "begun\n")
            so_far = tc(environ, "logs", task_id)
            assert (so_far.returncode, so_far.stdout.splitlines()[-1]) == (0, "begun")

            cancelled = tc(environ, "cancel", task_id)
            assert re.fullmatch(f"{task_id}: exception, run 0 on local/.* \\(canceled\\)\n", cancelled.stdout)
            rest, _ = follower.communicate(timeout=LIMIT)
            assert follower.returncode == 0
            assert rest.splitlines()[-1].startswith("[taskcluster:error]")
        end(worker, signal.SIGINT)
        assert worker.returncode == 0


@pytest.mark.parametrize("payload", [{"logs": "{live: public/a, backing: public/b}"}, {"features": "{liveLog: false}"}])
def test_a_log_is_found_wherever_the_task_wants_it(
    environ: Environment, tmp_path: Path, payload: dict[str, str]
) -> None:
    with started([*WORKER, "run"], environ) as worker:
        task_id = tc(environ, "submit", "--wait", task(tmp_path, "echo found", **payload)).stdout.strip()
        log = tc(environ, "logs", "--", task_id)
        assert "found" in log.stdout.splitlines(), log.stderr
        end(worker)


def test_waiting_for_a_task_that_fails(environ: Environment, tmp_path: Path) -> None:
    with started([*WORKER, "run"], environ) as worker:
        assert tc(environ, "submit", "--wait", task(tmp_path, "exit 1")).returncode == 1
        assert tc(environ, "submit", "--wait", task(tmp_path, "true", colour="red")).returncode == 3
        end(worker)


def test_what_the_queue_refuses(environ: Environment) -> None:
    unknown = tc(environ, "status", "CufX7mTpR1WduEkUVB7eXw")
    assert unknown.returncode == 4
    assert re.fullmatch("error: queue.status: 404 ResourceNotFound: .*\n", unknown.stderr)

    wrong = tc({**environ, "TASKCLUSTER_ACCESS_TOKEN": "sesame"}, "doctor")
    assert wrong.returncode == 1
    assert re.search(r"^bad +credentials +client ", wrong.stdout, re.MULTILINE)
    assert "sesame" not in wrong.stdout + wrong.stderr


def test_a_queue_that_is_not_there(bare: Environment, unused_root_url: str) -> None:
    result = tc({**bare, "TASKCLUSTER_ROOT_URL": unused_root_url}, "status", "CufX7mTpR1WduEkUVB7eXw")
    assert result.returncode == 4
    assert result.stderr.splitlines()[-1].startswith("error: queue.status: no usable answer in 5 attempts")


@pytest.fixture
def unused_root_url() -> str:
    return "http://127.0.0.1:1"


def test_exec_prints_the_log_and_brings_the_artifacts(bare: Environment, tmp_path: Path) -> None:
    done = tc(bare, "exec", EXAMPLES / "hello-world.yml", "--artifacts", tmp_path / "got")
    assert done.returncode == 0, done.stderr
    assert "\n5: hello, world\n" in done.stdout
    assert (tmp_path / "got/public/hello.txt").read_text().startswith("hello, world, from task ")
    assert (tmp_path / "got/public/logs/live_backing.log").read_text() == done.stdout


@pytest.mark.parametrize(
    ("script", "payload", "code", "last_line"),
    [
        ("exit 9", {}, 1, r"\[taskcluster:error\] .*9"),
        ("exit 9", {"onExitStatus": "{retry: [9]}"}, 3, r"\[taskcluster:error\] .*"),
        ("true", {"colour": "red"}, 3, r"\[taskcluster:error\] .*colour: is not a known name.*"),
    ],
)
def test_exec_exits_as_the_task_ends(
    bare: Environment, tmp_path: Path, script: str, payload: dict[str, str], code: int, last_line: str
) -> None:
    done = tc(bare, "exec", task(tmp_path, script, **payload))
    assert done.returncode == code, done.stderr
    assert re.fullmatch(last_line, done.stdout.splitlines()[-1])


def test_exec_copies_bytes_as_they_are(bare: Environment, tmp_path: Path) -> None:
    path = task(tmp_path, r"printf '\377\000\033[1m'; head -c 300000 /dev/zero")
    done = subprocess.run([*WORKER, "exec", path], env=bare, capture_output=True, timeout=LIMIT, check=True)
    assert b"\xff\x00\x1b[1m" + b"\x00" * 300000 in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exec_is_interrupted(bare: Environment, tmp_path: Path, number: signal.Signals) -> None:
    with started([*WORKER, "exec", str(task(tmp_path, "echo begun; sleep 600"))], bare) as process:
        read_until(process, "begun\n")
        rest, errors = stop(process, number)
        assert process.returncode == 130
        assert rest.splitlines()[-1].startswith("[taskcluster:error]")
        assert "Traceback" not in errors


def test_a_bad_task_file_is_no_task(bare: Environment, tmp_path: Path) -> None:
    path = tmp_path / "task.yml"
    path.write_text("payload: {}\nretries: many\nroute: []\n")
    for command in ("exec", "check"):
        result = tc(bare, command, path)
        assert result.returncode == 2
        assert f"error: {path}: retries: " in result.stderr
        assert f"error: {path}: route: is not a known name; did you mean routes?" in result.stderr


def test_without_a_command_there_is_a_queue_too(bare: Environment, tmp_path: Path) -> None:
    del bare["TC_WORKER_CONFIG"]
    process = subprocess.Popen(
        WORKER, env=bare, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            told = read_until(process, "tc-worker submit")
            assert re.search(r"^  http://127\.0\.0\.1:\d+/\?token=\w+$", told, re.M)
            exports = dict(re.findall(r"export (\w+)=(.*)", told))
            submitted = tc({**bare, **exports}, "submit", "--wait", task(tmp_path, "true"))
            assert submitted.returncode == 0, submitted.stderr
            stop(process, signal.SIGINT)
            assert process.returncode == 0
        finally:
            process.kill()


def test_the_demo_shows_a_task_and_stays_until_it_is_interrupted(bare: Environment) -> None:
    with started([sys.executable, "-m", "worker.demo"], bare) as process:
        told = read_until(process, "Ctrl-C ends")
        assert "\n5: hello, world\n" in told
        assert re.search(r"Task \S{22}: completed", told)
        assert re.search(r"http://127.0.0.1:\d+/api/queue/v1/task/\S{22}/artifacts/public/hello.txt", told)
        assert re.search(r"^  http://127\.0\.0\.1:\d+/tasks/\S{22}\?token=\w+$", told, re.M)
        _, errors = stop(process, signal.SIGINT)
        assert process.returncode == 0, errors


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_token_is_in_no_proc_entry_while_a_command_runs(environ: Environment, tmp_path: Path) -> None:
    token = environ["TASKCLUSTER_ACCESS_TOKEN"]
    with started([*WORKER, "run"], environ) as worker:
        task_id = tc(environ, "submit", task(tmp_path, "env; echo begun; sleep 600")).stdout.strip()
        with started([*WORKER, "logs", "--follow", task_id], environ) as follower:
            log = read_until(follower, "begun\n")
            for process in (worker, follower):
                for name in ("environ", "cmdline"):
                    assert token not in _seen_from_outside(process.pid, name)
        assert token not in log
        assert token not in "".join(stop(worker))


def _seen_from_outside(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except PermissionError:
        return ""
