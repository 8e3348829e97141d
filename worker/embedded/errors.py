"""The errors that the API answers with: a code, an HTTP status and a message (facts page, section 1)."""

from __future__ import annotations


class ApiError(Exception):
    """Ends a call with `status` and a body of `code`, `message` and `requestInfo`."""

    code = "InternalServerError"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MalformedPayload(ApiError):
    """The body is not JSON. Said before anybody's credentials are looked at."""

    code = "MalformedPayload"
    status = 400


class InvalidRequestArguments(ApiError):
    """A part of the URL is not what the method accepts."""

    code = "InvalidRequestArguments"
    status = 400


class InputValidationError(ApiError):
    """The body does not obey the method's schema."""

    code = "InputValidationError"
    status = 400


class InputError(ApiError):
    """The body obeys the schema, but what it says cannot be."""

    code = "InputError"
    status = 400


class AuthenticationFailed(ApiError):
    """The credentials are wrong, expired or signed badly."""

    code = "AuthenticationFailed"
    status = 401


class InsufficientScopes(ApiError):
    """The caller is who it says, and may not do this. Also the answer to a caller without credentials."""

    code = "InsufficientScopes"
    status = 403


class ResourceNotFound(ApiError):
    """There is no such thing."""

    code = "ResourceNotFound"
    status = 404


class NoAcceptableMethod(ApiError):
    """None of the download methods that the caller takes is to be had."""

    code = "InputError"
    status = 406


class RequestConflict(ApiError):
    """The request contradicts the state of things."""

    code = "RequestConflict"
    status = 409


class ResourceExpired(ApiError):
    """It was here once."""

    code = "ResourceExpired"
    status = 410


class InputTooLarge(ApiError):
    """The body is longer than the API takes."""

    code = "InputTooLarge"
    status = 413


class Unavailable(ApiError):
    """The queue has not started, or has stopped. To be retried."""

    code = "InternalServerError"
    status = 503
