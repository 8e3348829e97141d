"""Keeps one worker running: starts it, makes it suffer what the plan wants, and starts it anew when it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from plugins.base import Plugin
from worker.claims import StopReason
from worker.config import Config, parse_config
from worker.queue.credentials import Credentials
from worker.supervisor import Supervisor, run_worker
from worker.testing.simulation import limits
from worker.testing.simulation.history import describe
from worker.testing.simulation.hooks import Faulty
from worker.testing.simulation.machine import Machine
from worker.testing.simulation.ports import SimulatedPorts

if TYPE_CHECKING:
    from worker.testing.simulation.plan import Event, WorkerPlan
    from worker.testing.simulation.world import World

PLUGINS: Mapping[str, type[Plugin[Any, Any]]] = {"faulty": Faulty}
PAUSE = 2.0  # seconds until a worker that ended is started anew


class Life:
    """One start of a worker. `ports.who` names it."""

    def __init__(self, ports: SimulatedPorts) -> None:
        self.ports = ports
        self.machine = Machine(ports)
        self.scope = trio.CancelScope()
        self.supervisor: Supervisor | None = None
        self.reason: StopReason | None = None
        self.ended = trio.Event()
        self.task: trio.lowlevel.Task | None = None


class Keeper:
    """One worker, from life to life."""

    def __init__(self, world: World, plan: WorkerPlan, credentials: Credentials) -> None:
        self._world = world
        self._credentials = credentials
        self._ending = False
        self.plan = plan
        self.folder = world.folder / plan.name
        self.number = 0
        self.life: Life | None = None
        self.at_rest: list[str] = []  # the names of Trio's tasks of a worker that has had no run yet

    async def run(self) -> None:
        """Start it again and again."""
        while not self._ending:
            name = f"{self.plan.name}.{self.number}"
            self.number += 1
            self.life = Life(SimulatedPorts(self._world, name, self.plan.skew))
            await self._live(self.life)
            self.life.ended.set()
            self.life = None
            await trio.sleep(PAUSE)

    async def _live(self, life: Life) -> None:
        who = life.ports.who
        self._world.history.note(who, f"starts, {self.plan.capacity} at once, clock {self.plan.skew:+g} s")
        try:
            with life.scope:
                async with trio.open_nursery() as nursery:
                    life.task = trio.lowlevel.current_task()
                    life.supervisor = await nursery.start(self._work, life)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
            if not life.ports.is_cut:
                self._world.history.fail("run_worker never raises", f"{who}: {describe(error)}")
        if life.ports.is_cut:
            return
        self._world.history.note(who, f"has ended: {life.reason}")
        allowed = {StopReason.STOPPED} if who in self._world.told else set()
        allowed |= {StopReason.FAULT} if who in self._world.broken_for_good else set()
        if life.reason not in allowed:
            self._world.history.fail("a worker goes on until it is told to stop", f"{who} ended: {life.reason}")
        self.check_left(life.ports.who)

    async def _work(self, life: Life, *, task_status: trio.TaskStatus[Supervisor]) -> None:
        life.reason = await run_worker(
            self._config(),
            life.ports,
            root_url=self._world.embedded.root_url,
            credentials=self._credentials,
            extra_plugins=PLUGINS,
            open_watchdog=life.machine.open_watchdog,
            end_processes=life.machine.end_processes,
            make_run=self._world.variant.make_run,
            task_status=task_status,
        )

    def tasks(self) -> list[str]:
        """The names of Trio's tasks that the worker consists of now."""
        life = self.life
        if life is None or life.supervisor is None or life.task is None:
            return []
        return sorted(task.name for task in _below(life.task))

    def logs(self) -> list[str]:
        """The logs that it has on its disk."""
        return [path.name for path in sorted(self.folder.glob("logs/*"))]

    def check_left(self, who: str) -> None:
        """Nothing of a run is left, neither in the machine nor on its disk."""
        left = self._world.ledger.left(who) + self.logs()
        if left:
            self._world.history.fail("nothing outlives its run", f"{who}: {left}")

    async def suffer(self, event: Event) -> None:
        """SIGTERM, twice perhaps, SIGKILL, or the death of its machine."""
        life = self.life
        if life is None or life.supervisor is None:
            return
        self._world.history.note(life.ports.who, event.kind)
        if event.kind in {"kill", "machine dies"}:
            life.ports.cut(leaves=event.kind == "kill")
            life.scope.cancel()
            return
        self._world.told[life.ports.who] = self._world.time()
        life.supervisor.stop()
        if self.plan.on_term == "abort":
            self._world.nursery.start_soon(self._watch_end, life, self.plan.grace + limits.STOP_SLACK)
        if event.kind == "term twice":
            await trio.sleep(event.length)
            self._world.history.note(life.ports.who, "second signal")
            life.supervisor.abort()
            self._world.nursery.start_soon(self._watch_end, life, limits.ABORT_SLACK)

    async def _watch_end(self, life: Life, limit: float) -> None:
        """It was told to stop: soon nothing executes, and it has ended `limit` and the kill grace later."""
        who, told = life.ports.who, trio.current_time()
        with trio.move_on_at(told + self.plan.kill_grace + limits.DEAD_SLACK):
            await life.ended.wait()
        if executing := self._world.ledger.executing(who):
            self._world.history.fail("a worker that is told to stop ends what executes", f"{who} {executing}")
        with trio.move_on_at(told + self.plan.kill_grace + limit + self._world.shielded()):
            await life.ended.wait()
        if not life.ended.is_set():
            self._world.history.fail("a worker that is told to stop stops", who)

    async def end(self) -> None:
        """Stop it for good. Called when it is idle."""
        self._ending = True
        life = self.life
        if life is None or life.supervisor is None:
            return
        self._world.told[life.ports.who] = self._world.time()
        life.supervisor.stop()
        await self._watch_end(life, limits.STOP_SLACK)

    def _config(self) -> Config:
        plan = self.plan
        document = {
            "engine": "simulated",
            "worker": {
                "taskQueueId": "proj-test/simulated",
                "workerId": plan.name,
                "workDir": str(self.folder),
                "capacity": plan.capacity,
                "cancelPollInterval": plan.poll,
                "killGrace": plan.kill_grace,
                "minimumDiskSpace": 1,
                "shutdown": {"onTerm": plan.on_term, "grace": plan.grace},
            },
        }
        return parse_config(document, {})


def _below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [*children, *(grandchild for child in children for grandchild in _below(child))]
