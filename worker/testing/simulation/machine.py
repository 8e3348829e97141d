"""What stands in for a worker's machine: what a killed worker leaves running, and the watchdog's clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from worker.ports import Ports
from worker.testing.simulation.ports import SimulatedPorts
from worker.watchdog import Watchdog


class Machine:
    """One start's; given to `run_worker` in place of what looks at this machine's processes and its clock."""

    def __init__(self, ports: SimulatedPorts) -> None:
        self._ports = ports
        self._watchdog: Watchdog | None = None

    async def end_processes(self, ports: Ports, owner: str) -> None:
        """End what an earlier worker has left, which takes a moment."""
        await trio.sleep(0.1)
        self._ports.world.variant.end_leftovers(self._ports)

    @asynccontextmanager
    async def open_watchdog(self, slack: float) -> AsyncGenerator[Watchdog, None]:
        """A watchdog on virtual time, without a thread: `check` asks it."""
        self._watchdog = Watchdog(slack, trio.current_time)
        try:
            yield self._watchdog
        finally:
            self._watchdog = None

    def check(self) -> None:
        """Nothing takes longer than its limit: in production the watchdog would end the worker."""
        overdue = self._watchdog.overdue() if self._watchdog is not None and not self._ports.is_cut else None
        if overdue is not None:
            self._ports.world.history.fail("no worker is stuck", f"{self._ports.who}: overdue is {overdue.what}")
