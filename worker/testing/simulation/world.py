"""A world from its beginning to its end: the queue, the workers, the events, the calm, and what must then be true."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import trio

from worker.embedded.queue import EmbeddedQueue
from worker.http import HttpClients, open_http
from worker.model import RunKey
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.models import CreateTaskRequest
from worker.queue.services import Queue
from worker.schema import JsonObject
from worker.testing.simulation import limits
from worker.testing.simulation.aftermath import check_cancel, check_settled, wait_completed, wait_idle, wait_resolved
from worker.testing.simulation.chaos import Chaos, seeded
from worker.testing.simulation.history import History
from worker.testing.simulation.keeper import Keeper
from worker.testing.simulation.ledger import Ledger
from worker.testing.simulation.network import Network
from worker.testing.simulation.plan import Event, Plan, TaskPlan, WorkerPlan
from worker.testing.simulation.ports import SimulatedPorts
from worker.testing.simulation.sockets import DeafSockets
from worker.testing.simulation.variants import Variant
from worker.testing.simulation.verdict import check_end
from worker.testing.simulation.witness import Witness

ROOT_URL = "http://queue.invalid"
TASK_QUEUE = "proj-test/simulated"
REST = 0.9  # virtual seconds at the beginning in which there are no tasks
LONGEST = 20_000.0  # virtual seconds of one seed


@dataclass(frozen=True)
class Created:
    """A task of the seed."""

    task_id: str
    plan: TaskPlan


class World:
    """Everything of one seed, for those who live in it."""

    nursery: trio.Nursery  # of what no worker may be waited for by

    def __init__(self, plan: Plan, variant: Variant, folder: Path) -> None:
        self.plan = plan
        self.variant = variant
        self.folder = folder
        self.scope = trio.CancelScope()
        self.history = History(self.scope.cancel)
        self.chaos = Chaos(seeded(f"chaos {plan.seed}"), plan.rates)
        self.queue_ports = SimulatedPorts(self, "queue", faulty=False)
        self.ledger = Ledger(self)
        self.witness = Witness(self)
        self.history.watchers.append(self.ledger.check)
        self.embedded = EmbeddedQueue(self.queue_ports, claim_timeout=timedelta(seconds=plan.claim_timeout))
        self.embedded.root_url = ROOT_URL
        self.keepers: list[Keeper] = []
        self.tasks: list[Created] = []
        self.deadlines: dict[str, float] = {}  # of tasks
        self.cancelled: set[str] = set()  # tasks
        self.told: dict[str, float] = {}  # when which worker was told to stop
        self.broken_for_good: set[str] = set()  # the workers whose engine is
        self.troubled: set[tuple[RunKey, str]] = set()  # at which stage a hook raised
        self.calm_since = math.inf  # when the last fault has ended
        self.queue: Queue
        self.http: HttpClients
        self.network: Network

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return trio.current_time()

    def plan_for(self, who: str) -> WorkerPlan:
        """The plan of a worker, whichever of its lives `who` is."""
        return next(worker for worker in self.plan.workers if worker.name == who.partition(".")[0])

    def is_over(self, who: str) -> bool:
        """Whether that life of a worker was ended, or is to end."""
        return who in self.told or who in self.broken_for_good or self.ledger.is_dead(who)

    def shielded(self) -> float:
        """For how long hooks that cannot be ended may hold up the end of a worker."""
        return 4 * limits.SHIELDED if any(kind.startswith("hook cannot") for kind in self.plan.rates) else 0.0

    async def run(self) -> None:
        """Live through the plan; `history.broken` says how it went."""
        trio.socket.set_custom_socket_factory(DeafSockets())
        with self.scope, trio.move_on_after(LONGEST):
            async with trio.open_nursery() as self.nursery:
                await self.nursery.start(self.embedded.run)
                self.network = Network(self, self.embedded.app, self.queue_ports, self.nursery)
                async with open_http(SimulatedPorts(self, "observer", faulty=False)) as self.http:
                    await self._live()
                self.nursery.cancel_scope.cancel()
            return
        self.history.fail("the simulation ends", f"not within {LONGEST:g} virtual seconds")

    async def _live(self) -> None:
        credentials = Credentials(self.embedded.credentials.client_id, self.embedded.credentials.access_token)
        ports = SimulatedPorts(self, "observer", faulty=False)
        self.queue = Queue(Deployment(ROOT_URL, self.http, ports), lambda: credentials)
        self.keepers = [Keeper(self, worker, credentials) for worker in self.plan.workers]
        for keeper in self.keepers:
            self.nursery.start_soon(keeper.run)
        self.nursery.start_soon(self._watch)
        await trio.sleep(REST)
        for keeper in self.keepers:
            keeper.at_rest = keeper.tasks()
        async with trio.open_nursery() as happening:
            for task in self.plan.tasks:
                happening.start_soon(self._create_at, task)
            for event in self.plan.events:
                happening.start_soon(self._happen, event)
        await trio.sleep_until(self.plan.calm_at)
        await self._calm()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(5)
            for keeper in self.keepers:
                if keeper.life is not None:
                    keeper.life.machine.check()

    async def _create_at(self, task: TaskPlan) -> None:
        await trio.sleep_until(task.at)
        await self.create(task)

    async def create(self, task: TaskPlan, priority: str = "lowest") -> Created:
        """Create a task now."""
        task_id, now = self.queue_ports.slug(), self.queue_ports.now()
        definition: JsonObject = {
            "taskQueueId": TASK_QUEUE,
            "created": now,
            "deadline": now + timedelta(seconds=task.deadline),
            "expires": now + timedelta(days=2),
            "metadata": {"name": "t", "description": "t", "owner": "nobody@example.com", "source": ROOT_URL},
            "payload": task.payload,
            "priority": priority,
        }
        self.deadlines[task_id] = self.time() + task.deadline
        self.history.note("observer", f"creates {task_id} {task.payload}")
        await self.queue.create_task(task_id, CreateTaskRequest.model_validate(definition))
        created = Created(task_id, task)
        self.tasks.append(created)
        return created

    async def cancel(self, task_id: str) -> None:
        """Cancel a task now."""
        self.history.note("observer", f"cancels {task_id}")
        self.cancelled.add(task_id)
        await self.queue.client.cancelTask(task_id)

    async def _happen(self, event: Event) -> None:
        await trio.sleep_until(event.at)
        match event.kind:
            case "cancel":
                if event.which < len(self.tasks):
                    self.chaos.counted("cancel")
                    await self.cancel(self.tasks[event.which].task_id)
            case "outage":
                self.chaos.counted(f"outage {event.how}")
                self.history.note("network", f"outage for {event.length:g} s: {event.how}")
                self.network.outage = event.how
                await trio.sleep(event.length)
                self.network.outage = ""
                self.history.note("network", "the outage is over")
            case _:
                self.chaos.counted(event.kind)
                await self.keepers[event.which].suffer(event)

    async def _calm(self) -> None:
        self.chaos.calm = True
        self.network.outage = ""
        self.history.note("world", "from now on nothing goes wrong")
        await self.network.wait_clear()
        self.calm_since = trio.current_time()
        probe = await self.create(TaskPlan(self.time(), 86_000, {"maxRunTime": 60, "sim": {"lines": 3}}), "highest")
        promise = "the worker completes a new task when the faults have stopped"
        await wait_completed(self, probe, limits.RECOVERY, promise)
        for task in self.plan.late:
            await self.create(task)
        longest = sum(task.plan.payload["maxRunTime"] + 60 for task in self.tasks) + self.plan.hang
        retries = 3 * self.plan.claim_timeout
        await wait_resolved(self, self.tasks, longest + retries, "every run is resolved, or expires")
        await check_cancel(self)
        await wait_idle(self, self.plan.hang + limits.IDLE)
        check_settled(self)
        for keeper in self.keepers:
            await keeper.end()
        await check_end(self)
