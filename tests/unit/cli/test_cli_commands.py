from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from worker.cli import commands
from worker.cli.common import BUG, INTERRUPTED, NO_QUEUE, WORKER_FAULT, Failure, run_async
from worker.errors import FatalWorkerFault
from worker.http import ConnectFailed
from worker.queue.errors import NotFound

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
COMMANDS = ["run", "exec", "queue", "submit", "status", "cancel", "logs", "artifacts", "schema", "check", "doctor"]
TASK_ID = "CufX7mTpR1WduEkUVB7eXw"


def invoke(*arguments: str, **environ: str) -> Result:
    environment = {"TASKCLUSTER_ROOT_URL": None, "TC_WORKER_CONFIG": None, **environ}
    return CliRunner(env=environment).invoke(commands, arguments)


def test_help_names_every_command() -> None:
    text = invoke("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
        assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "--nonsense"],
        ["exec"],
        ["exec", "/no/such/file"],
        ["status", "short"],
        ["queue", "--port", "x"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr


@pytest.mark.parametrize("arguments", [["run"], ["status", TASK_ID], ["submit", str(EXAMPLES / "hello-world.yml")]])
def test_without_a_queue_the_remedy_is_told(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "empty.yml"
    config.touch()
    result = invoke(*arguments, "--config", str(config))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no queue is named: set rootUrl")


def test_run_wants_credentials() -> None:
    result = invoke("run", TASKCLUSTER_ROOT_URL="http://localhost:1")
    assert result.exit_code == 2
    assert "there are no credentials" in result.stderr


def test_a_bad_config_is_told_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("worker: {capacity: 0, colour: red}")
    for arguments in (["run", "--config", str(path)], ["--config", str(path), "run"], ["check", str(path)]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert [line.split(": ")[2] for line in result.stderr.splitlines()] == ["worker.capacity", "worker.colour"]


def test_check_tells_a_config_from_a_task() -> None:
    assert invoke("check", str(EXAMPLES / "hello-world.yml")).stdout.endswith("a valid task file\n")
    assert invoke("check", str(EXAMPLES / "tc-worker.yml"), WORKER_TOKEN="x").stdout.endswith("a valid config\n")


def test_check_looks_at_the_payload(tmp_path: Path) -> None:
    path = tmp_path / "task.yml"
    path.write_text("payload: {command: [[echo, 5]], maxRunTime: 10, colour: red}")
    result = invoke("check", str(path))
    assert result.exit_code == 2
    assert f"error: {path}: payload.command[0][1]: " in result.stderr
    assert f"error: {path}: payload.colour: is not a known name" in result.stderr


def test_check_of_a_task_without_payload(tmp_path: Path) -> None:
    path = tmp_path / "task.yml"
    path.write_text("metadata: {name: x}\nretries: 3")
    result = invoke("check", str(path))
    assert (result.exit_code, result.stderr) == (2, f"error: {path}: payload: is required and is missing\n")


def test_schemas_are_json() -> None:
    assert json.loads(invoke("schema", "config").stdout)["title"] == "tc-worker config"
    payload = json.loads(invoke("schema", "payload").stdout)
    assert {"command", "maxRunTime", "artifacts"} <= payload["properties"].keys()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure("x", 7), 7),
        (NotFound("queue.task", 404, "ResourceNotFound", "x"), NO_QUEUE),
        (ConnectFailed("x"), NO_QUEUE),
        (FatalWorkerFault("x"), WORKER_FAULT),
        (FileNotFoundError(2, "No such file", "x"), WORKER_FAULT),
        (KeyboardInterrupt(), INTERRUPTED),
        (ExceptionGroup("g", [ExceptionGroup("g", [ConnectFailed("x")])]), NO_QUEUE),
        (BaseExceptionGroup("g", [ConnectFailed("x"), KeyboardInterrupt()]), INTERRUPTED),
    ],
)
def test_what_is_foreseen_becomes_one_line(error: BaseException, code: int) -> None:
    async def fail() -> int:
        raise error

    @click.command()
    def command() -> None:
        run_async(fail)

    result = CliRunner().invoke(command)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_bug_shows_its_traceback() -> None:
    async def fail() -> int:
        raise ZeroDivisionError

    @click.command()
    def command() -> None:
        run_async(fail)

    result = CliRunner().invoke(command)
    assert result.exit_code == BUG
    assert "ZeroDivisionError" in result.stderr
    assert result.stderr.endswith("error: this is a bug of the worker\n")
