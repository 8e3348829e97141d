"""Where content is to be had: an artifact of this deployment, one that the index names, or any URL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from plugins.mounts.payload import Content
from worker.errors import ResourceUnavailable, TaskFault
from worker.queue.errors import ApiError, QueueError, Unauthorized
from worker.queue.services import Index
from worker.run import Run

# What httpx raises for a URL that is none; a lone surrogate it notices late.
BAD_URL = (httpx.InvalidURL, UnicodeError)

Locate = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Source:
    """One content that is downloaded. `name` is for people.

    `address` is what the content is kept by: sources of one address may share it. With `sha256` it is right for ever,
    else it is to be asked about each time. Those of one `origin` too may share a download: what one of them is refused,
    the other would be. `locate` gives a URL, a secret, and is asked for each attempt; `expires` says that one may be
    refused later, so that a new one is of use.
    """

    name: str
    address: str
    origin: str
    sha256: str | None
    locate: Locate
    expires: bool

    @property
    def key(self) -> str:
        """What downloads are shared by."""
        return f"{self.address} {self.origin}"


async def find_source(run: Run[Any], content: Content) -> Source:
    """Where `content`, which is not in the payload itself, is. Raises TaskFault and ResourceUnavailable.

    Whether the run may read an artifact that is not public the queue is asked each time, with the run's credentials.
    """
    if content.url is not None:
        return _of_url(content.url, content.sha256)
    assert content.artifact is not None
    task_id = content.task_id
    if task_id is None:
        assert content.namespace is not None
        with _told(f"namespace {content.namespace} in the index"):
            client = run.queue.client
            index = Index(client.deployment, client.credentials)
            task_id = (await index.find_task(content.namespace)).task_id
    return await _of_artifact(run, task_id, content.artifact, content.sha256)


def _of_url(url: str, sha256: str | None) -> Source:
    async def locate() -> str:
        return url

    address = f"sha256:{sha256}" if sha256 else f"url:{url}"
    return Source(plain(url), address, url, sha256, locate, expires=False)


async def _of_artifact(run: Run[Any], task_id: str, artifact: str, sha256: str | None) -> Source:
    name = f"artifact {artifact} of task {task_id}"

    async def ask() -> str:
        with _told(name):
            return (await run.queue.latest_artifact(task_id, artifact)).url

    if sha256 and artifact.startswith("public/"):
        return Source(name, f"sha256:{sha256}", name, sha256, ask, expires=True)
    first = await ask()
    unused = [first]

    async def locate() -> str:
        return unused.pop() if unused else await ask()

    # Hashes of artifacts are no secrets (chain of trust publishes them), so content that not everybody may read is kept
    # by its name. A storage's URL names the run: a later run's artifact has another address.
    address = f"artifact:{task_id}/{artifact}:{sha256 or plain(first)}"
    return Source(name, address, name, sha256, locate, expires=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The services' errors: refusals are the task's fault, but for a worker's own credentials."""
    try:
        yield
    except Unauthorized as error:
        raise ResourceUnavailable(f"{what} is not to be had: {_line(error)}") from error
    except ApiError as error:
        raise TaskFault(f"{what} is not to be had: {_line(error)}") from error
    except QueueError as error:
        raise ResourceUnavailable(f"{what} is not to be had: {_line(error)}") from error


def _line(error: QueueError) -> str:
    # A service's text about scopes has many lines, and the log's last one is to tell all.
    return " ".join(str(error).split())


def plain(url: str) -> str:
    """`url` without what may be a secret in it: the query and who asks."""
    try:
        return str(httpx.URL(url).copy_with(query=None, fragment=None, username=None, password=None))
    except BAD_URL:
        return "(malformed URL)"
