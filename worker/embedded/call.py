"""One call of a method: what was asked, by whom, and the checks that a handler makes on it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel, ValidationError
from starlette.requests import Request

from worker.embedded.auth import Identity
from worker.embedded.errors import (
    InputTooLarge,
    InputValidationError,
    InsufficientScopes,
    InvalidRequestArguments,
)
from worker.embedded.routing import Endpoint, Reply, check
from worker.embedded.scopes import missing, placeholders
from worker.embedded.times import to_wire

M = TypeVar("M", bound=BaseModel)
MAX_PAGE = 1000
MAX_BODY = 10 * 1024 * 1024
"""Bytes; a longer body of an API call is answered with 413."""
MAX_DISCARDED = 10 * MAX_BODY
"""Bytes; up to here a body that is too long is read to its end: a client that still sends would not see the answer."""


@dataclass
class Call:
    """A request that was authenticated. `document` is its body as JSON, `raw` as it was sent."""

    endpoint: Endpoint
    params: Mapping[str, str]
    request: Request
    raw: bytes
    document: Any
    identity: Identity
    moment: datetime
    authorized: bool = field(default=False, init=False)

    @property
    def now(self) -> str:
        """When the call came, in the form of the wire."""
        return to_wire(self.moment)

    @property
    def task_id(self) -> str:
        """The task that the path names."""
        return self.params["taskId"]

    @property
    def run_id(self) -> int:
        """The run that the path names."""
        return int(self.params["runId"])

    def authorize(self, **values: str | Sequence[str]) -> None:
        """Raise InsufficientScopes unless the caller may do this; `values` fill what the path does not say."""
        lacking = missing(self.identity.scopes, self.endpoint.scopes, {**self.params, **values})
        if lacking:
            who = f"Client ID {self.identity.client_id}" if self.identity.client_id else "A caller without credentials"
            needed = "\n".join(f"  {scope}" for scope in dict.fromkeys(lacking))
            raise InsufficientScopes(
                f"{who} does not have sufficient scopes and is missing the following scopes:\n\n{needed}\n\n"
                f"This request requires the client to satisfy the scope expression of {self.endpoint.name}."
            )
        self.authorized = True

    def read(self, model: type[M]) -> M:
        """The body as a `model` of its schema. Raises InputValidationError that names every path."""
        try:
            body = model.model_validate_json(self.raw or b"{}", strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            raise InputValidationError(_explain(error)) from None
        inner = body.root if isinstance(body, RootModel) else body
        nulls = [name for name in inner.model_fields_set if getattr(inner, name) is None]
        if nulls:
            names = ", ".join(type(inner).model_fields[name].alias or name for name in sorted(nulls))
            raise InputValidationError(f"Schema Validation Failed!\nErrors:\n  * {names}: must not be null")
        return body

    def query(self, name: str) -> str | None:
        """An option of the query string, checked."""
        value = self.request.query_params.get(name)
        if value is not None:
            check({name: value})
        return value

    def page(self) -> Page:
        """Which part of a long list is asked for."""
        limit = self.query("limit")
        token = self.query("continuationToken")
        try:
            after = None if token is None else json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        except ValueError:
            raise InvalidRequestArguments("Invalid continuationToken") from None
        if not isinstance(after, str | int | None):
            raise InvalidRequestArguments("Invalid continuationToken")
        return Page(min(max(int(limit or MAX_PAGE), 1), MAX_PAGE), after)


@dataclass(frozen=True)
class Page:
    """At most `limit` rows, those whose key comes after `after`; keys are texts or numbers of rows."""

    limit: int
    after: str | int | None

    @property
    def after_text(self) -> str:
        """The key, where keys are texts."""
        return self.after if isinstance(self.after, str) else ""

    @property
    def after_number(self) -> int:
        """The key, where keys are numbers."""
        return self.after if isinstance(self.after, int) else -1

    def token(self, keys: Sequence[str | int]) -> dict[str, str]:
        """The `continuationToken` of the next page, if there is one; `keys` are of one row more than the page holds."""
        if len(keys) <= self.limit:
            return {}
        text = json.dumps(keys[self.limit - 1])
        return {"continuationToken": base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()}


async def perform(call: Call) -> Reply:
    """The answer of the method that is called. Raises ApiError, where the caller may not do this for one."""
    if placeholders(call.endpoint.scopes) <= call.params.keys():
        call.authorize()
    reply = await call.endpoint.handler(call)
    assert call.authorized, f"{call.endpoint.name} answers without having checked scopes"
    return reply


async def read_body(request: Request) -> bytes:
    """All of the body. Raises InputTooLarge."""
    parts = bytearray()
    received = 0
    async with aclosing(request.stream()) as stream:
        async for part in stream:
            received += len(part)
            if received <= MAX_BODY:
                parts += part
            elif received > MAX_DISCARDED:
                break
    if received > MAX_BODY:
        raise InputTooLarge(f"The body is longer than {MAX_BODY} bytes")
    return bytes(parts)


def _explain(error: ValidationError) -> str:
    # The input is not repeated: it may hold a secret.
    problems = [
        f"  * {'.'.join(str(part) for part in problem['loc']) or 'the body'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "\n".join(["Schema Validation Failed!", "Errors:", *problems])
