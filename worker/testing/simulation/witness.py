"""What the workers ask of the queue and what it answers, and what must hold of both."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from worker.model import RunKey

if TYPE_CHECKING:
    from worker.testing.simulation.network import Sent
    from worker.testing.simulation.world import World

CLAIM = re.compile(r"/api/queue/v1/claim-work/.*")
RUN = re.compile(r"/api/queue/v1/task/([^/]+)/runs/(\d+)/(reclaim|completed|failed|exception)")


@dataclass
class Seen:
    """One run as its requests show it."""

    who: str
    taken_until: datetime
    claimed_at: float
    arrived_at: float | None = None  # when the worker learnt that the run is its own
    reports: list[str] = field(default_factory=list)  # what was sent, each once
    lost_at: float | None = None  # when a 409 reached the worker
    accepted: str = ""  # the report that the queue took


class Witness:
    """Watches every request. Participants without faults are not watched."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs: dict[RunKey, Seen] = {}
        self.claims = 0  # requests of all workers

    def taken_until(self, key: RunKey) -> datetime | None:
        """Until when the queue has given a run to its worker."""
        seen = self.runs.get(key)
        return seen.taken_until if seen else None

    def sent(self, sent: Sent) -> None:
        """A worker sends a request."""
        if CLAIM.fullmatch(sent.path):
            self.claims += 1
            asked, who = json.loads(sent.body)["tasks"], sent.who
            free = self._world.capacity_of(who) - len(self._world.ledger.running(who))
            if asked > free:
                self._world.history.fail("no more is claimed than fits", f"{who} asks for {asked}, {free} are free")
        key, verb = _run_of(sent)
        if key is None or verb == "reclaim" or (seen := self.runs.get(key)) is None:
            return
        report = _report(verb, sent.body)
        if report in seen.reports:
            return  # It asks again what came of its report: that is the same one.
        if seen.reports:
            what = f"{sent.who} reports {key} as {report} after {seen.reports[0]}"
            self._world.history.fail("a run is resolved once", what)
        if seen.lost_at is not None:
            self._world.history.fail("nothing is reported after a 409", f"{sent.who} reports {key} as {report}")
        if self._world.ledger.is_executing(key):
            self._world.history.fail("nothing executes when the report is sent", f"{sent.who} {key}")
        seen.reports.append(report)

    def answered(self, sent: Sent, status: int, body: bytes) -> None:
        """The queue has answered a request: what it says has happened."""
        if status != 200:
            return
        if CLAIM.fullmatch(sent.path):
            for claim in json.loads(body)["tasks"]:
                given = RunKey(claim["status"]["taskId"], claim["runId"])
                until = datetime.fromisoformat(claim["takenUntil"])
                self.runs[given] = Seen(sent.who, until, self._world.time())
                self._world.history.note("queue", f"{given} is given to {sent.who} until {until:%H:%M:%S.%f}")
        key, verb = _run_of(sent)
        if key is None or (seen := self.runs.get(key)) is None:
            return
        if verb == "reclaim":
            seen.taken_until = datetime.fromisoformat(json.loads(body)["takenUntil"])
            self._world.history.note("queue", f"{key} is {sent.who}'s until {seen.taken_until:%H:%M:%S.%f}")
            return
        report = _report(verb, sent.body)
        if seen.accepted and seen.accepted != report:
            self._world.history.fail("the queue takes one report", f"{key} {seen.accepted}, then {report}")
        seen.accepted = report
        self._world.history.note("queue", f"{key} is resolved as {report}")

    def arrived(self, sent: Sent, status: int, body: bytes) -> None:
        """All of an answer has reached its worker."""
        if not sent.path.startswith("/api/"):
            return
        if CLAIM.fullmatch(sent.path) and status == 200:
            for claim in json.loads(body)["tasks"]:
                self.runs[RunKey(claim["status"]["taskId"], claim["runId"])].arrived_at = self._world.time()
        run, _ = _run_of(sent)
        if run is not None and status == 409 and (seen := self.runs.get(run)) is not None:
            self._world.history.note(sent.who, f"{run} learns from a 409 that it is lost")
            if seen.lost_at is None:
                seen.lost_at = self._world.time()


def _run_of(sent: Sent) -> tuple[RunKey | None, str]:
    match = RUN.fullmatch(sent.path)
    return (RunKey(match[1], int(match[2])), match[3]) if match else (None, "")


def _report(verb: str, body: bytes) -> str:
    document: dict[str, Any] = json.loads(body) if body else {}
    return f"exception/{document['reason']}" if verb == "exception" else verb
