"""What the workers ask of the queue and what it answers, and what must hold of both."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from worker.model import RunKey
from worker.testing.simulation import limits
from worker.testing.simulation.ports import EPOCH

if TYPE_CHECKING:
    from worker.testing.simulation.network import Sent
    from worker.testing.simulation.world import World

CLAIM = re.compile(r"/api/queue/v1/claim-work/.*")
RUN = re.compile(r"/api/queue/v1/task/([^/]+)/runs/(\d+)/(reclaim|completed|failed|exception)")


@dataclass
class Seen:
    """One run as its requests show it; times are virtual."""

    who: str
    taken_until: float
    arrived_at: float | None = None  # when the worker learnt that the run is its own
    reports: list[str] = field(default_factory=list)  # what was sent, each once
    lost_at: float | None = None  # when a 409 reached the worker
    confirmed: bool = False  # whether the worker was told that its report was taken
    accepted: str = ""  # the report that the queue took


class Witness:
    """Watches every request. Participants without faults are not watched."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs: dict[RunKey, Seen] = {}

    def sent(self, sent: Sent) -> None:
        """A worker sends a request."""
        if CLAIM.fullmatch(sent.path):
            self._claims(sent.who, json.loads(sent.body)["tasks"])
        key, verb = _run_of(sent)
        if key is not None and verb != "reclaim" and (seen := self.runs.get(key)) is not None:
            self._reports(sent.who, key, seen, _report(verb, sent.body))

    def _claims(self, who: str, asked: int) -> None:
        ledger, history = self._world.ledger, self._world.history
        free = self._world.plan_for(who).capacity - len(ledger.running(who))
        if asked > free:
            history.fail("no more is claimed than fits", f"{who} asks for {asked}, {free} are free")
        if left := ledger.left_behind(who):
            history.fail("what a killed worker left is dead before the next claim", f"{who}: {len(left)} processes")

    def _reports(self, who: str, key: RunKey, seen: Seen, report: str) -> None:
        history, what = self._world.history, f"{who} reports {key} as {report}"
        # At the very moment of the answer the worker may not have read it yet.
        if seen.lost_at is not None and seen.lost_at < self._world.time():
            history.fail("nothing is reported after a 409", what)
        if seen.confirmed:
            history.fail("a run is resolved once", f"{what}, although it was told that its report was taken")
        if report in seen.reports:
            return  # It asks again what came of its report: that is the same one.
        if seen.reports:
            history.fail("a run is resolved once", f"{what} after {seen.reports[0]}")
        if executes := self._world.ledger.executes(key):
            history.fail("nothing executes when the report is sent", f"{what}: {executes}")
        seen.reports.append(report)

    def gave_back(self, who: str, key: RunKey) -> None:
        """A run has given its place back: it was reported, unless there is a reason not to."""
        seen, now = self.runs.get(key), self._world.time()
        if seen is None or seen.reports or seen.lost_at is not None or who in self._world.told:
            return
        if seen.arrived_at is None or seen.arrived_at < self._world.network.dated.get(who, math.inf):
            return  # It had no way to know what time it was for the queue.
        latest = min(seen.taken_until, self._world.deadlines[key.task_id]) - self._world.plan_for(who).kill_grace
        if now < latest - limits.GIVEN_UP and key.task_id not in self._world.cancelled:
            self._world.history.fail("a run is not given up while it can be kept", f"{who} {key}")

    def answered(self, sent: Sent, status: int, body: bytes) -> None:
        """The queue has answered a request: what it says has happened."""
        if status != 200:
            return
        if CLAIM.fullmatch(sent.path):
            for claim in json.loads(body)["tasks"]:
                given = RunKey(claim["status"]["taskId"], claim["runId"])
                self.runs[given] = Seen(sent.who, _virtual(claim["takenUntil"]))
                self._world.history.note("queue", f"{given} is {sent.who}'s until {self.runs[given].taken_until:.3f}")
        key, verb = _run_of(sent)
        if key is None or (seen := self.runs.get(key)) is None:
            return
        if verb == "reclaim":
            seen.taken_until = _virtual(json.loads(body)["takenUntil"])
            self._world.history.note("queue", f"{key} is {sent.who}'s until {seen.taken_until:.3f}")
            return
        report = _report(verb, sent.body)
        if seen.accepted and seen.accepted != report:
            self._world.history.fail("the queue takes one report", f"{key} {seen.accepted}, then {report}")
        seen.accepted = report
        self._world.history.note("queue", f"{key} is resolved as {report}")

    def arrived(self, sent: Sent, status: int, body: bytes) -> None:
        """All of an answer has reached its worker."""
        if CLAIM.fullmatch(sent.path) and status == 200:
            for claim in json.loads(body)["tasks"]:
                self.runs[RunKey(claim["status"]["taskId"], claim["runId"])].arrived_at = self._world.time()
        self.head_arrived(sent, status)
        key, verb = _run_of(sent)
        if key is not None and verb != "reclaim" and status == 200 and (seen := self.runs.get(key)) is not None:
            seen.confirmed = True

    def head_arrived(self, sent: Sent, status: int) -> None:
        """An answer has reached its worker, the end of its body perhaps not."""
        key, _ = _run_of(sent)
        if key is not None and status == 409 and (seen := self.runs.get(key)) is not None and seen.lost_at is None:
            self._world.history.note(sent.who, f"{key} learns from a 409 that it is lost")
            seen.lost_at = self._world.time()


def _virtual(time: str) -> float:
    return (datetime.fromisoformat(time) - EPOCH).total_seconds()


def _run_of(sent: Sent) -> tuple[RunKey | None, str]:
    match = RUN.fullmatch(sent.path)
    return (RunKey(match[1], int(match[2])), match[3]) if match else (None, "")


def _report(verb: str, body: bytes) -> str:
    document: dict[str, Any] = json.loads(body) if body else {}
    return f"exception/{document['reason']}" if verb == "exception" else verb
