"""A live log through a proxy that is restarted again and again: whoever follows it has every byte once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket
from followed import STEP, Reader, digest, talkative

from worker.cli.common import Session
from worker.cli.following import LogCopy
from worker.model import RunKey
from worker.serving import listen, port_of
from worker.testing.link import Link
from worker.testing.world import LIVE_LOG, World, open_world

DOWN = 0.1  # seconds that the proxy is down for


class Proxy:
    """A link that can be restarted; `connections` came through it so far."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._up = trio.CancelScope()
        self._connected = trio.Event()
        self.connections = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled."""
        first = True
        while True:
            with trio.CancelScope() as self._up:
                listeners = await listen("127.0.0.1", self._link.port)
                if first:
                    task_status.started()
                await trio.serve_listeners(self._handle, listeners)
            first = False
            await trio.sleep(DOWN)

    async def _handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self._connected.set()
        await self._link.handle(stream)

    async def restart(self) -> None:
        """Break all connections, wherever they are; return when somebody has come again."""
        self._connected = trio.Event()
        self._up.cancel()
        await self._connected.wait()


async def free_port() -> int:
    listeners = await listen("127.0.0.1", 0)
    port = port_of(listeners)
    for listener in listeners:
        await listener.aclose()
    return port


@asynccontextmanager
async def proxied_world(folder: Path) -> AsyncGenerator[tuple[World, Proxy], None]:
    """A world with a worker that is reached through the proxy alone."""
    own, public = await free_port(), await free_port()
    proxy = Proxy(Link(own, public, piece=4096))
    webhooks = {"port": own, "publicUrl": f"http://127.0.0.1:{public}"}
    with trio.fail_after(300):
        async with open_world(folder) as world, trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            config = world.config(plugins={"livelog": {"delay": 0}}, webhooks=webhooks, numberOfTasks=1)
            async with world.worker(config):
                yield world, proxy
            nursery.cancel_scope.cancel()


async def by_command(world: World, task_id: str, reader: Reader) -> None:
    copy = LogCopy(Session(world.queue, world.http, world.ports), RunKey(task_id, 0), LIVE_LOG, reader.take)
    await copy.run(whole=True)


async def by_websocket(world: World, task_id: str, reader: Reader) -> None:
    url = httpx.URL(await world.live_log(task_id))
    while await read_on(url, reader):
        pass


@pytest.mark.parametrize("follow", [by_command, by_websocket])
@pytest.mark.parametrize(
    ("seconds", "restarts"), [pytest.param(4, 4, id="4s"), pytest.param(60, 30, id="60s", marks=pytest.mark.full)]
)
async def test_a_follower_has_every_byte_once(
    tmp_path: Path, follow: Callable[[World, str, Reader], Awaitable[None]], seconds: int, restarts: int
) -> None:
    async with proxied_world(tmp_path) as (world, proxy):
        task_id = await world.create(talkative(seconds))
        await world.live_log(task_id)
        reader = Reader()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, world, task_id, reader)
            step = seconds * STEP // (restarts + 4)
            for number in range(1, restarts + 1):
                await reader.wait_size(number * step)
                await proxy.restart()
        await world.resolved(task_id)
        assert proxy.connections > restarts
        assert digest(reader.content) == digest((await world.log(task_id)).encode())


async def read_on(url: httpx.URL, reader: Reader) -> bool:
    """Read from where the reader is until the log ends or the connection does; whether there is more to come."""
    more = True
    try:
        async with await trio.open_tcp_stream("127.0.0.1", url.port or 80) as stream, trio.open_nursery() as nursery:
            path = f"{url.path}?offset={len(reader.content)}"
            socket = await trio_websocket.wrap_client_stream(nursery, stream, url.netloc.decode(), path)
            while True:
                message = await socket.get_message()
                assert isinstance(message, bytes)
                reader.content += message
                reader.wake()
    except* (OSError, trio_websocket.HandshakeError):
        pass  # the proxy is down
    except* trio_websocket.ConnectionClosed as closed:
        more = any(error.reason is None or error.reason.code != 1000 for error in closed.exceptions)  # type: ignore[union-attr]  # no groups
    return more
