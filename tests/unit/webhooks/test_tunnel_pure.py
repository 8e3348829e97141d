"""What of a tunnel needs no network: waits, what a server grants, the config."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import pairwise

import pytest
import trio
from pydantic import ValidationError
from trio.testing import MockClock

from worker.ports import Ports
from worker.queue.errors import Unavailable
from worker.schema import JsonObject, problems_of
from worker.webhooks import Webhooks, WebhooksConfig
from worker.webhooks.tunnelconfig import ReconnectConfig, WebsocktunnelConfig, next_wait
from worker.webhooks.websocktunnel import GivenUp, Scheme, Token, Websocktunnel, granted_url


def test_waits_grow_by_half_more_or_less_and_are_limited() -> None:
    config = ReconnectConfig(first=timedelta(seconds=0.5), longest=timedelta(seconds=60))
    assert [next_wait(0, config, jitter) for jitter in (0, 0.5, 1)] == [0.25, 0.5, 0.75]
    assert [next_wait(8, config, jitter) for jitter in (0, 0.5, 1)] == [8, 12, 16]
    wait = 0.0
    rng = random.Random(1)
    for _ in range(100):
        wait = next_wait(wait, config, rng.random())
        assert 0.25 <= wait <= 60
    assert wait == 60


async def test_waits_do_not_begin_anew_after_an_attempt_that_took_long(autojump_clock: MockClock) -> None:
    """Only a connection that lasted does that: what answers late may have too much to do already."""
    began: list[float] = []
    slowness = 120.0

    async def fetch(audience: str, client: str) -> Token:
        began.append(trio.current_time())
        await trio.sleep(slowness)
        raise Unavailable("auth.websocktunnelToken", 1, "503")

    async def serve(stream: trio.abc.Stream, scheme: Scheme) -> None:
        raise AssertionError("nobody asks")

    provider = Websocktunnel(Ports(), WebsocktunnelConfig.model_validate(TUNNEL), "w1", fetch, serve, 10)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run, Webhooks(Ports()))
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    waits = [after - before - slowness for before, after in pairwise(began)]
    assert waits[-1] > 30


@pytest.mark.parametrize("value", [b"https://t.example/w1", b"http://127.0.0.1:80/w1/"])
def test_a_url_that_can_be_used(value: bytes) -> None:
    assert granted_url([(b"server", b"x"), (b"x-websocktunnel-client-url", value)]).host


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"/w1"],
        [b"ftp://t.example/w1"],
        [b"https:///w1"],
        [b"https://t.example/w1?token=1"],
        [b"https://t.example/w1#x"],
        [b"https://user:password@t.example/w1"],
        [b"https://t.example/\xff"],
        [b"https://t.example:port/"],
        [b"https://t.example/\r\nx"],
        [b"https://one.example", b"https://two.example"],
    ],
)
def test_a_url_that_cannot_be_used(values: list[bytes]) -> None:
    with pytest.raises(GivenUp, match="x-websocktunnel-client-url"):
        granted_url([(b"x-websocktunnel-client-url", value) for value in values])


TUNNEL = {"url": "https://t.example", "audience": "a"}
DNS = {"ip": "203.0.113.5", "domain": "w.example", "secret": "s"}


def told(document: JsonObject) -> dict[str, str]:
    """What is wrong, by path."""
    with pytest.raises(ValidationError) as raised:
        WebhooksConfig.model_validate(document)
    return {problem.path: problem.message for problem in problems_of(raised.value)}


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        ({"websocktunnel": TUNNEL}, "websocktunnel", "it is for provider websocktunnel"),
        ({"provider": "websocktunnel", "websocktunnel": TUNNEL, "statelessDns": DNS}, "statelessDns", "statelessDns"),
        (
            {"provider": "websocktunnel", "websocktunnel": TUNNEL, "publicUrl": "https://x.example"},
            "publicUrl",
            "it is for provider local",
        ),
        (
            {"provider": "websocktunnel", "websocktunnel": {"url": "https://x.example"}},
            "websocktunnel.audience",
            "miss",
        ),
        (
            {"provider": "statelessDns", "host": "0.0.0.0", "statelessDns": {**DNS, "url": "x"}},
            "statelessDns.url",
            "known",
        ),
        ({"provider": "statelessDns", "statelessDns": DNS}, "", "host 127.0.0.1 is no address that others can use"),
        *(
            (
                {"provider": "websocktunnel", "websocktunnel": {**TUNNEL, name: value}},
                f"websocktunnel.{name}",
                "xpected",
            )
            for name, value in (
                ("url", "tunnel.example"),
                ("url", "https://t.example/?a=b"),
                ("url", "https://user:secret@t.example"),
                ("pingInterval", 0),
            )
        ),
        *(
            ({"provider": "websocktunnel", "websocktunnel": {**TUNNEL, name: value}}, f"websocktunnel.{name}", "match")
            for name, value in (("audience", "a b"), ("clientId", "a/b"), ("clientId", ".."), ("clientId", "x" * 129))
        ),
        *(
            (
                {"provider": "statelessDns", "host": "::", "statelessDns": {**DNS, name: value}},
                f"statelessDns.{name}",
                words,
            )
            for name, value, words in (
                ("ip", "::1", "expected an IPv4 address"),
                ("ip", "203.0.113.256", "expected an IPv4 address"),
                ("domain", "w.example.", "match"),
                ("domain", "https://w.example", "match"),
                ("secret", "", "at least 1"),
                ("expiresAfter", "1 minute", "2 minutes at least"),
            )
        ),
    ],
)
def test_a_mistake_is_told_with_its_path(document: JsonObject, path: str, words: str) -> None:
    problems = told(document)
    assert list(problems) == [path]
    assert words in problems[path]


def test_what_a_provider_needs_is_told_option_by_option() -> None:
    missing = "is required and is missing"
    assert told({"provider": "websocktunnel"}) == dict.fromkeys(
        ("websocktunnel.url", "websocktunnel.audience"), missing
    )
    assert told({"provider": "statelessDns", "host": "0.0.0.0"}) == dict.fromkeys(
        ("statelessDns.ip", "statelessDns.domain", "statelessDns.secret"), missing
    )
    assert list(told({"provider": ["websocktunnel"]})) == ["provider"]


@pytest.mark.parametrize(
    ("url", "websocket", "base"),
    [
        ("https://t.example", "wss://t.example/", "https://t.example/w1"),
        ("wss://t.example/", "wss://t.example/", "https://t.example/w1"),
        ("ws://t.example:8080", "ws://t.example:8080/", "http://t.example:8080/w1"),
        ("http://t.example/tunnel/", "ws://t.example/tunnel/", "http://t.example/tunnel/w1"),
    ],
)
def test_where_to_connect_to_and_what_to_expect(url: str, websocket: str, base: str) -> None:
    config = WebsocktunnelConfig(url=url, audience="a")
    assert str(config.websocket_url) == websocket
    assert config.likely_base("w1") == base


def test_secrets_do_not_show() -> None:
    config = WebhooksConfig.model_validate(
        {"provider": "statelessDns", "host": "0.0.0.0", "statelessDns": {**DNS, "secret": "hush"}}
    )
    assert "hush" not in repr(config)
