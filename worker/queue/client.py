"""Clients of a deployment's services, with the routes and argument checks of the `taskcluster` package."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import httpx
import taskcluster
from pydantic import BaseModel

from worker.queue.credentials import CredentialsProvider
from worker.queue.deployment import CLAIM_WORK, Call, Deployment
from worker.queue.errors import QueueError
from worker.queue.retry import NO_RETRY, RetryPolicy
from worker.queue.signing import hawk_bewit
from worker.queue.wire import format_time

T = TypeVar("T")

SIGNED_URL_LIFETIME = 15 * 60
MAX_PAGES = 1000  # a page has up to 1,000 entries


class ServiceClient:
    """What the classes of the `taskcluster` package do not do on Trio; the base of every class in `SERVICES`.

    Their methods work as documented there (`await client.listSecrets(query={"limit": 10})`), and `call` is the same
    with types. Errors are those of `Deployment.perform`, and TaskclusterFailure for wrong arguments.
    """

    # Those of the package's class, which each class in SERVICES has as its second base.
    serviceName: str  # noqa: N815
    classOptions: Mapping[str, Any]  # noqa: N815
    funcinfo: Mapping[str, Mapping[str, Any]]
    _processArgs: Callable[..., tuple[dict[str, Any], Any, dict[str, Any], Any, int | None]]  # noqa: N815
    _subArgsInRoute: Callable[..., str]  # noqa: N815
    _constructUrl: Callable[[str], str]  # noqa: N815
    buildUrl: Callable[..., str]  # noqa: N815

    # The package's constructor is left out: it makes a `requests` session and keeps a copy of the credentials.
    def __init__(self, deployment: Deployment, credentials: CredentialsProvider) -> None:
        self.deployment = deployment
        self.credentials = credentials
        self.options = {**self.classOptions, "rootUrl": deployment.root_url}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]: ...

    async def call(
        self,
        method: str,
        *args: Any,
        parse: Callable[[Any], T],
        query: Mapping[str, str] | None = None,
        policy: RetryPolicy | None = None,
    ) -> T:
        """Call `method` with the route's arguments and, where it takes one, the payload: a model or JSON values.

        The result is what `parse` makes of the answer; see `Deployment.perform`.
        """
        entry = self.funcinfo[method]
        route_args, payload, _, _, _ = self._processArgs(entry, *args)
        return await self._perform(entry, route_args, payload, query or {}, parse, policy)

    async def pages(
        self, method: str, *args: Any, parse: Callable[[Any], T], policy: RetryPolicy | None = None
    ) -> list[T]:
        """Every page of a method that answers with a `continuationToken`, as `parse` makes them.

        Raises QueueError beyond `MAX_PAGES`: such an answer has no end.
        """

        def with_token(document: Any) -> tuple[T, str | None]:
            return parse(document), document.get("continuationToken")

        result: list[T] = []
        query: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            page, token = await self.call(method, *args, parse=with_token, query=query, policy=policy)
            result.append(page)
            if not token:
                return result
            query = {"continuationToken": token}
        raise QueueError(f"{self.serviceName}.{method}", f"an answer of more than {MAX_PAGES} pages")

    async def _makeApiCall(self, entry: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        # Every method of the package's classes ends here.
        route_args, payload, query, handler, limit = self._processArgs(entry, *args, **kwargs)
        query = dict(query)
        if limit and "limit" in entry.get("query", []):
            query["limit"] = limit
        answer = await self._perform(entry, route_args, payload, query, _as_it_is, None)
        if handler is None:
            return answer
        handler(answer)
        while answer.get("continuationToken"):
            query["continuationToken"] = answer["continuationToken"]
            answer = await self._perform(entry, route_args, payload, query, _as_it_is, None)
            handler(answer)
        return None

    async def _perform(
        self,
        entry: Mapping[str, Any],
        route_args: Mapping[str, Any],
        payload: Any,
        query: Mapping[str, Any],
        parse: Callable[[Any], T],
        policy: RetryPolicy | None,
    ) -> T:
        route = self._subArgsInRoute(entry, route_args)
        name = f"{self.serviceName}.{entry['name']}"
        text = self._constructUrl(f"{route}?{urlencode(query)}" if query else route)
        url = httpx.URL(text)
        if not text.endswith(url.raw_path.decode()):
            # A path step of dots, say an artifact named "..", would lead to another method.
            raise QueueError(name, f"{'/'.join(map(str, route_args.values()))!r} cannot be part of a URL")
        call = Call(
            name=name,
            verb=entry["method"].upper(),
            url=url,
            content=None if payload is None else encode(payload),
            has_output="output" in entry,
        )
        policy = policy or (NO_RETRY if call.name == CLAIM_WORK else self.deployment.policy)
        return await self.deployment.perform(call, self.credentials, parse, policy)

    def buildSignedUrl(self, methodName: str, *args: Any, **kwargs: Any) -> str:  # noqa: N802, N803
        """A URL that lets anybody GET what the method gives, for `expiration` seconds (15 minutes). It is a secret."""
        lifetime = kwargs.pop("expiration", SIGNED_URL_LIFETIME)
        url = httpx.URL(self.buildUrl(methodName, *args, **kwargs))
        signer = self.credentials()
        if signer is None:
            raise QueueError(f"{self.serviceName}.{methodName}", "no credentials to sign a URL with")
        bewit = hawk_bewit(signer, url, expires=int(self.deployment.clock.timestamp() + lifetime))
        return f"{url}{'&' if url.query else '?'}bewit={bewit}"


def _as_it_is(document: Any) -> Any:
    return document


def encode(payload: Any) -> bytes:
    """The JSON text of a model or of JSON values, dates as RFC 3339 with milliseconds."""
    if isinstance(payload, BaseModel):
        return payload.model_dump_json(exclude_none=True).encode()
    return json.dumps(payload, separators=(",", ":"), default=_encode_other).encode()


def _encode_other(value: object) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _service(base: type) -> type[ServiceClient]:
    return type(base.__name__, (ServiceClient, base), {"__doc__": f"The methods of {base.__name__} on Trio."})


SERVICES: Mapping[str, type[ServiceClient]] = MappingProxyType(
    {
        "auth": _service(taskcluster.Auth),
        "github": _service(taskcluster.Github),
        "hooks": _service(taskcluster.Hooks),
        "index": _service(taskcluster.Index),
        "notify": _service(taskcluster.Notify),
        "object": _service(taskcluster.Object),
        "purge-cache": _service(taskcluster.PurgeCache),
        "queue": _service(taskcluster.Queue),
        "secrets": _service(taskcluster.Secrets),
        "web-server": _service(taskcluster.WebServer),
        "worker-manager": _service(taskcluster.WorkerManager),
    }
)


def service(deployment: Deployment, name: str, credentials: CredentialsProvider) -> ServiceClient:
    """The client of the service of that name, such as `queue` or `purge-cache`. Raises KeyError."""
    return SERVICES[name](deployment, credentials)
