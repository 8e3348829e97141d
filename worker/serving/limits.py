"""What a peer may take of a server: time, memory, connections."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from worker.quantities import Duration, Size
from worker.schema import Document


def _more_than_zero(value: timedelta) -> timedelta:
    if not value:
        raise PydanticCustomError("duration", "expected more than 0 seconds")
    return value


def _not_empty(value: int) -> int:
    if not value:
        raise PydanticCustomError("size", "expected more than 0 bytes")
    return value


Limit = Annotated[Duration, AfterValidator(_more_than_zero)]
MemoryLimit = Annotated[Size, AfterValidator(_not_empty)]


class ServingLimits(Document):
    """What one server, and one connection of it, grants its peers.

    `header_time` is from the beginning of a request, or of the connection, to the end of the headers, the TLS
    handshake on its own. `body_rate` is the least number of bytes a second that a request's body comes at, on average
    and beyond `header_time`. `stalled_time` is how long a peer may take for 64 KiB that are sent to it.
    A websocket's peer that neither sends nor takes anything for `ping_interval` is asked whether it is there, and has
    `stalled_time` to answer, since what it was sent before comes first.
    """

    connections: Annotated[int, Field(ge=1)] = 1000
    headers: MemoryLimit = 16 * 1024
    header_time: Limit = timedelta(seconds=10)
    idle_time: Limit = timedelta(minutes=1)  # longer than our own clients keep an idle connection
    request_body: Size = 16 * 2**20
    body_rate: MemoryLimit = 1024
    websocket_message: MemoryLimit = 256 * 1024
    ping_interval: Limit = timedelta(seconds=20)
    stalled_time: Limit = timedelta(minutes=1)


DEFAULT_LIMITS = ServingLimits()
