"""Figures with their spread, the machine that they are from, and tables."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of several rounds, and their extremes."""

    median: float
    lowest: float
    highest: float

    def shown(self) -> str:
        """Three significant digits; the spread where there were rounds to spread."""
        if self.lowest == self.highest:
            return digits(self.median)
        return f"{digits(self.median)} ({digits(self.lowest)} to {digits(self.highest)})"


def figure(values: Iterable[float]) -> Figure:
    """Of at least one value."""
    known = list(values)
    return Figure(statistics.median(known), min(known), max(known))


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that so large a share of them, 1 at most, does not exceed. Of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def digits(value: float) -> str:
    """Three that are significant."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Figures by row and column; None where a row has none."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Figure | None]]

    def to_text(self) -> str:
        """A table in Markdown."""
        rows = [[name, *(each.shown() if each else "" for each in row)] for name, row in self.rows.items()]
        return table(["", *self.columns], rows)

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """The part `figures` of a record, by which two of them are compared."""
        return {
            name: {column: asdict(each) for column, each in zip(self.columns, row, strict=True) if each}
            for name, row in self.rows.items()
        }


@dataclass(frozen=True, slots=True)
class Record:
    """A run of a benchmark, as it is kept: `about` says what was run, `notes` what the columns mean."""

    name: str
    about: str
    grid: Grid
    notes: str
    begun: datetime
    load_before: float

    def write(self, out: Path, **single: object) -> str:
        """Leave the table and, with what was found one by one, the JSON in the folder `out`; gives the table."""
        date, after = self.begun.isoformat(timespec="minutes"), load_average()
        about = ", ".join(f"{name} {value}" for name, value in machine().items())
        text = "\n".join(
            [
                f"# {self.name}, {date}\n",
                self.about,
                f"Machine: {about}; load average {self.load_before:.1f} before, {after:.1f} after.\n",
                self.grid.to_text(),
                "",
                self.notes,
                "",
            ]
        )
        document: dict[str, object] = {"date": date, "machine": machine(), "about": self.about}
        document |= {"load_average": (self.load_before, after), "figures": self.grid.to_json(), **single}
        (out / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (out / f"{self.name}.md").write_text(text)
        return text


def newest(results: Path, name: str) -> Path | None:
    """The JSON of a benchmark's newest record in the folder, if there is one."""
    return max(results.glob(f"{name}-[0-9][0-9][0-9][0-9]-*.json"), default=None)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, aligned for reading as it is."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def load_average() -> float:
    """Processes that wanted a core over the last minute, ours included."""
    return os.getloadavg()[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
