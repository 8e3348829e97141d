"""Durations and sizes as people write them: `90 seconds`, `1.5 h`, `10 GiB`, or plain seconds and bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError

T = TypeVar("T")

_MICROSECONDS = {"second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6, "day": 24 * 3600 * 10**6}
_DURATION_UNITS = {
    "ms": 1000,
    "millisecond": 1000,
    "milliseconds": 1000,
    "s": 10**6,
    "sec": 10**6,
    "min": 60 * 10**6,
    "h": 3600 * 10**6,
    "d": 24 * 3600 * 10**6,
    "week": 7 * 24 * 3600 * 10**6,
    "weeks": 7 * 24 * 3600 * 10**6,
    **_MICROSECONDS,
    **{f"{name}s": value for name, value in _MICROSECONDS.items()},
}
_SIZES = {
    "TiB": 2**40,
    "TB": 10**12,
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "kB": 10**3,
}
_SIZE_UNITS = {"B": 1, "byte": 1, "bytes": 1, "KB": 10**3, **_SIZES}

# ECMA 262's dialect too, since the JSON Schema shows it.
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?"
_DURATION_PATTERN = f"^{_NUMBER}({'|'.join(_DURATION_UNITS)})$"
_SIZE_PATTERN = f"^{_NUMBER}({'|'.join(_SIZE_UNITS)})$"

_DURATION_EXPECTED = "expected a duration: a number of seconds, or words such as `90 seconds`, `1.5 h` or `2 days`"
_SIZE_EXPECTED = "expected a size: a whole number of bytes, or words such as `500 MB` or `10 GiB`"


def parse_duration(value: object) -> timedelta:
    """A duration from seconds or words, to the microsecond. Raises ValueError that says what was expected."""
    match value:
        case timedelta() if value >= timedelta():
            return value
        case bool():
            pass
        case int() | float() if math.isfinite(value) and value >= 0:
            return _timedelta(Decimal(value) * 10**6)
        case str() if found := re.fullmatch(_DURATION_PATTERN, value):
            return _timedelta(Decimal(found[1]) * _DURATION_UNITS[found[2]])
    raise ValueError(_DURATION_EXPECTED)


def _timedelta(microseconds: Decimal) -> timedelta:
    try:
        return timedelta(microseconds=round(microseconds))
    except OverflowError:
        raise ValueError("expected a duration of less than two million years") from None


def parse_size(value: object) -> int:
    """Bytes, from a number of them or words. Raises ValueError that says what was expected."""
    match value:
        case bool():
            pass
        case int() if value >= 0:
            return value
        case str() if found := re.fullmatch(_SIZE_PATTERN, value):
            return round(Decimal(found[1]) * _SIZE_UNITS[found[2]])
    raise ValueError(_SIZE_EXPECTED)


def format_duration(duration: timedelta) -> str:
    """The shortest words that `parse_duration` reads as `duration`, which is not negative: `90 seconds`, `4 hours`."""
    microseconds = duration // timedelta(microseconds=1)
    for unit in reversed(_MICROSECONDS):
        number, rest = divmod(microseconds, _MICROSECONDS[unit])
        if number and not rest:
            return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
    return f"{(Decimal(microseconds) / 10**6).normalize():f} seconds"


def format_size(size: int) -> str:
    """The shortest words that `parse_size` reads as `size` bytes, not negative: `500 MB`, `10 GiB`, `17 bytes`."""
    for unit in sorted(_SIZES, key=_SIZES.__getitem__, reverse=True):
        number, rest = divmod(size, _SIZES[unit])
        if number and not rest:
            return f"{number} {unit}"
    return f"{size} byte" if size == 1 else f"{size} bytes"


def approximate_size(size: int) -> str:
    """A size for people to read, to three digits or so: `3.9 GiB`, `812 MiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            number = size / factor
            return f"{number:.0f} {unit}" if number >= 100 or number == round(number) else f"{number:.1f} {unit}"
    return format_size(size)


def _validator(kind: str, parse: Callable[[object], T]) -> Callable[[object], T]:
    def validate(value: object) -> T:
        try:
            return parse(value)
        except ValueError as error:
            # pydantic would put "Value error" before the text of a ValueError.
            raise PydanticCustomError(kind, "{expected}", {"expected": str(error)}) from None

    return validate


Duration = Annotated[
    timedelta,
    BeforeValidator(_validator("duration", parse_duration)),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "description": "A duration: seconds, or words such as `90 seconds`, `1.5 h` or `2 days`.",
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _DURATION_PATTERN}],
        }
    ),
]
"""A field of a `Document` that is a duration, never negative."""

Size = Annotated[
    int,
    BeforeValidator(_validator("size", parse_size)),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "description": "A size: bytes, or words such as `500 MB` or `10 GiB`.",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE_PATTERN}],
        }
    ),
]
"""A field of a `Document` that is a number of bytes, never negative."""


class QuantityJsonSchema(GenerateJsonSchema):
    """For `model_json_schema(schema_generator=...)`: a duration's default in words, where pydantic would say `PT5S`."""

    def encode_default(self, dft: Any) -> Any:
        """The default as a config file would have it."""
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)
