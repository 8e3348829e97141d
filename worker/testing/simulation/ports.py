"""The ports of one participant: its own wall clock, seeded randomness, files that fail, the simulated network."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import httpx
import trio

from worker.disk import Room, look
from worker.ports import Ports
from worker.testing.simulation.chaos import seeded

if TYPE_CHECKING:
    from worker.testing.simulation.world import World

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# What a dead worker may still do: give back what this process, which lives on, would have to keep.
_RELEASING = {"close", "rmtree"}
REMOVES_LOG = "_remove"  # the last that a run does with files


class SimulatedPorts(Ports):
    """Ports of the participant `who`, whose wall clock is `skew` seconds ahead of the queue's.

    `cut` takes the world away from it: no request leaves, no file changes, its engine is dead.
    """

    def __init__(self, world: World, who: str, skew: float = 0.0, *, faulty: bool = True) -> None:
        self.world = world
        self.who = who
        self.skew = skew
        self.faulty = faulty
        self.is_cut = False
        self.random = seeded(f"{world.plan.seed}/{who}")

    def cut(self, *, leaves: bool) -> None:
        """From now on nothing that this participant does has an effect. `leaves`: what executes outlives it."""
        self.is_cut = True
        self.world.ledger.died(self.who, leaves=leaves)
        self.world.network.cut(self.who)

    def now(self) -> datetime:
        """The virtual time, as this participant's clock shows it."""
        return EPOCH + timedelta(seconds=trio.current_time() + self.skew)

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        """Inline, since virtual time does not wait for threads. May be slow, and may fail as a full disk does."""
        await trio.lowlevel.checkpoint()
        name = getattr(function, "__qualname__", "")
        if self.is_cut and name.rpartition(".")[2] not in _RELEASING:
            raise OSError(errno.EIO, "the machine is dead")
        if not self.faulty:
            return function(*args)
        chaos = self.world.chaos
        if chaos.strikes("disk slow"):
            with trio.CancelScope(shield=True):  # a call that has begun is waited for
                await trio.sleep(chaos.between(0.001, 5))
        if function is look:
            low = chaos.strikes("disk low")
            return Room(0 if low else 2**39, None)  # type: ignore[return-value]  # it is that function
        if (name in {"open", "pwrite"} or "compress" in name) and chaos.strikes("disk full"):
            self.world.history.note(self.who, "disk full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = self.world.variant.run_sync(self, function, *args)
        if name == REMOVES_LOG and chaos.strikes("disk fails after the report"):
            self.world.history.note(self.who, "disk fails")
            raise OSError(errno.EIO, "input/output error")
        return result

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        """The way to the queue, through the simulated network."""
        return self.world.variant.transport(self, self.world.network.transport(self))
