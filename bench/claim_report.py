"""What `bench.claim` found, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.parameters import Parameters
from bench.report import Figure, digits, figure, table


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant in one round. CPU is in milliseconds for a task, start-up taken off; `busy` is a share of a core.

    `cpu` is the process' own; `children_cpu` that of the processes which it started. `others_busy` is for what had
    nothing to do with the benchmark.
    """

    round: int
    variant: str
    seconds: float
    tasks_per_second: float
    cpu: float
    children_cpu: float
    queue_cpu: float
    busy: float
    queue_busy: float
    others_busy: float
    startup_cpu_seconds: float


FIGURES = tuple(field.name for field in fields(Measurement) if field.name not in {"round", "variant"})
RATIOS = ("tasks_per_second", "cpu")
MARGIN = 10  # by so much ratios may differ from run to run, and from machine to machine, and no more
COLUMNS = {
    "CPU, children": "children_cpu",
    "CPU, queue": "queue_cpu",
    "busy": "busy",
    "busy, queue": "queue_busy",
    "busy, others": "others_busy",
    "start-up": "startup_cpu_seconds",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant beside its limit: at least so many of the limit's tasks a second, at most so much of its CPU."""

    variant: str
    limit: str
    speed: float | None
    cpu: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told."""

    date: str
    machine: dict[str, str]
    load_average: tuple[float, float]
    parameters: Parameters
    place: str
    variants: list[str]
    compared: Sequence[Comparison]
    calls: dict[str, dict[str, float]]
    measurements: list[Measurement]
    spawns_per_second: list[float]

    def figure(self, variant: str, name: str) -> Figure:
        """One figure of a variant, over all rounds."""
        return figure(self._values(variant, name))

    def ratio(self, variant: str, limit: str, name: str) -> Figure:
        """Of a variant's figure to that of its limit in the same round."""
        pairs = zip(self._values(variant, name), self._values(limit, name), strict=True)
        # Over a few tasks the kernel may account nothing.
        return figure(own / other if other else 0.0 for own, other in pairs)

    def _values(self, variant: str, name: str) -> list[float]:
        return [float(getattr(each, name)) for each in self.measurements if each.variant == variant]

    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of each comparison, as a record has them."""
        return {
            f"{each.variant} of {each.limit}": {
                name: asdict(self.ratio(each.variant, each.limit, name)) for name in RATIOS
            }
            for each in self.compared
        }

    def to_json(self) -> str:
        """All of it, with the medians and the ratios that follow from it."""
        figures = {each: {name: asdict(self.figure(each, name)) for name in FIGURES} for each in self.variants}
        return json.dumps({**asdict(self), "figures": figures, "ratios": self.ratios()}, indent=1) + "\n"

    def to_text(self) -> str:
        """Tables, in Markdown."""
        used, (before, after) = self.parameters, self.load_average
        about = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        counts = f"{used.tasks} tasks a run, {used.capacity} at once"
        return "\n".join(
            [
                f"# claim, {self.date}\n",
                f"{counts}, {self.place}; median (lowest to highest) of {used.rounds} rounds.",
                f"Machine: {about}; load average {before:.1f} before, {after:.1f} after.\n",
                self._ratios_table(),
                "",
                self._figures_table(),
                f"\nspawn alone: {figure(self.spawns_per_second).shown()} processes a second, {used.capacity} at once.",
                "CPU: milliseconds for a task, start-up taken off. busy: share of one core. start-up: CPU seconds.\n",
                *(["## Calls for one task\n", self._calls_table(), ""] if self.calls else []),
            ]
        )

    def _figures_table(self) -> str:
        columns = {"tasks/s": "tasks_per_second", "CPU": "cpu", **COLUMNS}
        rows = [[each, *(self.figure(each, name).shown() for name in columns.values())] for each in self.variants]
        return table(["", *columns], rows)

    def _ratios_table(self) -> str:
        rows = []
        for each in self.compared:
            speed, cost = (self.ratio(each.variant, each.limit, name).shown() for name in RATIOS)
            aims = ("" if each.speed is None else f"{each.speed}", "" if each.cpu is None else f"{each.cpu}")
            rows.append([each.variant, each.limit, speed, aims[0], cost, aims[1]])
        return table(["", "beside", "tasks/s", "aim, at least", "CPU", "aim, at most"], rows)

    def _calls_table(self) -> str:
        kinds = sorted({kind for each in self.calls.values() for kind in each})
        rows = [[kind, *(f"{each.get(kind, 0):.3g}" for each in self.calls.values())] for kind in kinds]
        return table(["", *self.calls], rows)


def regressions(ratios: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where there were `MARGIN` times as many tasks a second beside the same limit.

    CPU is not compared: over few tasks the kernel accounts too little, and where it is much more they are slower too.
    """
    found = []
    for name in sorted(ratios.keys() & recorded.keys()):
        new, old = (each[name]["tasks_per_second"]["median"] for each in (ratios, recorded))
        if MARGIN * new < old:
            found.append(f"{name}: {digits(new)} of its tasks/s, recorded are {digits(old)}")
    return found
