"""Figures with their spread, the machine that they are from, and tables."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
            return _digits(self.median)
        return f"{_digits(self.median)} ({_digits(self.lowest)} to {_digits(self.highest)})"


def figure(values: Iterable[float]) -> Figure:
    """Of at least one value."""
    known = list(values)
    return Figure(statistics.median(known), min(known), max(known))


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that so large a share of them, 1 at most, does not exceed. Of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
