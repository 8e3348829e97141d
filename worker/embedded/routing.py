"""Which method a request calls. Routes and verbs come from the metadata of the `taskcluster` package."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import taskcluster

from worker.embedded.errors import InvalidRequestArguments
from worker.embedded.scopes import Expression

if TYPE_CHECKING:
    from worker.embedded.call import Call

SLUG = r"[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]"
PROVISIONER = r"[a-zA-Z0-9-_]{1,38}"
WORKER_TYPE = r"[a-z]([-a-z0-9]{0,36}[a-z0-9])?"
INDEX_PATH = r"([a-zA-Z0-9_!~*'()%-]+\.)*[a-zA-Z0-9_!~*'()%-]+"
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "taskId": re.compile(SLUG),
    "taskGroupId": re.compile(SLUG),
    "runId": re.compile(r"0|[1-9][0-9]{0,2}|1000"),
    "provisionerId": re.compile(PROVISIONER),
    "workerType": re.compile(WORKER_TYPE),
    "taskQueueId": re.compile(f"{PROVISIONER}/{WORKER_TYPE}"),
    "workerPoolId": re.compile(r"[a-zA-Z0-9-_]{1,38}/[a-zA-Z0-9-_]{1,38}"),
    "workerGroup": re.compile(r"[a-zA-Z0-9-_]{1,38}"),
    "workerId": re.compile(r"[a-zA-Z0-9-_]{1,38}"),
    "name": re.compile(r"[\x20-\x7e]+"),
    "indexPath": re.compile(INDEX_PATH),
    "namespace": re.compile(f"({INDEX_PATH})?"),
    "limit": re.compile(r"[0-9]{1,9}"),
    "continuationToken": re.compile(r"[A-Za-z0-9_-]+"),
    "quarantined": re.compile("true|false"),
    "wstAudience": re.compile(r"[a-zA-Z0-9_-]{1,38}"),
    "wstClient": re.compile(r"[a-zA-Z0-9_~.%-]+"),
}
# Names hold slashes, which clients write as %2F or as they are; the namespace that holds all others has no name.
UNLIKE_OTHERS = {
    "name": ".+",
    "namespace": "[^/]*",
    "taskQueueId": "[^/]+(?:/[^/]+)?",
    "workerPoolId": "[^/]+(?:/[^/]+)?",
}
SERVICES: Mapping[str, Any] = {
    "auth": taskcluster.Auth,
    "index": taskcluster.Index,
    "object": taskcluster.Object,
    "purge-cache": taskcluster.PurgeCache,
    "queue": taskcluster.Queue,
    "secrets": taskcluster.Secrets,
}


@dataclass(frozen=True)
class Reply:
    """What a method answers; without a document the body is empty."""

    document: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler: TypeAlias = "Callable[[Call], Awaitable[Reply]]"


@dataclass(frozen=True)
class Endpoint:
    """A method of a service, the scopes that it needs, and what answers it."""

    service: str
    name: str
    scopes: Expression
    handler: Handler
    # In errors, the request's body is not repeated: it holds a secret.
    hide_payload: bool = False


@dataclass(frozen=True)
class Match:
    """The method that a request calls, with the decoded parts of its path."""

    endpoint: Endpoint
    params: Mapping[str, str]


class Router:
    """Finds the endpoint of a verb and a path as it was sent, percent-encoded."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._routes: dict[str, list[tuple[re.Pattern[str], Endpoint]]] = {}
        for endpoint in endpoints:
            info = SERVICES[endpoint.service].funcinfo[endpoint.name]
            pattern = re.compile(_pattern(f"/api/{endpoint.service}/v1{info['route']}"))
            self._routes.setdefault(info["method"].upper(), []).append((pattern, endpoint))

    def match(self, method: str, raw_path: str) -> Match | None:
        """The endpoint, or None for an unknown route. Raises InvalidRequestArguments for parameters out of form."""
        for pattern, endpoint in self._routes.get(method, ()):
            found = pattern.fullmatch(raw_path)
            if found is not None:
                params = {name: unquote(value) for name, value in found.groupdict().items()}
                check(params)
                return Match(endpoint, params)
        return None


def check(params: Mapping[str, str]) -> None:
    """Raise InvalidRequestArguments for a part of the URL that is not of its form."""
    for name, value in params.items():
        pattern = PATTERNS.get(name)
        if pattern is not None and not pattern.fullmatch(value):
            raise InvalidRequestArguments(f"Invalid URL: {name} {value!r} does not match {pattern.pattern}")


def _pattern(route: str) -> str:
    parts = re.split(r"<([^>]+)>", route)
    # Text and names of parameters alternate.
    return "".join(
        f"(?P<{part}>{UNLIKE_OTHERS.get(part, '[^/]+')})" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    ) + ("" if route.endswith("/") else "/?")
