"""A name for the server that says its address by itself, for Taskcluster's stateless DNS server (facts page, 5)."""

from __future__ import annotations

import base64
import hmac
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Annotated

import trio
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from worker.ports import Ports
from worker.quantities import Duration
from worker.schema import Document
from worker.webhooks.providers import Outside

DOMAIN = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
SHORTEST = timedelta(minutes=2)
LONGEST = timedelta(days=366)


def _address(text: str) -> str:
    try:
        IPv4Address(text)
    except ValueError:
        raise PydanticCustomError("ip", "expected an IPv4 address, such as 203.0.113.5") from None
    return text


def _usable(value: timedelta) -> timedelta:
    if not SHORTEST <= value <= LONGEST:
        raise PydanticCustomError("duration", "expected 2 minutes at least and 366 days at most")
    return value


class StatelessDnsConfig(Document):
    """The server's address as others see it, and what the DNS server for `domain` shares with us.

    A name is good for `expires_after`. It is replaced at half of that.
    """

    ip: Annotated[str, AfterValidator(_address)]
    domain: Annotated[str, Field(pattern=DOMAIN, max_length=200)]
    secret: Annotated[str, Field(min_length=1, repr=False)]
    expires_after: Annotated[Duration, AfterValidator(_usable)] = timedelta(days=1)


def host_label(ip: str, expires: datetime, salt: bytes, secret: str) -> str:
    """The first label of the name: 48 characters that hold `ip`, `expires` to the millisecond and 2 bytes of `salt`."""
    milliseconds = (expires - datetime.fromtimestamp(0, expires.tzinfo)) // timedelta(milliseconds=1)
    content = IPv4Address(ip).packed + struct.pack(">q", milliseconds) + salt
    signature = hmac.digest(secret.encode(), content, "sha256")[:16]
    return base64.b32encode(content + signature).decode().lower()


class StatelessDns:
    """The provider. `url_of` makes the base URL of a host."""

    def __init__(self, ports: Ports, config: StatelessDnsConfig, url_of: Callable[[str], str]) -> None:
        self._ports = ports
        self._config = config
        self._url_of = url_of

    async def run(self, outside: Outside, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `providers.Provider`: whatever URL is given to anybody is good for half of `expires_after` at least."""
        outside.at(self._fresh())
        task_status.started()
        while True:
            await trio.sleep(self._config.expires_after.total_seconds() / 2)
            outside.at(self._fresh())

    def _fresh(self) -> str:
        config = self._config
        expires = self._ports.now() + config.expires_after
        label = host_label(config.ip, expires, self._ports.random.randbytes(2), config.secret)
        return self._url_of(f"{label}.{config.domain}")
