"""What every model of the wire has in common: names, dates, strictness, and secrets that do not show."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

# Presigned URLs are credentials too: whoever has one may write or read what it names.
SECRET_FIELDS = frozenset(
    {"access_token", "certificate", "put_url", "secret", "signed_delete_url", "signed_poll_url", "token", "url"}
)


def format_time(moment: datetime) -> str:
    """`moment`, which knows its offset, as RFC 3339 in UTC with milliseconds: `2026-01-31T00:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[AwareDatetime, PlainSerializer(format_time, return_type=str, when_used="json")]


class Wire(BaseModel):
    """A document on the wire: camelCase there, snake_case here; either is understood when one is built.

    Neither a repr nor a validation error shows a secret.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, "***" if name in SECRET_FIELDS and value is not None else value

    def to_wire(self) -> dict[str, Any]:
        """The JSON document: dates as text, absent optional properties left out."""
        return self.model_dump(mode="json", exclude_none=True)


class Request(Wire):
    """What a client sends: a property that the schema does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Response(Wire):
    """What a service answers: a newer deployment may add properties, which are ignored."""

    model_config = ConfigDict(extra="ignore")
