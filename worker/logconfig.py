"""The part `log` of the config's `worker`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from worker.quantities import Size
from worker.redaction import MINIMUM
from worker.schema import Document
from worker.tasklog import LogSettings

LARGEST_TAIL = 16 * 2**20  # bytes, since it is in memory


def _secret(text: str) -> str:
    if len(text.strip().encode()) < MINIMUM:
        raise PydanticCustomError("secret", f"expected {MINIMUM} bytes at least: fewer are found all over a log")
    return text


def _pattern(text: str) -> str:
    try:
        pattern = re.compile(text.encode())
    except re.error as error:
        raise PydanticCustomError("pattern", "is no regular expression: {why}", {"why": str(error)}) from None
    if pattern.match(b""):
        raise PydanticCustomError("pattern", "matches what is empty, and so everywhere")
    return text


def _tail(size: int) -> int:
    if not 1024 <= size <= LARGEST_TAIL:
        raise PydanticCustomError("size", "expected 1 KiB to 16 MiB")
    return size


class RedactConfig(Document):
    """What the logs of tasks do not show, besides the worker's own access token.

    `secrets` are hidden as they are and in other spellings: URL-quoted, in JSON, in base64. `patterns` are Python's
    regular expressions over the bytes of a line; they cost time for each line.
    """

    secrets: Annotated[list[Annotated[str, AfterValidator(_secret)]], Field(repr=False)] = []
    patterns: list[Annotated[str, AfterValidator(_pattern)]] = []


class LogConfig(Document):
    """How long a task's log may get, 0 for as long as it will, and what it must not tell.

    Of a longer log the first `sizeLimit` are kept, and about the last `tail`.
    """

    size_limit: Size = 0
    tail: Annotated[Size, AfterValidator(_tail)] = 64 * 1024
    redact: RedactConfig = RedactConfig()

    def settings(self, secrets: Iterable[str]) -> LogSettings:
        """For the logs of a worker whose config has these secrets, those of `redact` among them."""
        return LogSettings(
            size_limit=self.size_limit or None,
            tail=self.tail,
            secrets=frozenset(secret.encode() for secret in secrets),
            patterns=tuple(re.compile(pattern.encode()) for pattern in self.redact.patterns),
        )
