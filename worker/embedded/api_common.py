"""What every service answers, and the methods of the auth service that ask who one is."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from worker.embedded.auth import CLOCK_SKEW, Client, authenticate
from worker.embedded.call import Call
from worker.embedded.errors import AuthenticationFailed
from worker.embedded.hawk import Target
from worker.embedded.routing import SERVICES, Endpoint, Reply
from worker.embedded.scopes import AllOf
from worker.embedded.tasks import Json
from worker.embedded.times import to_wire
from worker.ports import Ports
from worker.queue.wire import Request

NOTHING = AllOf()
TUNNEL_TOKEN_LIFETIME = 96 * 3600  # seconds


class AuthenticateHawkRequest(Request):
    """A signed request of somebody's, as another service saw it (`authenticate-hawk-request`)."""

    method: str
    resource: str
    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    authorization: str | None = None
    source_ip: str | None = None


class ScopeSetRequest(Request):
    """Scopes (`scopeset`)."""

    scopes: list[Annotated[str, Field(pattern=r"^[ -~]*$")]]


@dataclass(frozen=True)
class CommonMethods:
    """The methods; `clients` are those that the queue knows, `tunnel_secret` is shared with websocktunnel servers."""

    ports: Ports
    clients: Callable[[], Mapping[str, Client]]
    tunnel_secret: str

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        health = [
            Endpoint(service, name, NOTHING, self.ping)
            for service in SERVICES
            for name in ("ping", "lbheartbeat", "heartbeat", "version")
            if name in SERVICES[service].funcinfo
        ]
        return [
            *health,
            Endpoint("auth", "currentScopes", "auth:current-scopes", self.current_scopes),
            Endpoint("auth", "expandScopes", "auth:expand-scopes", self.expand_scopes),
            Endpoint("auth", "authenticateHawk", NOTHING, self.authenticate_hawk, hide_payload=True),
            Endpoint(
                "auth",
                "websocktunnelToken",
                "auth:websocktunnel-token:<wstAudience>/<wstClient>",
                self.websocktunnel_token,
            ),
        ]

    async def ping(self, call: Call) -> Reply:  # the form of every handler
        """The service is there."""
        return Reply({"alive": True, "uptime": 0})

    async def current_scopes(self, call: Call) -> Reply:
        """The caller's scopes."""
        return Reply({"scopes": list(call.identity.scopes)})

    async def expand_scopes(self, call: Call) -> Reply:
        """The scopes as they are: there are no roles that would add to them."""
        return Reply({"scopes": sorted(set(call.read(ScopeSetRequest).scopes))})

    async def authenticate_hawk(self, call: Call) -> Reply:
        """Who signed the request, and what they may do."""
        seen = call.read(AuthenticateHawkRequest)
        target = Target(seen.method.upper(), seen.resource, seen.host, seen.port)
        try:
            identity = authenticate(self.clients(), target, seen.authorization, call.moment)
        except AuthenticationFailed as error:
            return Reply({"status": "auth-failed", "message": error.message})
        scopes, expires = list(identity.scopes), to_wire(identity.expires)
        answer: Json = {"scopes": scopes, "expires": expires}
        if not identity.client_id:
            return Reply({"status": "no-auth", "scheme": "none", **answer})
        answer = {"status": "auth-success", "scheme": "hawk", "clientId": identity.client_id, **answer}
        return Reply({**answer, "hash": identity.payload_hash} if identity.payload_hash else answer)

    async def websocktunnel_token(self, call: Call) -> Reply:
        """A JWT (RFC 7519) with which a client may connect to a websocktunnel server, for 96 hours."""
        now = int(call.moment.timestamp())
        expires = now + TUNNEL_TOKEN_LIFETIME
        audience, client = call.params["wstAudience"], call.params["wstClient"]
        claims = {"tid": client, "aud": audience, "sub": call.identity.client_id, "iss": "taskcluster-auth"}
        times = {"iat": now, "exp": expires, "nbf": now - int(CLOCK_SKEW.total_seconds())}
        return Reply(
            {
                "wstAudience": audience,
                "wstClient": client,
                "token": sign_jwt(claims | times, self.tunnel_secret),
                "expires": to_wire(datetime.fromtimestamp(expires, UTC)),
            }
        )


def sign_jwt(claims: Json, secret: str) -> str:
    """A JSON web token by HMAC-SHA256 (RFC 7515 and 7519)."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{text}.{encode(hmac.digest(secret.encode(), text.encode(), 'sha256'))}"
