"""A tunnel that comes, goes and is refused, over real sockets."""

from __future__ import annotations

import logging
import random
from collections.abc import Generator
from itertools import pairwise

import httpx
import pytest
import trio
from tunnel_world import NAME, App, dechunked, open_server, open_world, pattern, tunnel_config

from worker.errors import FatalWorkerFault
from worker.ports import Ports
from worker.queue.errors import Forbidden, Unavailable
from worker.queue.models import WebsocktunnelTokenResponse
from worker.testing.tunnel import TunnelAuth
from worker.webhooks import Webhooks, open_webhooks
from worker.webhooks.websocktunnel import Websocktunnel


class Told(logging.Handler):
    """What the provider has logged; lets one wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._more = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.getMessage()}")
        self._more.set()
        self._more = trio.Event()

    async def wait_for(self, words: str) -> None:
        """Until a message has had `words` in it."""
        while not any(words in message for message in self.messages):
            await self._more.wait()


@pytest.fixture
def told() -> Generator[Told, None, None]:
    handler = Told()
    logger = logging.getLogger("worker.webhooks.websocktunnel")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def view(url: str) -> trio.SocketStream:
    """A viewer with an answer that has begun and does not end."""
    parsed = httpx.URL(url)
    stream = await trio.open_tcp_stream(parsed.host, parsed.port or 80)
    await stream.send_all(b"GET " + parsed.raw_path + b"wait HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in await stream.receive_some()
    return stream


# Reconnecting


@pytest.mark.parametrize("by", ["link", "server"])
async def test_a_tunnel_that_was_cut_comes_back_under_the_same_url(by: str) -> None:
    moved: list[str] = []
    app = App()
    async with open_world() as world, world.webhooks.attach(app, moved=moved.append) as url:
        async with await view(url) as viewer, trio.open_nursery() as nursery:
            nursery.start_soon(world.wait_connected_again)
            await trio.testing.wait_all_tasks_blocked()
            world.link.cut() if by == "link" else world.server.drop(NAME)
            await app.left.wait()
            while await viewer.receive_some():
                pass
        assert (await world.viewer.get(f"{url}hello")).status_code == 200
        assert moved == []
        assert world.auth.given == 1  # its first token was good for days
        assert await world.readiness() == "ok"


async def test_readiness_says_that_there_is_no_tunnel_and_the_log_why(told: Told) -> None:
    async with open_world() as world:
        world.server.refusals = [503] * 1000
        world.link.cut()
        await told.wait_for("it answered 503; it is tried again")
        assert await world.readiness() == "no tunnel"
        told.messages.clear()
        world.server.refusals = []
        await told.wait_for("connected")
        assert await world.readiness() == "ok"
        assert len(told.messages) == 1  # an outage is told once, and its end


async def test_under_another_name_those_who_are_attached_are_told() -> None:
    moved: list[str] = []
    told = trio.Event()

    def move(url: str) -> None:
        moved.append(url)
        told.set()

    async with open_world() as world, world.webhooks.attach(App(), moved=move) as url:
        world.server.prefix = f"http://localhost:{world.server.port}"
        world.link.cut()
        await told.wait()
        assert moved == [url.replace("127.0.0.1", "localhost")]
        assert (await world.viewer.get(f"{moved[0]}hello")).status_code == 200
        async with world.webhooks.attach(App()) as later:
            assert later.startswith(world.server.prefix)


async def test_a_worker_of_the_same_name_takes_the_tunnel_over() -> None:
    async with open_world() as world, world.webhooks.attach(App()) as url:
        config = tunnel_config(world.server.port)
        async with open_webhooks(Ports(), config, world.auth, NAME) as other, other.attach(App()) as other_url:
            assert (await world.viewer.get(f"{other_url}hello")).status_code in {200, 404}  # they fight for it
        await world.wait_connected_again()
        assert (await world.viewer.get(f"{url}hello")).status_code == 200


class Steady(random.Random):
    """The mean."""

    def random(self) -> float:
        return 0.5


async def test_connections_that_end_at_once_are_followed_by_longer_and_longer_waits() -> None:
    ports = Ports()
    ports.random = Steady()
    times: list[float] = []
    async with open_world(ports, reconnect={"first": "100 ms", "longest": "300 ms"}) as world:
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.wait_connected_again)
                await trio.testing.wait_all_tasks_blocked()
                world.server.drop(NAME)
            times.append(trio.current_time())
    gaps = [after - before for before, after in pairwise(times)]
    for gap, least in zip(gaps, (0.15, 0.225, 0.3, 0.3), strict=True):
        assert gap >= least


# Tokens


async def test_a_token_that_ends_soon_is_not_used_again() -> None:
    async with open_server() as (server, link, auth):
        auth.lifetime = 500
        async with open_webhooks(Ports(), tunnel_config(link.port), auth, NAME), trio.open_nursery() as nursery:
            nursery.start_soon(server.connected.wait)
            await trio.testing.wait_all_tasks_blocked()
            link.cut()
        assert auth.given == 2
        assert len(set(server.tokens)) == 2


async def test_a_token_that_is_refused_is_replaced_once() -> None:
    async with open_world() as world, world.webhooks.attach(App()) as url:
        world.server.refusals = [401]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.wait_connected_again)
            await trio.testing.wait_all_tasks_blocked()
            world.link.cut()
        assert len(world.server.tokens) == 3
        assert world.server.tokens[0] == world.server.tokens[1] != world.server.tokens[2]
        assert (await world.viewer.get(f"{url}hello")).status_code == 200


@pytest.mark.parametrize(("refusals", "attempts"), [([401, 401], 3), ([400], 2), ([404], 2)])
async def test_a_worker_that_is_refused_later_goes_on_without_a_tunnel(
    refusals: list[int], attempts: int, told: Told
) -> None:
    async with open_server() as (server, link, auth):
        webhooks = Webhooks(Ports())
        config = tunnel_config(link.port).websocktunnel
        assert config is not None

        async def serve(stream: trio.abc.Stream, scheme: str) -> None:
            raise AssertionError("nobody asks")

        provider = Websocktunnel(Ports(), config, NAME, auth.websocktunnel_token, serve, 10)
        async with trio.open_nursery() as nursery:
            await nursery.start(provider.run, webhooks)
            server.refusals = list(refusals)
            link.cut()
            # It ends by itself: nothing is tried any more.
        assert len(server.tokens) == attempts
        async with httpx.AsyncClient(transport=httpx.ASGITransport(webhooks)) as client:
            answer = await client.get("http://x/readyz")
        assert (answer.status_code, answer.text) == (503, "no tunnel\n")
        assert told.messages[-1].startswith("ERROR")
        assert f"it answered {refusals[0]}; ch" in told.messages[-1]


@pytest.mark.parametrize("status", [200, 302])
async def test_an_answer_that_is_no_refusal_may_pass(status: int, told: Told) -> None:
    """A load balancer says such things while there is nobody behind it."""
    async with open_world() as world:
        world.server.refusals = [status]
        told.messages.clear()
        world.link.cut()
        await told.wait_for(f"it answered {status}")
        await told.wait_for("connected")


class Mistaken(TunnelAuth):
    """Gives what is no token, once."""

    async def websocktunnel_token(self, audience: str, client: str) -> WebsocktunnelTokenResponse:
        token = await super().websocktunnel_token(audience, client)
        return token.model_copy(update={"token": "no token"}) if self.given == 1 else token


async def test_what_is_no_token_is_not_kept() -> None:
    async with open_server() as (server, link, _):
        config = tunnel_config(link.port, connectWithin="5 s")
        async with open_webhooks(Ports(), config, Mistaken(server), NAME):
            assert list(server.tunnels) == [NAME.encode()]


async def test_no_token_is_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_world() as world:
        world.server.refusals = [503, 401]
        world.link.cut()
        await world.wait_connected_again()
        tokens = {part for token in world.server.tokens for part in token.split(".")[1:]}
    assert len(tokens) >= 2
    assert caplog.records
    assert not any(token in record.getMessage() for record in caplog.records for token in tokens)


# Starting


@pytest.mark.parametrize(
    ("refusals", "remedy"),
    [
        ([400], "it answered 400; choose another webhooks.websocktunnel.clientId"),
        ([401, 401], "it answered 401; check webhooks.websocktunnel.audience"),
        ([403], "it answered 403; check that webhooks.websocktunnel.url"),
        ([302], "it answered 302; check that webhooks.websocktunnel.url"),
    ],
)
async def test_a_worker_that_is_refused_does_not_start(refusals: list[int], remedy: str) -> None:
    async with open_server() as (server, link, auth):
        server.refusals = refusals
        with pytest.raises(FatalWorkerFault, match=f"webhooks: the tunnel at 127.0.0.1:{link.port}: {remedy}"):
            async with open_webhooks(Ports(), tunnel_config(link.port), auth, NAME):
                pass
        assert server.refusals == []


async def test_the_wrong_audience_is_a_refusal() -> None:
    async with open_server() as (_, link, auth):
        config = tunnel_config(link.port, audience="another")
        with pytest.raises(FatalWorkerFault, match=r"401; check webhooks\.websocktunnel\.audience"):
            async with open_webhooks(Ports(), config, auth, NAME):
                pass


async def test_a_worker_without_the_scope_does_not_start() -> None:
    async with open_server() as (_, link, auth):
        auth.refusals = [Forbidden("auth.websocktunnelToken", 403, "InsufficientScopes", "no")]
        scope = f"auth:websocktunnel-token:tests/{NAME}"
        with pytest.raises(FatalWorkerFault, match=f"needs the scope {scope}"):
            async with open_webhooks(Ports(), tunnel_config(link.port), auth, NAME):
                pass


async def test_a_tunnel_without_a_deployment_is_told() -> None:
    with pytest.raises(FatalWorkerFault, match="needs a deployment"):
        async with open_webhooks(Ports(), tunnel_config(1)):
            pass


@pytest.mark.parametrize("trouble", ["server", "auth"])
async def test_what_may_pass_is_tried_again(trouble: str) -> None:
    async with open_server() as (server, link, auth):
        if trouble == "server":
            server.refusals = [503, 500]
        else:
            auth.refusals = [Unavailable("auth.websocktunnelToken", 1, "503")] * 2
        async with (
            open_webhooks(Ports(), tunnel_config(link.port), auth, NAME) as webhooks,
            webhooks.attach(App()) as url,
            httpx.AsyncClient(trust_env=False) as viewer,
        ):
            assert (await viewer.get(f"{url}hello")).status_code == 200
            assert not server.refusals
            assert not auth.refusals


async def test_a_scope_that_is_lost_later_may_come_back(told: Told) -> None:
    async with open_server() as (_, link, auth):
        auth.lifetime = 500
        async with open_webhooks(Ports(), tunnel_config(link.port), auth, NAME):
            auth.refusals = [Forbidden("auth.websocktunnelToken", 403, "InsufficientScopes", "no")] * 2
            told.messages.clear()
            link.cut()
            await told.wait_for("403 InsufficientScopes: no; it is tried again")
            await told.wait_for("connected")


async def test_a_worker_starts_without_a_tunnel_and_gets_it_later(told: Told) -> None:
    moved: list[str] = []
    async with open_server() as (server, link, auth):
        link.target = 1  # where nobody listens
        config = tunnel_config(link.port, connectWithin="200 ms")
        async with open_webhooks(Ports(), config, auth, NAME) as webhooks:
            assert "WARNING webhooks: no tunnel within 0.2 s; the worker starts without it" in told.messages
            async with webhooks.attach(App(), moved=moved.append) as url:
                assert url.startswith(f"http://127.0.0.1:{link.port}/{NAME}/")  # the most likely one
                link.target = server.port
                await told.wait_for("connected")
                async with httpx.AsyncClient(trust_env=False) as viewer:
                    assert (await viewer.get(f"{moved[0]}hello")).status_code == 200


# Stopping


@pytest.mark.parametrize("stalled", [True, False])
async def test_it_ends_at_once_whatever_is_under_way(stalled: bool) -> None:
    app = App()
    async with open_server() as (_, link, auth):
        with trio.CancelScope() as scope:
            async with (
                open_webhooks(Ports(), tunnel_config(link.port), auth, NAME) as webhooks,
                webhooks.attach(app) as url,
                trio.open_nursery() as viewers,
            ):
                for _ in range(3):
                    viewers.start_soon(drain, url)
                await app.entered.wait()
                if stalled:
                    link.stall()
                    await trio.testing.wait_all_tasks_blocked(0.1)  # when all buffers on the way are full
                began = trio.current_time()
                scope.cancel()
        assert trio.current_time() - began < 2
        assert app.left.is_set()


async def test_what_was_said_before_the_end_arrives() -> None:
    app = App()
    size = 2 * 1024 * 1024
    answer = bytearray()

    async def read(url: httpx.URL) -> None:
        async with await trio.open_tcp_stream(url.host, url.port or 80) as viewer:
            await viewer.send_all(b"GET " + url.raw_path + b"say?%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)
            async for chunk in viewer:
                answer.extend(chunk)

    async with open_server() as (_, link, auth), trio.open_nursery() as viewers:
        config = tunnel_config(link.port)
        async with open_webhooks(Ports(), config, auth, NAME) as webhooks, webhooks.attach(app) as url:
            link.rate = 8 * 1024 * 1024
            parsed = httpx.URL(url)
            viewers.start_soon(read, parsed)
            await app.said.wait()
    assert dechunked(bytes(answer)) == b"".join(pattern(size))


async def drain(url: str) -> None:
    parsed = httpx.URL(url)
    async with await trio.open_tcp_stream(parsed.host, parsed.port or 80) as viewer:
        await viewer.send_all(b"GET " + parsed.raw_path + b"flood HTTP/1.1\r\nHost: x\r\n\r\n")
        async for _ in viewer:
            pass


async def test_a_stalled_server_is_given_up_and_holds_up_no_attachment(told: Told) -> None:
    async with open_world(pingInterval="200 ms") as world:
        async with world.webhooks.attach(App()) as url:
            assert (await world.viewer.get(f"{url}hello")).status_code == 200
            world.link.stall()
        await told.wait_for("nothing was heard for 0.4 s")
        assert await world.readiness() != "ok"
        told.messages.clear()
        world.link.cut()
        await told.wait_for("connected")


async def test_a_server_that_grants_nothing_usable_is_refused() -> None:
    async with open_server() as (server, link, auth):
        server.prefix = "javascript:alert(1)//"
        with pytest.raises(FatalWorkerFault, match="its answer has no x-websocktunnel-client-url that could be used"):
            async with open_webhooks(Ports(), tunnel_config(link.port), auth, NAME):
                pass
