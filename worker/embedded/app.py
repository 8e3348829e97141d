"""The ASGI application: from a request to a method's answer, or to the error that the API describes."""

from __future__ import annotations

import hmac
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from worker.embedded import hawk
from worker.embedded.auth import Client, Identity, authenticate
from worker.embedded.call import Call, perform, read_body
from worker.embedded.errors import ApiError, AuthenticationFailed, MalformedPayload
from worker.embedded.routing import Endpoint, Match, Reply, Router
from worker.embedded.times import to_wire
from worker.ports import Ports

log = logging.getLogger(__name__)


class Application:
    """Answers the API by `router`; every other path goes to `pages`."""

    def __init__(
        self,
        ports: Ports,
        router: Router,
        clients: Callable[[], Mapping[str, Client]],
        pages: Callable[[Request], Awaitable[Response | None]],
    ) -> None:
        self._ports = ports
        self._router = router
        self._clients = clients
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of ASGI scopes are refused."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        # What tasks say is in many answers, and none of it is for browsers to take for a page.
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if _raw_path(request).startswith("/api/"):
            # A worker's page of a log goes on in the stored one. Browsers add no credentials to what other pages ask.
            response.headers["Access-Control-Allow-Origin"] = "*"
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        raw_path = _raw_path(request)
        match: Match | None = None
        document: Any = None
        try:
            if not raw_path.startswith("/api/"):
                return await self._pages(request) or _not_found()
            match = self._router.match(request.method, raw_path)
            if match is None:
                return _not_found()
            raw = await read_body(request)
            document = _parse(raw)
            return _answer(await self._call(request, match, raw, document))
        except ApiError as error:
            return self._error(error, match, document)
        except ClientDisconnect:
            raise
        except Exception:
            # An error of ours must reach neither the client in detail nor the other connections at all.
            log.exception("%s failed", match.endpoint.name if match else f"{request.method} {raw_path}")
            return self._error(ApiError("Internal Server Error"), match, document)

    async def _call(self, request: Request, match: Match, raw: bytes, document: Any) -> Reply:
        identity = self.identify(request, raw)
        return await perform(Call(match.endpoint, match.params, request, raw, document, identity, self._ports.now()))

    def identify(self, request: Request, raw: bytes) -> Identity:
        """Who sent the request. Raises AuthenticationFailed."""
        host, port = hawk.host_and_port(request.headers.get("host", ""), request.scope["scheme"])
        query = request.scope["query_string"].decode("latin-1")
        resource = _raw_path(request) + (f"?{query}" if query else "")
        target = hawk.Target(request.method, resource, host, port)
        identity = authenticate(self._clients(), target, request.headers.get("authorization"), self._ports.now())
        if identity.payload_hash:
            expected = hawk.payload_hash(raw, request.headers.get("content-type", ""))
            if not hmac.compare_digest(expected.encode(), identity.payload_hash.encode()):
                raise AuthenticationFailed("Bad payload hash: the body is not the one that was signed")
        return identity

    def _error(self, error: ApiError, match: Match | None, document: Any) -> Response:
        endpoint = match.endpoint if match else None
        information = {
            "method": endpoint.name if endpoint else "unknown",
            "params": dict(match.params) if match else {},
            "payload": _shown(endpoint, document),
            "time": to_wire(self._ports.now()),
        }
        body = {"code": error.code, "message": error.message, "requestInfo": information}
        return JSONResponse(body, error.status)


def _shown(endpoint: Endpoint | None, document: Any) -> Any:
    if endpoint is not None and endpoint.hide_payload:
        return {}
    return {} if document is None else document


def _answer(reply: Reply) -> Response:
    if reply.document is None:
        return Response(status_code=204 if reply.status == 200 else reply.status, headers=dict(reply.headers))
    return JSONResponse(reply.document, reply.status, dict(reply.headers))


def _not_found() -> Response:
    return JSONResponse({"message": "Not found"}, 404)


def _raw_path(request: Request) -> str:
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.partition(b"?")[0].decode("latin-1")


def _parse(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        document = json.loads(raw, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise MalformedPayload("Failed to parse the body: it is not JSON") from None
    if not isinstance(document, dict | list):
        raise MalformedPayload("Failed to parse the body: it is neither an object nor an array")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # It could be stored, and not be answered.
        raise ValueError(f"{text} is out of range")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
