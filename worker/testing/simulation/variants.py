"""Workers that are broken on purpose, each in one way: a simulation that does not catch them is worth nothing.

Most wrap what a worker is given (files, network, engine). Some replace a few lines of its `TaskRun`.
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

from worker.model import Cause, CauseKind, Resolution
from worker.taskrun import RECLAIM_PAUSE
from worker.testing.simulation.watchedrun import WatchedRun

if TYPE_CHECKING:
    from worker.testing.simulation.engine import SimulatedSandbox
    from worker.testing.simulation.ports import SimulatedPorts
    from worker.testing.simulation.world import World

T = TypeVar("T")


class Variant:
    """The worker as it is."""

    make_run: type[WatchedRun] = WatchedRun

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

    def exit_code(self, code: int) -> int:
        """What the worker learns of a process's exit code."""
        return code

    def end_leftovers(self, ports: SimulatedPorts) -> None:
        """End what earlier lives of a worker have left."""
        ports.world.ledger.end_leftovers(ports.who)


class _Unguarded(WatchedRun):
    async def _run_and_report(self) -> Resolution:
        try:
            return await super()._run_and_report()
        except Exception:
            self.resolution = None
            raise


class ResolvesTwice(Variant):
    """Whoever finds that a run failed reports it, though it was reported already."""

    make_run = _Unguarded


class _Unsure(WatchedRun):
    async def _report_once(self, resolution: Resolution) -> None:
        await super()._report_once(resolution)
        await super()._report_once(resolution)


class ReportsAgain(Variant):
    """A report that was taken is sent once more."""

    make_run = _Unsure


class _Timeless(WatchedRun):
    async def _watch_deadline(self) -> None:
        await trio.sleep_forever()


class IgnoresDeadline(Variant):
    """A deadline is noticed when the queue tells of it."""

    make_run = _Timeless


class _Lenient(WatchedRun):
    def stop(self, cause: Cause) -> None:
        if cause.kind is not CauseKind.MAX_RUN_TIME:
            super().stop(cause)


class IgnoresMaxRunTime(Variant):
    """A task runs for as long as it likes."""

    make_run = _Lenient


class _Faint(WatchedRun):
    async def _reclaim(self) -> bool:
        ours = False
        with trio.move_on_after(RECLAIM_PAUSE):
            ours = await super()._reclaim()
        if not ours:
            self.stop(Cause(CauseKind.CLAIM_LOST, "a reclaim failed"))
        return ours


class LosesHeart(Variant):
    """A reclaim that fails, for whatever reason, ends the run."""

    make_run = _Faint


class Quits(Variant):
    """A worker ends when a claim fails."""

    def transport(self, ports: SimulatedPorts, inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        return _Offended(ports, inner)


class _Offended(httpx.AsyncBaseTransport):
    def __init__(self, ports: SimulatedPorts, inner: httpx.AsyncBaseTransport) -> None:
        self._ports = ports
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._inner.handle_async_request(request)
        except httpx.HTTPError:
            if "/claim-work/" in request.url.path:
                for keeper in self._ports.world.keepers:
                    if keeper.life is not None and keeper.life.ports is self._ports and keeper.life.supervisor:
                        keeper.life.supervisor.abort()
            raise


class IgnoresExitCode(Variant):
    """Every task that ends has succeeded."""

    def exit_code(self, code: int) -> int:
        return 0


class ForgetsLeftovers(Variant):
    """A worker does not look for what a killed one has left."""

    def end_leftovers(self, ports: SimulatedPorts) -> None:
        pass


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


class Hangs(Variant):
    """To end a sandbox takes much longer than it may."""

    async def kill(self, world: World, sandbox: SimulatedSandbox, grace: float) -> None:
        await sandbox.kill(grace)
        await trio.sleep(1000)


class Spins(Variant):
    """The event loop is blocked for good."""

    def exit_code(self, code: int) -> int:
        while True:
            pass


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
        "reports-again": ReportsAgain,
        "ignores-max-run-time": IgnoresMaxRunTime,
        "quits": Quits,
        "hangs": Hangs,
        "spins": Spins,
        "ignores-deadline": IgnoresDeadline,
        "loses-heart": LosesHeart,
        "ignores-exit-code": IgnoresExitCode,
        "forgets-leftovers": ForgetsLeftovers,
    }
)
