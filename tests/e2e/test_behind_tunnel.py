"""A whole worker behind a tunnel: the queue's tokens let it in, and the live log comes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from followed import STEP, Reader, digest, talkative

from worker.cli.common import Session
from worker.cli.following import LogCopy
from worker.errors import FatalWorkerFault
from worker.model import RunKey
from worker.testing.link import open_link
from worker.testing.tunnel import open_tunnel_server
from worker.testing.world import LIVE_LOG, open_world


def tunnel(url: str, audience: str = "e2e") -> dict[str, Any]:
    return {"provider": "websocktunnel", "websocktunnel": {"url": url, "audience": audience}}


async def test_the_live_log_is_seen_through_the_tunnel_while_the_task_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    (tmp_path / "work").mkdir()
    script = f"echo first; while [ ! -e {go} ]; do sleep 0.05; done; echo last"
    with trio.fail_after(60):
        async with (
            open_world(tmp_path / "work") as world,
            open_tunnel_server(secret=world.embedded.tunnel_secret, audience="e2e") as server,
            httpx.AsyncClient(trust_env=False) as viewer,
        ):
            config = world.config(webhooks=tunnel(server.url), plugins={"livelog": {"delay": 0}}, workerId="w1")
            async with world.worker(config):
                assert list(server.tunnels) == [b"local.w1.webhooks"]
                task_id = await world.create({"command": [["sh", "-c", script]], "maxRunTime": 60})
                url = await world.live_log(task_id)
                assert url.startswith(f"{server.base_url('local.w1.webhooks')}/")
                async with viewer.stream("GET", url) as answer:
                    seen = b""
                    async for chunk in answer.aiter_raw():
                        seen += chunk
                        if b"\nfirst\n" in seen:
                            go.touch()
                assert b"\nlast\n" in seen
                assert (await world.resolved(task_id)).state == "completed"
                # Another one got its place, so this run is over.
                await world.resolved(await world.create({"command": [["true"]], "maxRunTime": 60}))
                assert (await viewer.get(url)).status_code == 404
                stored = (await world.log(task_id)).encode()
                assert stored.startswith(seen)


async def test_a_log_is_followed_through_a_tunnel_that_breaks_and_pretends_not_to(
    tmp_path: Path,
) -> None:
    with trio.fail_after(120):
        async with (
            open_world(tmp_path) as world,
            open_tunnel_server(secret=world.embedded.tunnel_secret, audience="e2e") as server,
            open_link(server.port) as link,
        ):
            server.pretends = True
            webhooks = tunnel(f"ws://127.0.0.1:{link.port}")
            config = world.config(webhooks=webhooks, plugins={"livelog": {"delay": 0}}, numberOfTasks=1)
            async with world.worker(config), trio.open_nursery() as nursery:
                task_id = await world.create(talkative(6))
                await world.live_log(task_id)
                reader = Reader()
                copy = LogCopy(Session(world.queue, world.http, world.ports), RunKey(task_id, 0), LIVE_LOG, reader.take)
                nursery.start_soon(partial(copy.run, whole=True))
                for number in range(1, 4):
                    await reader.wait_size(number * STEP)
                    connected = server.connected
                    link.cut()
                    await connected.wait()
            await world.resolved(task_id)
            assert digest(reader.content) == digest((await world.log(task_id)).encode())


async def test_a_worker_that_the_tunnel_refuses_does_not_begin(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_world(tmp_path) as world,
            open_tunnel_server(secret=world.embedded.tunnel_secret, audience="e2e") as server,
        ):
            with pytest.raises(FatalWorkerFault, match=r"it answered 401; check webhooks\.websocktunnel\.audience"):
                await world.run_worker(world.config(webhooks=tunnel(server.url, "another")))
