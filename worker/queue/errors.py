"""What a call to a Taskcluster service can end with. No text holds credentials or a request's payload."""

from __future__ import annotations

import json

MAX_MESSAGE = 1000  # characters of a service's message that are kept


class QueueError(Exception):
    """A call of `method`, for instance `queue.claimWork`, did not do what it should."""

    def __init__(self, method: str, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.method = method
        self.message = message


class ApiError(QueueError):
    """The service refused: its HTTP `status`, its `code` (such as `RequestConflict`) and `message`.

    Where that was not in the first of `attempts`, an earlier one may have been done, and its answer lost.
    """

    def __init__(self, method: str, status: int, code: str, message: str) -> None:
        super().__init__(method, f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.attempts = 1


class Unauthorized(ApiError):
    """401: the credentials are wrong, expired or disabled, or the clock is far off."""


class Forbidden(ApiError):
    """403: the credentials lack a scope."""


class NotFound(ApiError):
    """404: no such thing, or no such route."""


class Conflict(ApiError):
    """409: things are not, or are no longer, as the request supposes."""


class Unavailable(QueueError):
    """There was no usable answer in `attempts` attempts: no connection, silence, 429, 5xx, or nonsense.

    The service may have done what it was asked to.
    """

    def __init__(self, method: str, attempts: int, message: str) -> None:
        super().__init__(method, f"no usable answer in {attempts} attempt{'s' if attempts > 1 else ''}: {message}")
        self.attempts = attempts


_BY_STATUS: dict[int, type[ApiError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict}


def api_error(method: str, status: int, body: bytes, secrets: tuple[str | None, ...] = ()) -> ApiError:
    """The error that an answer stands for; `secrets` are struck out of the service's text."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {}
    # An error artifact's answer (424) has a reason in the place of a code.
    code = document.get("code") or document.get("reason") or "unknown"
    message = document.get("message") or "no message"
    return _BY_STATUS.get(status, ApiError)(method, status, _trim(str(code), secrets), _trim(str(message), secrets))


def _trim(text: str, secrets: tuple[str | None, ...]) -> str:
    # Below a rule the services add the request's details, payload included.
    text = text.partition("\n---")[0].strip()
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"
