from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from worker.config import Config, ConfigError, default_worker_id, find_config, load_config, parse_config

DESIGN_EXAMPLE = """
rootUrl: http://localhost:8080
credentials:
  clientId: static/worker
  accessToken: {$env: WORKER_TOKEN}
worker:
  taskQueueId: proj-x/native
  workerGroup: local
  workerId: w1
  capacity: 4
  workDir: /var/lib/tc-worker
  cancelPollInterval: 10 seconds
  killGrace: 5 seconds
  minimumDiskSpace: 10 GiB
  shutdown: {onTerm: abort, grace: 30 seconds}
  numberOfTasks: 0
  idleTimeout: 0 seconds
engine: native
plugins: {disabled: [], maxRunTime: {maxRunTime: 4 hours}, artifacts: {}, livelog: {}, logPrefix: {}}
webhooks: {provider: local, host: 127.0.0.1, port: 0}
"""


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = folder / "tc-worker.yml"
    path.write_text(text)
    return load_config(path, environ or {})


def problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_the_example_of_the_design_page(tmp_path: Path) -> None:
    config = load(tmp_path, DESIGN_EXAMPLE, {"WORKER_TOKEN": "sesame-opens"})
    assert config.root_url == "http://localhost:8080"
    assert config.credentials is not None
    assert (config.credentials.client_id, config.credentials.access_token) == ("static/worker", "sesame-opens")
    assert config.worker.task_queue_id == "proj-x/native"
    assert config.worker.capacity == 4
    assert config.worker.work_dir == Path("/var/lib/tc-worker")
    assert config.worker.cancel_poll_interval == timedelta(seconds=10)
    assert config.worker.minimum_disk_space == 10 * 2**30
    assert config.worker.shutdown.on_term == "abort"
    assert config.worker.shutdown.grace == timedelta(seconds=30)
    assert config.engine == "native"
    assert {"artifacts", "livelog", "logPrefix", "maxRunTime"} <= config.plugin_configs.keys()
    assert config.webhooks.host == "127.0.0.1"


def test_the_certificates_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    tls = load(tmp_path, "webhooks: {tls: {certificate: a.pem, key: /etc/b.pem}}").webhooks.tls
    assert tls is not None
    assert (tls.certificate, tls.key) == (tmp_path / "a.pem", Path("/etc/b.pem"))


def test_without_a_file_there_are_defaults() -> None:
    config = parse_config({}, {"XDG_STATE_HOME": "/state"})
    assert config.root_url is None
    assert config.credentials is None
    assert config.worker.task_queue_id == "local/native"
    assert config.worker.work_dir == Path("/state/tc-worker") / config.worker.worker_id
    assert config.worker.kill_grace == timedelta(seconds=5)
    assert config.worker.capacity == 1


def test_a_plugin_that_is_disabled_has_no_config(tmp_path: Path) -> None:
    config = load(tmp_path, "plugins: {disabled: [livelog]}")
    assert "livelog" not in config.plugin_configs
    assert "logPrefix" in config.plugin_configs


def test_every_problem_is_told_with_its_path(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
rotUrl: http://localhost
worker: {capacity: 0, killGrace: soon, taskQueueId: nope, shutdown: {onterm: abort}, cancelPollInterval: 0}
engine: nativ
engines: {native: {limitz: 1}, warp: {}}
plugins: {disabled: [livelogs], artefacts: {}, env: 7}
webhooks: {port: many}
""",
    )
    assert found["rotUrl"] == "is not a known name; did you mean rootUrl?"
    assert "greater than or equal to 1" in found["worker.capacity"]
    assert "expected a duration" in found["worker.killGrace"]
    assert "pattern" in found["worker.taskQueueId"]
    assert found["worker.shutdown.onterm"] == "is not a known name; did you mean onTerm?"
    assert "more than 0 seconds" in found["worker.cancelPollInterval"]
    assert "did you mean native?" in found["engine"]
    assert "is not a known name" in found["engines.native.limitz"]
    assert "is not a known name" in found["engines.warp"]
    assert "did you mean livelog?" in found["plugins.disabled[0]"]
    assert "did you mean artifacts?" in found["plugins.artefacts"]
    assert "plugins.env" in found
    assert "webhooks.port" in found


def test_values_come_from_the_environment_and_from_files_anywhere(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    config = load(
        tmp_path,
        """
credentials: {clientId: {$env: WHO}, accessToken: {$file: token}}
worker: {capacity: {$env: HOW_MANY}, workerId: {$env: WHICH}, killGrace: {$env: GRACE}}
plugins: {disabled: [{$env: LESS}]}
""",
        {"WHO": "static/w", "HOW_MANY": "7", "WHICH": "12345", "GRACE": "3 seconds", "LESS": "livelog"},
    )
    assert config.credentials is not None
    assert config.credentials.client_id == "static/w"
    assert config.credentials.access_token == "from-the-file"
    assert config.worker.capacity == 7
    assert config.worker.worker_id == "12345"
    assert config.worker.kill_grace == timedelta(seconds=3)
    assert "livelog" not in config.plugin_configs


def test_a_reference_that_leads_nowhere_names_path_and_variable(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
credentials: {clientId: {$env: NOBODY}, accessToken: {$file: missing}}
worker: {workerId: {$env: A, $file: b}, capacity: {$env: NONE}}
""",
    )
    assert found["credentials.clientId"] == "the environment variable NOBODY is not set"
    assert "missing cannot be read: No such file" in found["credentials.accessToken"]
    assert "expected {$env: NAME} or {$file: PATH}" in found["worker.workerId"]
    assert found["worker.capacity"] == "the environment variable NONE is not set"
    assert len(found) == 4


def test_no_error_shows_a_secret(tmp_path: Path) -> None:
    environ = {"SECRET": "hush-hush", "NUMBER": "-987654"}
    text = """
engine: {$env: SECRET}
rootUrl: {$env: SECRET}
credentials: {clientId: a, accessToken: b, certificate: {$env: SECRET}}
worker: {workerId: {$env: SECRET}, capacity: {$env: NUMBER}, killGrace: {$env: SECRET}, taskQueueId: {$env: SECRET}}
plugins: {disabled: [{$env: SECRET}], maxRunTime: {maxRunTime: {$env: SECRET}}}
webhooks: {provider: {$env: SECRET}, publicUrl: {$env: SECRET}}
"""
    path = tmp_path / "tc-worker.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    assert len(caught.value.problems) >= 9
    assert "hush" not in str(caught.value)
    assert "987654" not in str(caught.value)


def test_a_config_shows_no_token(tmp_path: Path) -> None:
    config = load(tmp_path, "credentials: {clientId: a, accessToken: hush-hush}")
    assert "hush" not in repr(config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker: {capacity: 1\n  token: hush", "line 2"),
        ("worker: {}\nworker: {}", "line 2, column 1: worker is there twice"),
        ("1: 2", "line 1, column 1: a name is not text"),
        ("- a", "expected an object"),
        ("worker: !!set {a}", "neither JSON nor plain YAML"),
        ("worker: {capacity: .inf}", "neither JSON nor plain YAML"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)
    assert str(tmp_path / "tc-worker.yml") in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yml", {})


def test_the_environment_fills_in_what_the_file_leaves_out(tmp_path: Path) -> None:
    environ = {
        "TASKCLUSTER_ROOT_URL": "https://tc.example.com/",
        "TASKCLUSTER_CLIENT_ID": "me",
        "TASKCLUSTER_ACCESS_TOKEN": "sesame",
        "TASKCLUSTER_CERTIFICATE": json.dumps({"version": 1}),
    }
    config = load(tmp_path, "", environ)
    assert config.root_url == "https://tc.example.com"
    assert config.credentials is not None
    assert config.credentials.client_id == "me"
    assert config.credentials.certificate == '{"version": 1}'

    config = load(tmp_path, "rootUrl: http://here:1\ncredentials: {clientId: file, accessToken: token}", environ)
    assert config.root_url == "http://here:1"
    assert config.credentials is not None
    assert (config.credentials.client_id, config.credentials.certificate) == ("file", None)


def test_half_of_the_credentials_are_none(tmp_path: Path) -> None:
    found = problems(tmp_path, "", {"TASKCLUSTER_CLIENT_ID": "me", "TASKCLUSTER_ROOT_URL": "ftp://x"})
    assert "is not set in the environment" in found["TASKCLUSTER_ACCESS_TOKEN"]
    assert "http or https URL" in found["TASKCLUSTER_ROOT_URL"]
    found = problems(tmp_path, "credentials: {clientId: a}\nrootUrl: http://u:p@host/x?y")
    assert found["credentials.accessToken"] == "is required and is missing"
    assert "http or https URL" in found["rootUrl"]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "worker: {workDir: work}").worker.work_dir == tmp_path / "work"


def test_the_config_file_is_found_in_the_order_of_the_design(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert find_config(None, {}) is None
        (tmp_path / "tc-worker.yml").touch()
        assert find_config(None, {}) == Path("tc-worker.yml")
        assert find_config(None, {"TC_WORKER_CONFIG": "named.yml"}) == Path("named.yml")
        assert find_config(Path("option.yml"), {"TC_WORKER_CONFIG": "named.yml"}) == Path("option.yml")


@pytest.mark.parametrize(
    ("hostname", "worker_id"),
    [("box.example.com", "box"), ("Fön", "F-n"), ("", "worker"), ("x" * 50, "x" * 38), ("a_b-c", "a_b-c")],
)
def test_the_worker_is_named_after_its_machine(hostname: str, worker_id: str) -> None:
    assert default_worker_id(hostname) == worker_id


def test_the_worker_knows_which_secrets_are_its_own() -> None:
    dns = {"ip": "203.0.113.5", "domain": "workers.example.com", "secret": "dns secret"}
    bucket = {"bucket": "bucket", "region": "eu-1", "accessKeyId": "id", "secretAccessKey": "bucket key"}
    document = {
        "rootUrl": "https://tc.example.com",
        "credentials": {"clientId": "me", "accessToken": "my token"},
        "webhooks": {"provider": "statelessDns", "host": "0.0.0.0", "statelessDns": dns},
        "worker": {"log": {"redact": {"secrets": ["another"]}}},
        "plugins": {
            "artifacts": {"store": {"s3": bucket}},
        },
    }
    assert set(parse_config(document, {}).secrets) == {"my token", "another", "bucket key", "dns secret"}
    assert parse_config({}, {}).secrets == []
