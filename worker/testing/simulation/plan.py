"""What a seed stands for: who is there, what is to happen when, and which faults are likely."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.schema import JsonObject
from worker.testing.simulation import engine, fates, hooks
from worker.testing.simulation.chaos import seeded

DISK = ("disk slow", "disk low", "disk full")
OUTAGES = ("refused", "silent", "503")


@dataclass(frozen=True)
class WorkerPlan:
    """A worker and its config; times in seconds. `skew`: how far its clock is ahead of the queue's."""

    name: str
    capacity: int
    skew: float
    on_term: str
    grace: float
    kill_grace: float
    poll: float


@dataclass(frozen=True)
class TaskPlan:
    """A task, created at `at`, whose deadline comes `deadline` seconds later."""

    at: float
    deadline: float
    payload: JsonObject


@dataclass(frozen=True)
class Event:
    """Something that happens at `at`: cancel (of task `which`), outage, or the end of worker `which`.

    That is term, term twice, kill (SIGKILL: what it runs outlives it), machine dies.
    """

    at: float
    kind: str
    which: int = 0
    length: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Plan:
    """One seed. After `calm_at` nothing goes wrong any more. `hang` is how long a hook hangs. `late` comes after it."""

    seed: int
    claim_timeout: float
    calm_at: float
    hang: float
    workers: tuple[WorkerPlan, ...]
    tasks: tuple[TaskPlan, ...]
    events: tuple[Event, ...]
    rates: Mapping[str, float]
    late: tuple[TaskPlan, ...]

    @property
    def has_outage(self) -> bool:
        """Whether the queue is away for a while."""
        return any(event.kind == "outage" for event in self.events)


def plan_of(seed: int) -> Plan:
    """The plan of a seed."""
    rng = seeded(f"plan {seed}")
    calm_at = rng.choice([40.0, 80.0, 150.0])
    workers = tuple(_worker(rng, number) for number in range(1 if rng.random() < 0.7 else 2))
    tasks = tuple(_task(rng, calm_at) for _ in range(rng.randint(2, 7)))
    plan = Plan(
        seed=seed,
        claim_timeout=rng.choice([30.0, 45.0, 60.0, 120.0, 300.0]),
        calm_at=calm_at,
        hang=rng.choice([15.0, 60.0, 200.0]),
        workers=workers,
        tasks=tasks,
        events=tuple(sorted(_events(rng, calm_at, len(workers), len(tasks)), key=lambda event: event.at)),
        rates=_rates(rng),
        late=tuple(replace(_task(rng, calm_at), deadline=86_000.0) for _ in range(2)),
    )
    return _with_long_outage(rng, plan) if rng.random() < 0.06 else plan


def _with_long_outage(rng: random.Random, plan: Plan) -> Plan:
    """Nothing else goes wrong. Either a claim lasts just longer, or the worker must not wait for hours afterwards."""
    how = rng.choice(OUTAGES)
    if rng.random() < 0.5:
        length = rng.uniform(5000, 9000)
        events = (*plan.events, Event(5.0, "outage", 0, length, how))
        return replace(plan, calm_at=length + 100.0, events=events, rates={})
    # It is reclaimed after about 400 s, and the claim is over after 600 s: the first attempts come to nothing.
    script = {"lines": 3, "seconds": rng.uniform(900, 2500)}
    long = TaskPlan(1.5, 7200.0, {"maxRunTime": 3000, "sim": script})
    outage = Event(rng.uniform(370, 390), "outage", 0, 150.0, how)
    workers = tuple(replace(worker, capacity=worker.capacity + 1) for worker in plan.workers)  # one place is taken
    tasks = (*plan.tasks, long)
    return replace(plan, claim_timeout=600.0, calm_at=700.0, workers=workers, tasks=tasks, events=(outage,), rates={})


def _worker(rng: random.Random, number: int) -> WorkerPlan:
    return WorkerPlan(
        name=f"w{number + 1}",
        capacity=rng.randint(1, 4),
        skew=rng.choice([0.0, 0.0, 1.0, -1.0, 30.0, -30.0, 600.0, -600.0, 3000.0]),
        on_term=rng.choice(["abort", "finish"]),
        grace=rng.choice([5.0, 30.0]),
        kill_grace=rng.choice([0.5, 2.0, 5.0]),
        poll=rng.choice([2.0, 5.0, 10.0]),
    )


def _task(rng: random.Random, calm_at: float) -> TaskPlan:
    files = {f"out/{number}.bin": rng.choice([0, 10, 5000, 300_000]) for number in range(rng.choice([0, 1, 1, 2, 3]))}
    artifacts = [
        {
            "type": "file",
            "path": path,
            "name": f"public/{path}",
            "contentEncoding": rng.choice(["identity", "gzip"]),
        }
        for path in files
    ]
    if rng.random() < 0.1:
        artifacts.append({"type": "file", "path": "missing", "name": "public/missing"})
    script = {
        "lines": rng.choice([0, 1, 3, 10, 30]),
        "width": rng.choice([0, 0, 0, 8000]),
        "seconds": rng.choice([0.0, 0.5, 5.0, 20.0, 50.0, 120.0]),
        "files": files,
        "exitCode": rng.choice([0, 0, 0, 0, 1]),
        "stubborn": rng.random() < 0.3,
        "respawns": rng.choice([0, 0, 2]),
    }
    payload: JsonObject = {"maxRunTime": rng.choice([3, 30, 200]), "sim": script, "artifacts": artifacts}
    if rng.random() < 0.1:
        payload["unknown"] = 1
    if rng.random() < 0.1:
        payload["onExitStatus"] = {"retry": [1]}
    return TaskPlan(rng.uniform(1, calm_at * 0.8), rng.choice([10.0, 40.0, 3600.0, 3600.0]), payload)


def _events(rng: random.Random, calm_at: float, workers: int, tasks: int) -> list[Event]:
    events = [Event(rng.uniform(1, calm_at), "cancel", which) for which in range(tasks) if rng.random() < 0.25]
    for which in range(workers):
        if rng.random() < 0.5:
            kind = rng.choice(["term", "term", "term twice", "kill", "machine dies"])
            events.append(Event(rng.uniform(2, calm_at), kind, which, rng.choice([0.0, 0.5, 3.0, 20.0])))
    if rng.random() < 0.2:
        length = rng.choice([5.0, 60.0, 240.0])
        events.append(Event(rng.uniform(2, calm_at * 0.8), "outage", 0, length, rng.choice(OUTAGES)))
    return events


def _rates(rng: random.Random) -> Mapping[str, float]:
    if rng.random() < 0.1:
        return {}
    level = rng.choice([0.3, 1.0, 1.0, 2.5])
    of_requests = [*fates.BEFORE, *fates.AFTER, *fates.DATES, "duplicate"]
    rates = {kind: 0.015 * level for kind in of_requests if rng.random() < 0.6}
    rates |= {kind: 0.05 * level for kind in fates.AT_STORAGE if rng.random() < 0.5}
    rates |= {kind: 0.01 * level for kind in DISK if rng.random() < 0.5}
    for step in engine.STEPS:
        rates |= {f"engine {what}: {step}": 0.03 * level for what in ("is slow", "crashes") if rng.random() < 0.4}
    for stage in hooks.STAGES:
        rates |= {
            f"hook {what}: {stage}": 0.03 * level for what in ("is slow", "hangs", "raises") if rng.random() < 0.4
        }
    rates |= {f"hook cannot be ended: {stage}": 0.02 * level for stage in hooks.SHIELDED_STAGES if rng.random() < 0.1}
    if rng.random() < 0.3:
        rates["disk fails after the report"] = 0.2
    return rates | {"latency": 0.03 * level if rng.random() < 0.6 else 0.0, "engine is broken for good": 0.1}
