"""Viewers, a tunnel server and a worker behind it, over real sockets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trio_websocket
from tunnel_world import NAME, App, dechunked, open_world, pattern

from worker.embedded.api_common import sign_jwt

MIB = 1024 * 1024
LARGE = {"requestBody": "64 MiB"}


async def ask(url: str, rest: bytes = b"", method: bytes = b"GET") -> trio.SocketStream:
    """A viewer who has sent a request, and reads the answer or does not."""
    parsed = httpx.URL(url)
    stream = await trio.open_tcp_stream(parsed.host, parsed.port or 80)
    await stream.send_all(method + b" " + parsed.raw_path + b" HTTP/1.1\r\nHost: x\r\n" + rest)
    return stream


async def rest_of(stream: trio.SocketStream) -> bytes:
    async with stream:
        return b"".join([bytes(chunk) async for chunk in stream])


async def chunks(size: int) -> AsyncIterator[bytes]:
    for chunk in pattern(size):
        yield chunk


def sha256(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# Exchanges


async def test_the_url_is_the_servers_and_the_handler_gets_the_path_below_it() -> None:
    async with open_world() as world, world.webhooks.attach(App()) as url:
        assert url.startswith(world.server.base_url(NAME) + "/")
        assert (await world.viewer.get(f"{url}hello?a=b")).text == "http /hello a=b"
        assert (await world.viewer.get(f"{world.server.base_url(NAME)}/nothing/")).status_code == 404
        assert (await world.viewer.get(f"{world.server.prefix}/nobody/")).status_code == 504
        assert await world.readiness() == "ok"


async def test_large_bodies_come_whole_in_both_directions() -> None:
    size = 40 * MIB
    async with open_world(limits=LARGE) as world, world.webhooks.attach(App()) as url:
        answer = await world.viewer.post(f"{url}digest", content=chunks(size))
        assert answer.text == sha256(pattern(size))
        async with world.viewer.stream("GET", f"{url}bytes?{size}") as stream:
            assert sha256([chunk async for chunk in stream.aiter_raw()]) == sha256(pattern(size))


async def test_a_body_comes_back_while_it_is_sent() -> None:
    size = 20 * MIB
    async with open_world(limits=LARGE) as world, world.webhooks.attach(App()) as url:
        stream = await ask(f"{url}both", f"Content-Length: {size}\r\n\r\n".encode(), b"POST")

        async def send() -> None:
            for chunk in pattern(size):
                await stream.send_all(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answer = await rest_of(stream)
        assert sha256([dechunked(answer)]) == sha256(pattern(size))


async def test_many_viewers_at_once() -> None:
    size = MIB // 2
    expected = sha256(pattern(size))

    async with open_world() as world, world.webhooks.attach(App()) as url:

        async def view() -> None:
            answer = await rest_of(await ask(f"{url}bytes?{size}", b"\r\n"))
            assert sha256([dechunked(answer)]) == expected

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(view)


async def test_a_websocket_goes_through() -> None:
    async with (
        open_world() as world,
        world.webhooks.attach(App()) as url,
        trio_websocket.open_websocket_url(url.replace("http:", "ws:") + "shell") as socket,
    ):
        for size in (0, 1, 200_000):
            await socket.send_message(b"x" * size)
            assert await socket.get_message() == b"x" * size


async def test_a_viewer_who_has_said_everything_gets_the_whole_answer() -> None:
    async with open_world() as world, world.webhooks.attach(App()) as url:
        stream = await ask(f"{url}digest", b"Content-Length: 4\r\n\r\nbody", b"POST")
        await stream.send_eof()
        answer = await rest_of(stream)
        assert answer.endswith(hashlib.sha256(b"body").hexdigest().encode())


async def test_when_a_viewer_goes_the_handler_is_told() -> None:
    app = App()
    async with open_world() as world, world.webhooks.attach(app) as url:
        viewer = await ask(f"{url}wait", b"\r\n")
        await app.entered.wait()
        await viewer.aclose()
        await app.left.wait()


async def test_a_viewer_who_reads_nothing_holds_up_nobody_and_is_cut_off() -> None:
    app = App()
    async with open_world(limits={"stalledTime": "1 second"}) as world, world.webhooks.attach(app) as url:
        idle = [await ask(f"{url}flood", b"\r\n") for _ in range(5)]
        await app.entered.wait()
        assert (await world.viewer.get(f"{url}bytes?{8 * MIB}")).content == b"".join(pattern(8 * MIB))
        await app.left.wait()
        for viewer in idle:
            await viewer.aclose()


@pytest.mark.parametrize("path", ["wait", "flood"])
async def test_detaching_ends_what_viewers_have_open_and_the_tunnel_stays(path: str) -> None:
    app = App()
    async with open_world() as world:
        async with world.webhooks.attach(app) as url:
            viewer = await ask(url + path, b"\r\n")
            await app.entered.wait()
        assert app.left.is_set()
        answer = await rest_of(viewer)
        assert not answer.endswith(b"\r\n0\r\n\r\n")
        assert (await world.viewer.get(f"{url}hello")).status_code == 404
        async with world.webhooks.attach(App()) as other:
            assert (await world.viewer.get(f"{other}hello")).status_code == 200
        assert len(world.server.tokens) == 1


async def test_no_more_exchanges_at_once_than_connections() -> None:
    app = App()
    async with open_world(limits={"connections": 2}) as world, world.webhooks.attach(app) as url:
        one, two = [await ask(f"{url}wait", b"\r\n") for _ in range(2)]
        for viewer in (one, two):
            assert await viewer.receive_some()
        assert await rest_of(await ask(f"{url}hello", b"\r\n")) == b""
        await one.aclose()
        await app.left.wait()
        await two.aclose()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense", b"400"),
        (b"GET / HTTP/1.1\r\nx-websocktunnel-id: w1\r\nAuthorization: Bearer TOKEN", b"401"),
    ],
)
async def test_what_makes_no_sense_does_not_end_the_server_of_the_tests(request_: bytes, status: bytes) -> None:
    async with open_world() as world, world.webhooks.attach(App()) as url:
        token = sign_jwt({}, world.server.secret).encode()
        stranger = await trio.open_tcp_stream("127.0.0.1", world.server.port)
        await stranger.send_all(request_.replace(b"TOKEN", token) + b"\r\n\r\n")
        assert (await rest_of(stranger)).startswith(b"HTTP/1.1 " + status)
        assert (await world.viewer.get(f"{url}hello")).status_code == 200


@pytest.mark.parametrize("pretends", [True, False])
async def test_how_a_cut_looks_to_viewers_is_up_to_the_server(pretends: bool) -> None:
    """The one that deployments run makes a whole answer of it: whoever follows a log must not trust its end."""
    app = App()
    async with open_world() as world, world.webhooks.attach(app) as url:
        world.server.pretends = pretends
        viewer = await ask(f"{url}wait", b"\r\n")
        assert b"200" in await viewer.receive_some()
        world.link.cut()
        assert (await rest_of(viewer)).endswith(b"0\r\n\r\n") == pretends
