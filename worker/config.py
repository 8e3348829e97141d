"""The config tree: one YAML file, the environment where that is silent, and defaults for the rest."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from pydantic import AfterValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

import engines.registry
import plugins.registry
from worker.documents import BadDocument, read_document
from worker.limits import LimitsConfig
from worker.logconfig import LogConfig
from worker.quantities import Duration, Size
from worker.queue.credentials import Credentials
from worker.reading import Reading
from worker.references import References
from worker.schema import Document, FilePath, JsonObject, secrets_in
from worker.webhooks.config import WebhooksConfig

CONFIG_VARIABLE = "TC_WORKER_CONFIG"
DEFAULT_FILE = Path("tc-worker.yml")
DEFAULT_TASK_QUEUE = "local/native"
# A claim lasts 20 minutes by default, and one that cannot be renewed must leave time for the end of its task.
LONGEST_KILL_GRACE = timedelta(minutes=5)

# The queue's schemas (queue/v1/claim-work-request, task-queue-id) say so.
TASK_QUEUE_PATTERN = r"^[a-zA-Z0-9-_]{1,38}/[a-z]([-a-z0-9]{0,36}[a-z0-9])?$"
WORKER_NAME_PATTERN = r"^[a-zA-Z0-9-_]{1,38}$"


class ConfigError(BadDocument):
    """The config is not what it should be: every problem, each with its path, none with a secret."""


def _check_root_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    bare = url.path in {"", "/"} and not (url.query or url.fragment or url.userinfo)
    if url.scheme not in {"http", "https"} or not url.host or not bare:
        raise PydanticCustomError("root_url", "expected the http or https URL of a deployment, without path")
    return text.rstrip("/")


def _check_certificate(text: str | None) -> str | None:
    try:
        valid = not text or isinstance(json.loads(text), dict)
    except ValueError:
        valid = False
    if not valid:
        raise PydanticCustomError("certificate", "expected the JSON text of a certificate")
    return text or None


WorkerName = Annotated[str, Field(pattern=WORKER_NAME_PATTERN)]


class ShutdownConfig(Document):
    """What the first SIGTERM or SIGINT does to running tasks, and how long their end may take."""

    on_term: Literal["abort", "finish"] = "abort"
    grace: Duration = timedelta(seconds=30)


class WorkerConfig(Document):
    """Which worker this is and how it works. The file's relative paths are relative to the file."""

    task_queue_id: Annotated[str, Field(pattern=TASK_QUEUE_PATTERN)] = DEFAULT_TASK_QUEUE
    worker_group: WorkerName = "local"
    worker_id: WorkerName = Field(default_factory=lambda: default_worker_id(socket.gethostname()))
    capacity: Annotated[int, Field(ge=1)] = 1
    work_dir: FilePath = Field(default_factory=Path)
    cancel_poll_interval: Duration = timedelta(seconds=10)
    kill_grace: Duration = timedelta(seconds=5)
    minimum_disk_space: Size = 10 * 2**30
    minimum_inodes: Annotated[int, Field(ge=0)] = 10_000
    shutdown: ShutdownConfig = ShutdownConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    number_of_tasks: Annotated[int, Field(ge=0)] = 0
    idle_timeout: Duration = timedelta()
    artifact_storage: Literal["auto", "s3", "object"] = "auto"

    @field_validator("kill_grace")
    @classmethod
    def _not_long(cls, value: timedelta) -> timedelta:
        if value > LONGEST_KILL_GRACE:
            raise PydanticCustomError("duration", "expected 5 minutes at most")
        return value

    @field_validator("cancel_poll_interval")
    @classmethod
    def _not_zero(cls, value: timedelta) -> timedelta:
        if not value:
            raise PydanticCustomError("duration", "expected more than 0 seconds")
        return value


class CredentialsConfig(Document):
    """A client of the deployment; `certificate` is the JSON text that temporary credentials come with."""

    client_id: Annotated[str, Field(min_length=1)]
    access_token: Annotated[str, Field(min_length=1, repr=False)]
    certificate: Annotated[str | None, AfterValidator(_check_certificate), Field(repr=False)] = None


class PluginsConfig(Document):
    """All plugins are on, except those in `disabled`. Each has its section, by its name."""

    model_config = ConfigDict(extra="allow")

    disabled: list[str] = []


class ConfigFile(Document):
    """A config file as it is written. The sections of engines and plugins are for these to validate."""

    root_url: Annotated[str, AfterValidator(_check_root_url)] | None = None
    credentials: CredentialsConfig | None = None
    worker: WorkerConfig = Field(default_factory=WorkerConfig)  # not made at import: it has this machine's name
    engine: str = "native"
    engines: dict[str, Any] = {}
    plugins: PluginsConfig = PluginsConfig()
    webhooks: WebhooksConfig = WebhooksConfig()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a worker needs to know. `plugin_configs` has the plugins that are on; `path` is the file."""

    root_url: str | None
    credentials: Credentials | None
    worker: WorkerConfig
    engine: str
    engine_config: Document
    plugin_configs: Mapping[str, Document]
    webhooks: WebhooksConfig
    path: Path | None = field(default=None)

    @property
    def secrets(self) -> list[str]:
        """What the worker itself needs, which no task's log shows."""
        parts = [self.worker, self.engine_config, *self.plugin_configs.values(), self.webhooks]
        own = [self.credentials.access_token] if self.credentials else []
        return own + [secret for part in parts for secret in secrets_in(part)]


def default_worker_id(hostname: str) -> str:
    """The machine's name, as far as a worker id may have it."""
    return re.sub(r"[^a-zA-Z0-9-_]", "-", hostname.partition(".")[0])[:38] or "worker"


def find_config(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The config file: `--config`, else $TC_WORKER_CONFIG, else ./tc-worker.yml if there is one, else none."""
    if option is not None:
        return option
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The config in the file at `path`, completed from the environment. Raises ConfigError. Blocks."""
    if path is None:
        return parse_config({}, environ)
    try:
        document = read_document(path)
    except BadDocument as error:
        raise ConfigError(error.source, error.problems) from None
    return parse_config(document, environ, path)


def parse_config(document: JsonObject, environ: Mapping[str, str], path: Path | None = None) -> Config:
    """The config that `document` describes. Raises ConfigError with every problem. Blocks while `{$file}`s are read."""
    base = path.absolute().parent if path else Path.cwd()
    references = References(environ, base)
    reading = Reading(references.resolve(document), references)
    file = reading.validate(ConfigFile, reading.document, ())
    engine = _engine(reading)
    plugin_configs = _plugins(reading)
    root_url = _root_url(reading, file, environ)
    credentials = _credentials(reading, file, environ)
    problems = reading.told()
    if problems or file is None or engine is None:
        raise ConfigError(str(path) if path else "config", problems)
    return Config(
        root_url=root_url,
        credentials=credentials,
        worker=file.worker.model_copy(update={"work_dir": _work_dir(file.worker, base, environ)}),
        engine=file.engine,
        engine_config=engine,
        plugin_configs=plugin_configs,
        webhooks=file.webhooks.below(base),
        path=path,
    )


def _work_dir(worker: WorkerConfig, base: Path, environ: Mapping[str, str]) -> Path:
    if "work_dir" in worker.model_fields_set:
        return base / worker.work_dir.expanduser()
    # Two workers of one user on one machine must not share it, and differ in their ids at least.
    state = environ.get("XDG_STATE_HOME")
    home = Path(state) if state else Path("~/.local/state").expanduser()
    return home.absolute() / "tc-worker" / worker.worker_id


def _engine(reading: Reading) -> Document | None:
    """The config of the engine that is chosen; the sections of the others are looked at too."""
    known, load = engines.registry.names(), engines.registry.load
    for name in reading.section("engines"):
        if reading.known(f"engines.{name}", name, known):
            reading.part("engines", name, load)
    chosen = reading.document.get("engine", ConfigFile.model_fields["engine"].default)
    return reading.part("engines", chosen, load) if reading.known("engine", chosen, known) else None


def _plugins(reading: Reading) -> Mapping[str, Document]:
    """The configs of the plugins that are on. The others are loaded only to look at their sections."""
    known = plugins.registry.names()
    section = reading.section("plugins")
    for name in section:
        if name != "disabled":
            reading.known(f"plugins.{name}", name, known)
    written = section.get("disabled")
    disabled = written if isinstance(written, list) else []
    for index, name in enumerate(disabled):
        reading.known(f"plugins.disabled[{index}]", name, known)
    wanted = [name for name in known if name not in disabled or name in section]
    made = {name: reading.part("plugins", name, plugins.registry.load) for name in wanted}
    return {name: config for name, config in made.items() if config is not None and name not in disabled}


def _root_url(reading: Reading, file: ConfigFile | None, environ: Mapping[str, str]) -> str | None:
    """The file's, else the environment's."""
    if file is None or file.root_url is not None:
        return file.root_url if file else None
    url = environ.get("TASKCLUSTER_ROOT_URL") or None
    return None if url is None else reading.checked("TASKCLUSTER_ROOT_URL", _check_root_url, url)


def _credentials(reading: Reading, file: ConfigFile | None, environ: Mapping[str, str]) -> Credentials | None:
    """The file's, else the environment's."""
    if file is None:
        return None
    if written := file.credentials:
        return Credentials(written.client_id, written.access_token, written.certificate)
    names = ("TASKCLUSTER_CLIENT_ID", "TASKCLUSTER_ACCESS_TOKEN")
    client_id, access_token = (environ.get(name, "") for name in names)
    if not client_id and not access_token:
        return None
    for name, other in (names, names[::-1]):
        if not environ.get(name):
            reading.tell(name, f"is not set in the environment, and {other} is")
    certificate = reading.checked("TASKCLUSTER_CERTIFICATE", _check_certificate, environ.get("TASKCLUSTER_CERTIFICATE"))
    return Credentials(client_id, access_token, certificate)
