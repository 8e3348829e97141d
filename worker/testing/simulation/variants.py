"""Workers that are broken on purpose, each in one way: a simulation that does not catch them is worth nothing.

A variant wraps what a worker is given (files, network, engine, plugin); nothing of the worker itself is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import trio

from worker.model import Resolution, State
from worker.run import Run
from worker.schema import Slice

if TYPE_CHECKING:
    from worker.testing.simulation.engine import SimulatedSandbox
    from worker.testing.simulation.ports import SimulatedPorts
    from worker.testing.simulation.world import World

T = TypeVar("T")


class Variant:
    """The worker as it is."""

    def run_sync(self, ports: SimulatedPorts, function: Callable[..., T], *args: object) -> T:
        """Perform a call on files."""
        return function(*args)

    def transport(self, ports: SimulatedPorts, inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        """The worker's way to the queue."""
        return inner

    def start(self, world: World, sandbox: SimulatedSandbox, nursery: trio.Nursery) -> None:
        """Start a sandbox's process in the sandbox's own `nursery`."""
        nursery.start_soon(sandbox.run)

    async def kill(self, world: World, sandbox: SimulatedSandbox, grace: float) -> None:
        """End a sandbox's process."""
        await sandbox.kill(grace)

    async def finished(self, world: World, who: str, run: Run[Slice], resolution: Resolution) -> None:
        """The end of a run, before its report."""


class ResolvesTwice(Variant):
    """A failure is reported by whoever finds it, and then once more as what the run came to."""

    async def finished(self, world: World, who: str, run: Run[Slice], resolution: Resolution) -> None:
        if resolution.state is State.EXCEPTION:
            await run.queue.report_failed(run.key)


class DropsLastChunk(Variant):
    """Now and then the last bytes of a log never reach the disk."""

    def run_sync(self, ports: SimulatedPorts, function: Callable[..., T], *args: object) -> T:
        if function is os.pwrite and ports.world.chaos.random.random() < 0.2:
            descriptor, data, offset = args
            assert isinstance(data, bytes)
            os.pwrite(descriptor, data[: len(data) // 2], offset)
            return len(data)  # type: ignore[return-value]
        return function(*args)


class ForgetsReclaim(Variant):
    """Now and then the worker believes in a reclaim that it has not made."""

    def __init__(self) -> None:
        self.claims: dict[str, dict[str, Any]] = {}  # by the path of their reclaim

    def transport(self, ports: SimulatedPorts, inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        return _Forgetful(ports, inner, self.claims)


class _Forgetful(httpx.AsyncBaseTransport):
    """Answers some reclaims itself, from what the queue said of the run when it was claimed."""

    def __init__(
        self, ports: SimulatedPorts, inner: httpx.AsyncBaseTransport, claims: dict[str, dict[str, Any]]
    ) -> None:
        self._ports = ports
        self._inner = inner
        self._claims = claims

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path in self._claims and self._ports.world.chaos.random.random() < 0.5:
            return httpx.Response(200, json=self._renewed(path), request=request)
        response = await self._inner.handle_async_request(request)
        if "/claim-work/" not in path:
            return response
        body = await response.aread()
        with suppress(ValueError, LookupError, TypeError):
            for claim in json.loads(body)["tasks"]:
                run = f"{claim['status']['taskId']}/runs/{claim['runId']}"
                self._claims[f"/api/queue/v1/task/{run}/reclaim"] = claim
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=request)

    def _renewed(self, path: str) -> dict[str, Any]:
        claim = self._claims[path]
        until = self._ports.world.queue_ports.now() + timedelta(minutes=5)
        return {name: value for name, value in claim.items() if name != "task"} | {"takenUntil": until.isoformat()}


class LeavesChild(Variant):
    """Now and then a process is left running when its sandbox is killed."""

    def start(self, world: World, sandbox: SimulatedSandbox, nursery: trio.Nursery) -> None:
        async def detached() -> None:
            with suppress(Exception):
                await sandbox.run()

        world.nursery.start_soon(detached)

    async def kill(self, world: World, sandbox: SimulatedSandbox, grace: float) -> None:
        if world.chaos.random.random() < 0.8:
            await sandbox.kill(grace)


VARIANTS: Mapping[str, type[Variant]] = MappingProxyType(
    {
        "none": Variant,
        "resolves-twice": ResolvesTwice,
        "drops-last-chunk": DropsLastChunk,
        "forgets-reclaim": ForgetsReclaim,
        "leaves-child": LeavesChild,
    }
)
