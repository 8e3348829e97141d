"""A Taskcluster deployment: what the clients of all its services share, and how one call is made."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import trio
from pydantic import ValidationError

from worker.http import ConnectFailed, ConnectionLost, HttpAnswer, HttpClient, HttpClients, HttpError, TimedOut
from worker.ports import Ports
from worker.queue.clock import ServiceClock
from worker.queue.credentials import Credentials, CredentialsProvider
from worker.queue.errors import ApiError, QueueError, Unavailable, api_error
from worker.queue.outage import Outage
from worker.queue.retry import RetryPolicy, Transient, is_transient, parse_retry_after, retrying
from worker.queue.signing import hawk_header

T = TypeVar("T")

# It waits up to 20 s for work, and is not idempotent: tasks of a lost answer stay claimed. Whoever claims decides.
CLAIM_WORK = "queue.claimWork"

# By these a run is kept, ended and reported: they wait for no other call, as for artifacts of a queue that hangs.
URGENT = frozenset(
    f"queue.{method}"
    for method in ("statuses", "status", "reclaimTask", "reportCompleted", "reportFailed", "reportException")
)

STALE_AFTER = 60.0  # seconds of clock difference that may explain a 401; services allow 15 minutes


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a service, before it is signed. `name` is for messages: `queue.claimWork`."""

    name: str
    verb: str
    url: httpx.URL
    content: bytes | None
    has_output: bool


class Deployment:
    """The services behind one root URL: what all clients of it share, whosever credentials they use.

    That is the HTTP clients, the retry policy, the services' clock, and whether an outage was told already.
    """

    def __init__(self, root_url: str, http: HttpClients, ports: Ports, policy: RetryPolicy | None = None) -> None:
        self.root_url = root_url.rstrip("/")
        self.http = http
        self.ports = ports
        self.policy = policy or RetryPolicy()
        self.clock = ServiceClock(ports)
        self._outages: defaultdict[str, Outage] = defaultdict(Outage)

    async def perform(
        self, call: Call, credentials: CredentialsProvider, parse: Callable[[Any], T], policy: RetryPolicy
    ) -> T:
        """Make the call until it is answered, and return what `parse` makes of the JSON (None where there is no body).

        `parse` raises ValueError for a document that is not as it should be, which counts as no answer. Credentials are
        read for every attempt. Raises `ApiError` for a refusal, `Unavailable` when the policy gives up, `QueueError`
        for a request that cannot be made. Cancellation abandons the attempt; the service may yet act on it.
        """
        outage = self._outages[call.name.partition(".")[0]]

        async def attempt(number: int) -> T | Transient:
            try:
                result = await self._attempt(call, credentials, parse)
            except ApiError as error:
                error.attempts = number
                outage.answered(call.name, trio.current_time())
                raise
            if isinstance(result, Transient):
                outage.failed(call.name, result.reason, trio.current_time())
            else:
                outage.answered(call.name, trio.current_time())
            return result

        result, attempts = await retrying(attempt, policy, self.ports.random)
        if isinstance(result, Transient):
            raise Unavailable(call.name, attempts, result.reason)
        return result

    async def _attempt(self, call: Call, credentials: CredentialsProvider, parse: Callable[[Any], T]) -> T | Transient:
        signer = credentials()
        skew = self.clock.skew
        try:
            answer = await self._send(call, signer, skew)
            if answer.status == 401 and abs(self.clock.claimed_skew - skew) > STALE_AFTER:
                # The service has just told its own clock: sign once more, by that.
                answer = await self._send(call, signer, self.clock.claimed_skew)
        except (ConnectFailed, ConnectionLost, TimedOut) as error:
            return Transient(str(error))
        except HttpError as error:
            raise QueueError(call.name, str(error)) from error
        secrets = (signer.access_token, signer.certificate) if signer else ()
        # getArtifact answers 303 with the body that its schema describes.
        if not (200 <= answer.status < 300 or answer.status == 303):
            refusal = api_error(call.name, answer.status, answer.body, secrets)
            if not is_transient(answer.status):
                raise refusal
            wait = parse_retry_after(answer.headers.get("Retry-After"), self.ports.now())
            return Transient(f"{refusal.status} {refusal.code}: {refusal.message}", wait)
        try:
            return parse(_document(call, answer.body))
        except (ValueError, RecursionError) as error:
            return Transient(f"status {answer.status} with nonsense: {_complaint(error)}")

    async def _send(self, call: Call, signer: Credentials | None, skew: float) -> HttpAnswer:
        headers = {"Accept": "application/json"}
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        if signer is not None:
            try:
                timestamp = int(self.ports.now().timestamp() + skew)
                headers["Authorization"] = hawk_header(
                    signer, call.verb, call.url, timestamp=timestamp, nonce=self.ports.token(6)
                )
            except ValueError:
                raise QueueError(call.name, f"the credentials of {signer.client_id!r} cannot sign") from None
        sent = self.ports.now()
        answer = await self._client(call.name).request(call.verb, call.url, headers=headers, content=call.content)
        if not is_transient(answer.status):
            self.clock.learn(sent, answer.headers.get("Date"))
        return answer

    def _client(self, name: str) -> HttpClient:
        if name == CLAIM_WORK:
            return self.http.long_poll
        return self.http.urgent if name in URGENT else self.http.control


def _document(call: Call, body: bytes) -> Any:
    if body:
        return json.loads(body)
    if call.has_output:
        raise ValueError("no body")
    return None


def _complaint(error: Exception) -> str:
    # A ValidationError's own text may quote what was received, secrets included.
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(str(step) for step in first['loc'])}: {first['type']}"
    return "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
