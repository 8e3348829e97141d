"""Names that say an address, compared with a reading of the facts page (section 5) of the test's own."""

from __future__ import annotations

import base64
import hashlib
import random
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import trio
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send
from trio.testing import MockClock

from worker.ports import Ports
from worker.webhooks import Webhooks, WebhooksConfig, open_webhooks
from worker.webhooks.statelessdns import StatelessDns, StatelessDnsConfig, host_label

SECRET = "cheese monkey"  # of the tests
START = datetime(2026, 1, 31, tzinfo=UTC)


def read_label(label: str, secret: str) -> tuple[str, int, bytes]:
    """Address, expiry in milliseconds and salt; raises AssertionError where the signature is not right."""
    assert len(label) == 48
    assert label == label.lower()
    octets = base64.b32decode(label.upper())
    # HMAC by its definition (RFC 2104), so that it is not the same code twice.
    key = secret.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + octets[:14]).digest()
    assert hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()[:16] == octets[14:]
    return ".".join(map(str, octets[:4])), int.from_bytes(octets[4:12], "big"), octets[12:14]


class VirtualPorts(Ports):
    """Virtual time, and randomness from a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(1)  # to be repeated

    def now(self) -> datetime:
        return START + timedelta(seconds=trio.current_time())


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_our_reading_is_right_about_a_label_that_was_published() -> None:
    """By the README of taskcluster/stateless-dns-go. The version that made it counted microseconds."""
    ip, expires, _ = read_label("znzsgaqaau2hl7h35f4owqn25s76j4h7apm3fe4qpy6pfxjk", SECRET)
    assert ip == "203.115.35.2"
    assert datetime.fromtimestamp(expires / 1_000_000, UTC).isoformat() == "2016-06-04T16:04:03.739000+00:00"


def test_labels_say_what_they_were_made_of() -> None:
    rng = random.Random(2)
    for _ in range(500):
        ip = ".".join(str(rng.randrange(256)) for _ in range(4))
        milliseconds = rng.randrange(2**42)
        salt, secret = rng.randbytes(2), rng.randbytes(rng.randint(1, 20)).hex()
        expires = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)
        assert read_label(host_label(ip, expires, salt, secret), secret) == (ip, milliseconds, salt)


def test_the_time_before_1970_is_signed() -> None:
    label = host_label("127.0.0.1", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), b"\0\0", SECRET)
    assert int.from_bytes(base64.b32decode(label.upper())[4:12], "big", signed=True) == -1000


async def test_a_url_is_good_for_half_of_the_time_and_then_another_is_told(autojump_clock: MockClock) -> None:
    config = StatelessDnsConfig(
        ip="203.0.113.5", domain="workers.example.com", secret=SECRET, expires_after=timedelta(hours=1)
    )
    webhooks = Webhooks(VirtualPorts())
    provider = StatelessDns(VirtualPorts(), config, lambda host: f"https://{host}:8443")
    told: list[tuple[float, str]] = []

    def moved(url: str) -> None:
        told.append((trio.current_time(), url))

    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run, webhooks)
        async with webhooks.attach(nothing, moved=moved) as url:
            await trio.sleep(2 * 3600 - 1)
        nursery.cancel_scope.cancel()
    paths = {httpx.URL(each).path for each in (url, *(each for _, each in told))}
    assert len(paths) == 1
    for begins, each in ((0.0, url), *told):
        parsed = httpx.URL(each)
        label, _, domain = parsed.host.partition(".")
        assert (parsed.scheme, domain, parsed.port) == ("https", "workers.example.com", 8443)
        ip, expires, _ = read_label(label, SECRET)
        assert ip == "203.0.113.5"
        assert datetime.fromtimestamp(expires / 1000, UTC) == START + timedelta(seconds=begins + 3600)
    assert [at for at, _ in told] == [1800, 3600, 5400]


async def test_the_server_answers_by_its_name() -> None:
    config = WebhooksConfig.model_validate(
        {
            "provider": "statelessDns",
            "host": "0.0.0.0",  # what an operator writes
            "statelessDns": {"ip": "127.0.0.1", "domain": "workers.example.com", "secret": SECRET},
        }
    )
    with trio.fail_after(30):
        async with open_webhooks(Ports(), config) as webhooks, webhooks.attach(nothing) as url:
            parsed = httpx.URL(url)
            ip, expires, _ = read_label(parsed.host.partition(".")[0], SECRET)
            assert timedelta(hours=23) < datetime.fromtimestamp(expires / 1000, UTC) - datetime.now(UTC)
            async with httpx.AsyncClient(trust_env=False) as client:
                # As the DNS server would have it.
                answer = await client.get(parsed.copy_with(host=ip), headers={"Host": parsed.netloc.decode()})
            assert answer.status_code == 204


@pytest.mark.parametrize("duration", ["1 minute", "367 days", "99999999 days"])
def test_names_are_good_for_a_while_and_not_for_ever(duration: str) -> None:
    with pytest.raises(ValidationError, match="2 minutes at least and 366 days at most"):
        StatelessDnsConfig.model_validate(
            {"ip": "127.0.0.1", "domain": "example.com", "secret": SECRET, "expiresAfter": duration}
        )
