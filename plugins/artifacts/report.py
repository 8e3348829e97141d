"""What became of a run's artifacts: lines for the log, and the verdict."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from worker.model import COMPLETED, Severity, Verdict
from worker.tasklog import TaskLog

REMEMBERED = 100  # remarks; a directory may have any number of files


@dataclass(frozen=True, slots=True, order=True)
class Remark:
    """What is to be said of an artifact that was not uploaded. `order` is its place among all artifacts of the run.

    A severity of COMPLETED is for what nobody is to blame for.
    """

    order: int
    severity: Severity
    text: str


@dataclass
class Report:
    """Collects remarks as uploads end, and tells them in the artifacts' order: equal tasks have equal logs."""

    _first: list[Remark] = field(default_factory=list)
    _earliest: dict[Severity, Remark] = field(default_factory=dict)
    _count: dict[Severity, int] = field(default_factory=dict)

    def add(self, remark: Remark) -> None:
        """Keep a remark, if it is one of the first."""
        insort(self._first, remark)
        del self._first[REMEMBERED:]
        severity = remark.severity
        self._count[severity] = self._count.get(severity, 0) + 1
        self._earliest[severity] = min(remark, self._earliest.get(severity, remark))

    def tell(self, log: TaskLog) -> None:
        """Write the remarks to the log: errors where a verdict follows from them, else warnings."""
        for remark in self._first:
            say = log.warn if remark.severity is Severity.COMPLETED else log.error
            say(remark.text)
        left = sum(self._count.values()) - len(self._first)
        if left:
            log.warn(f"{left} more artifacts were not uploaded either")

    def verdict(self) -> Verdict:
        """The worst of it, with its first remark."""
        worst = max(self._earliest, default=Severity.COMPLETED)
        return COMPLETED if worst is Severity.COMPLETED else Verdict(worst, self._message(worst))

    def _message(self, severity: Severity) -> str:
        others = self._count[severity] - 1
        return self._earliest[severity].text + (f" (and {others} more like it)" if others else "")
