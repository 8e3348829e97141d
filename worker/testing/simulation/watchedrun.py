"""A run that tells the ledger when it has its place in the worker, and when it gives it back."""

from __future__ import annotations

from collections.abc import Callable

from worker.model import Resolution
from worker.queue.models import TaskClaim
from worker.taskrun import TaskRun
from worker.testing.simulation.ledger import PLACE
from worker.testing.simulation.ports import SimulatedPorts
from worker.workshop import Workshop


class WatchedRun(TaskRun):
    """Passed to the worker as its `make_run`."""

    def __init__(self, workshop: Workshop, claim: TaskClaim, on_fatal: Callable[[], None]) -> None:
        super().__init__(workshop, claim, on_fatal)
        ports = workshop.services.ports
        assert isinstance(ports, SimulatedPorts)
        self.ports = ports

    async def run(self) -> Resolution:
        """Run to the end and report it."""
        ledger, who = self.ports.world.ledger, self.ports.who
        ledger.opened(who, self.key, PLACE)
        try:
            return await super().run()
        finally:
            ledger.closed(who, self.key, PLACE)
