"""What the commands share: options, exit codes, errors in one line, and a queue to talk to."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from worker import garbage

if TYPE_CHECKING:
    from worker.config import Config
    from worker.http import HttpClients
    from worker.ports import Ports
    from worker.queue.services import Queue

F = TypeVar("F", bound=Callable[..., Any])

# docs/commands.md has them as a table.
COMPLETED = 0
FAILED = 1
BAD_INPUT = 2
EXCEPTION = 3
NO_QUEUE = 4
WORKER_FAULT = 5
STUCK = 6  # the watchdog's
BUG = 70  # EX_SOFTWARE of sysexits(3)
INTERRUPTED = 130

TASK_ID = re.compile(r"[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]")


class Failure(click.ClickException):
    """Ends a command with an exit code and `error: message`, a line for each of the message's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for classes and reads it from instances

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to stderr."""
        for line in self.message.splitlines():
            click.echo(f"error: {line}", file=file, err=file is None)


def config_option(command: F) -> F:
    """`--config`, which every command takes."""
    return click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Config file; else $TC_WORKER_CONFIG, else ./tc-worker.yml if there is one.",
    )(command)


def _task_id(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not TASK_ID.fullmatch(value):
        raise click.BadParameter("expected a task id, 22 characters as `tc-worker submit` prints them")
    return value


def task_id_argument(command: F) -> F:
    """The argument `ID`. An id may begin with a dash only after `--`."""
    return click.argument("task_id", metavar="ID", callback=_task_id)(command)


def read_config(option: Path | None) -> Config:
    """The config that the option and the environment name. Raises Failure."""
    from worker.config import find_config, load_config
    from worker.documents import BadDocument

    # Also where it stands before the command's name.
    option = option or click.get_current_context().find_root().params.get("config_path")
    try:
        return load_config(find_config(option, os.environ), os.environ)
    except BadDocument as error:
        raise Failure(str(error), BAD_INPUT) from None


def set_up_logging(level: int = logging.WARNING) -> None:
    """The worker's own log goes to stderr."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # They tell whole URLs at lower levels, and a URL may be signed.
    for name in ("httpx", "httpcore", "hypercorn"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def run_async(function: Callable[[], Awaitable[int]]) -> None:
    """Run `function` to its end in Trio and leave with the exit code that it returns.

    What is foreseen to go wrong becomes a `Failure`; Ctrl-C is 130; anything else is a bug and shows its traceback.
    """
    import trio

    garbage.resume()
    try:
        code = trio.run(function)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001  # shown, and told as a bug
        failure = _failure_of(error)
        if failure is None:
            traceback.print_exception(error)
            failure = Failure("this is a bug of the worker", BUG)
        raise failure from None
    sys.exit(code)


def _failure_of(error: BaseException) -> Failure | None:
    from worker.errors import FatalWorkerFault, WorkerFault
    from worker.http import HttpError
    from worker.outcome import leaves
    from worker.queue.errors import QueueError

    found: Failure | None = None
    for leaf in leaves(error):
        match leaf:
            case KeyboardInterrupt():
                return Failure("interrupted", INTERRUPTED)
            case BrokenPipeError():
                raise leaf  # The reader of stdout went away: click ends quietly.
            case Failure():
                found = found or leaf
            case QueueError() | HttpError():
                found = found or Failure(str(leaf), NO_QUEUE)
            case FatalWorkerFault() | WorkerFault():
                found = found or Failure(str(leaf), WORKER_FAULT)
            case OSError():
                found = found or Failure(_os_error(leaf), WORKER_FAULT)
            case _:
                return None
    return found


def _os_error(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@dataclass(frozen=True, slots=True)
class Session:
    """The queue that the config names, and what it takes to talk to it."""

    queue: Queue
    http: HttpClients
    ports: Ports


def root_url_of(config: Config) -> str:
    """The deployment. Raises Failure where none is named."""
    if config.root_url is None:
        raise Failure(
            "no queue is named: set rootUrl in the config or TASKCLUSTER_ROOT_URL; `tc-worker queue` starts one here",
            BAD_INPUT,
        )
    return config.root_url


@asynccontextmanager
async def open_session(config: Config) -> AsyncGenerator[Session, None]:
    """Talk to the queue that the config names, with retries for seconds, not minutes: somebody is waiting."""
    from worker.http import open_http
    from worker.ports import Ports
    from worker.queue.deployment import Deployment
    from worker.queue.retry import RetryPolicy
    from worker.queue.services import Queue

    ports = Ports()
    async with open_http(ports) as http:
        deployment = Deployment(root_url_of(config), http, ports, RetryPolicy(attempts=5, total=15))
        yield Session(Queue(deployment, lambda: config.credentials), http, ports)
