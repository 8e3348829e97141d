"""Plots for the docs, of the newest record of each benchmark: `python -m bench.plots`. Needs the extra `plots`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch

from bench.profile import PARTS
from bench.report import Figure, digits, newest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images" / "performance"

# What is aimed at, where the record itself does not say it.
BEGINS_AIM = 10.0  # milliseconds
ROUND_TRIPS_AIM = 3
MEMORY_AIM = 300.0  # KiB for a task
LAG_AIM = 20.0  # milliseconds

COLORS = {"mock": "#2f6db3", "native": "#d9731a"}
LIMIT_COLOR, AIM_COLOR = "#a9b2bd", "#b3261e"
SHADES = ("#9cc3e6", "#5b97cf", "#23578f")  # of the quantiles
PART_COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e3bd3a", "#b07aa1", "#76b7b2", "#9c755f", "#bab0ac")  # of PARTS
# White also where the page is dark, and text that stays text. Nothing depends on when or where it was drawn.
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 11,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
}

Record = Mapping[str, Any]


def draw_all(results: Path, images: Path) -> list[Path]:
    """Draw what there is a record of in `results`; the images that were written."""
    images.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in PLOTS.items():
        record = newest(results, name)
        if record is not None:
            drawn.append(_draw(draw, record, images / f"{name}.svg"))
    return drawn


def _draw(draw: Callable[[Drawing, Record], None], record: Path, image: Path) -> Path:
    with style.context(["default", STYLE]):
        drawing = Drawing()
        draw(drawing, json.loads(record.read_text()))
        drawing.supxlabel(f"bench/results/{record.name}", x=0.995, ha="right", fontsize=8, color="#6b7480")
        drawing.savefig(image, metadata={"Date": None, "Creator": None})
    # The drawing ends its lines with blanks.
    image.write_text("".join(f"{line.rstrip()}\n" for line in image.read_text().splitlines()))
    return image


def claim(drawing: Drawing, record: Record) -> None:
    """A bar for each variant, with the aims that it has."""
    drawing.set_size_inches(9, 4.6)
    axes = drawing.subplots()
    variants: Sequence[str] = record["variants"]
    speeds = {each: Figure(**record["figures"][each]["tasks_per_second"]) for each in variants}
    for place, (name, speed) in enumerate(speeds.items()):
        color = COLORS.get(name.partition(",")[0], LIMIT_COLOR)
        axes.barh(place, speed.median, xerr=_spread([speed]), color=color, ecolor="#333", capsize=3)
        axes.annotate(
            f"{digits(speed.median)}", (speed.highest, place), (6, 0), textcoords="offset points", va="center"
        )
    for each in record["compared"]:
        if each["speed"] is not None:
            aim, place = each["speed"] * speeds[each["limit"]].median, variants.index(each["variant"])
            axes.vlines(aim, place - 0.42, place + 0.42, colors=AIM_COLOR, linewidth=2)
            axes.annotate(
                f"aim: {each['speed']:g} of {each['limit']}",
                (aim, place),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=AIM_COLOR,
            )
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(speed.highest for speed in speeds.values()))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("tasks a second, with canned answers or (queue) those of the embedded queue")
    axes.set_title("Trivial tasks, claimed and completed", loc="left")


def latency(drawing: Drawing, record: Record) -> None:
    """Quantiles by the network's delay: until a task begins, and from then on until its end is reported."""
    drawing.set_size_inches(10, 4.6)
    begins, report = drawing.subplots(1, 2)
    _quantiles(begins, record["figures"], "begins", "From the claim to the task's command")
    _aim(begins, BEGINS_AIM, f"aim: {BEGINS_AIM:g} ms")
    rows = {name: row for name, row in record["figures"].items() if "report p50" in row}
    _quantiles(report, rows, "report", "From the command to the report")
    for place, name in enumerate(rows):
        if trips := ROUND_TRIPS_AIM * 2 * float(name.split()[0]):
            report.hlines(trips, place - 0.45, place + 0.45, colors=AIM_COLOR, linewidth=2)
    report.plot([], [], color=AIM_COLOR, linewidth=2, label=f"aim: {ROUND_TRIPS_AIM} round trips")
    for axes in (begins, report):
        axes.legend(loc="upper left", ncols=2, fontsize=9)


def _quantiles(axes: Axes, rows: Record, what: str, title: str) -> None:
    for number, (share, color) in enumerate(zip(("p50", "p90", "p99"), SHADES, strict=True)):
        figures = [Figure(**row[f"{what} {share}"]) for row in rows.values()]
        places = [place + 0.27 * (number - 1) for place in range(len(rows))]
        heights = [each.median for each in figures]
        axes.bar(places, heights, 0.25, yerr=_spread(figures), color=color, ecolor="#333", capsize=2, label=share)
    axes.set_xticks(range(len(rows)), [name.replace(" each way", "\neach way") for name in rows])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1.3 * axes.dataLim.ymax)  # room for the legend
    axes.set_ylabel("milliseconds")
    axes.set_title(title, loc="left")


def scale(drawing: Drawing, record: Record) -> None:
    """Memory for a task and the event loop's lag, by the number of tasks that run at once."""
    drawing.set_size_inches(10, 4.2)
    memory, lag = drawing.subplots(1, 2)
    _by_number(memory, record["figures"], "memory, KiB", "KiB for a task", "Memory for each task that waits")
    _aim(memory, MEMORY_AIM, f"aim: {MEMORY_AIM:g} KiB")
    _by_number(lag, record["figures"], "lag p99, ms", "milliseconds", "Lag of the event loop, p99")
    _aim(lag, LAG_AIM, f"aim: {LAG_AIM:g} ms")
    for axes in (memory, lag):
        axes.legend()


def _by_number(axes: Axes, rows: Record, column: str, unit: str, title: str) -> None:
    for engine, color in COLORS.items():
        mine = {name.partition(", ")[2]: row for name, row in rows.items() if name.startswith(f"{engine}, ")}
        figures = [Figure(**row[column]) for row in mine.values()]
        numbers = [float(number) for number in mine]
        medians = [each.median for each in figures]
        axes.errorbar(numbers, medians, _spread(figures), color=color, marker="o", capsize=3, label=engine)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tasks at once")
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left")


def growth(drawing: Drawing, record: Record) -> None:
    """CPU by the tenth of the tasks, and of the log, each round with its line."""
    drawing.set_size_inches(10, 4)
    units = list(dict.fromkeys(each["unit"] for each in record["found"]))
    places = drawing.subplots(1, len(units), squeeze=False)[0]
    for axes, unit in zip(places, units, strict=True):
        for each in record["found"]:
            if each["unit"] == unit:
                values = [tenth["cpu"] for tenth in each["tenths"]]
                axes.plot(range(1, len(values) + 1), values, color=COLORS["mock"], marker="o")
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)
        axes.set_xlabel("tenth")
        axes.set_ylabel("CPU milliseconds of the worker")
        axes.set_title(f"For each {unit}, by what went before", loc="left")


def soak(drawing: Drawing, record: Record) -> None:
    """Memory by the number of tasks that are done, each engine with its own."""
    drawing.set_size_inches(10, 4)
    places = drawing.subplots(1, len(record["looks"]), squeeze=False)[0]
    for axes, (engine, looks) in zip(places, record["looks"].items(), strict=True):
        done, memory = [look["tasks"] for look in looks], [look["memory"] / 2**20 for look in looks]
        axes.plot(done, memory, color=COLORS.get(engine, LIMIT_COLOR))
        axes.set_xlim(0, max(done))
        axes.set_ylim(0, 1.2 * max(memory))
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        axes.set_xlabel("tasks done")
        axes.set_ylabel("MiB")
        axes.set_title(f"Resident memory, {engine}", loc="left")


def profile(drawing: Drawing, record: Record) -> None:
    """A bar for each engine, of the parts that its CPU time goes to."""
    rows: Record = record["figures"]
    drawing.set_size_inches(10, 1.9 + 0.8 * len(rows))
    axes = drawing.subplots()
    most = max(sum(row[part]["median"] for part in PARTS) for row in rows.values())
    for place, row in enumerate(rows.values()):
        start = 0.0
        for part, color in zip(PARTS, PART_COLORS, strict=True):
            value = row[part]["median"]
            axes.barh(place, value, left=start, color=color)
            if value > 0.045 * most:  # else there is no room
                axes.text(start + value / 2, place, digits(value), ha="center", va="center", fontsize=9)
            start += value
        axes.annotate(f"{digits(start)} ms", (start, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * most)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("CPU milliseconds of the worker for a task")
    axes.set_title("Where a trivial task's CPU time goes", loc="left")
    handles = [Patch(color=color, label=part) for part, color in zip(PARTS, PART_COLORS, strict=True)]
    drawing.legend(handles=handles, loc="outside right upper", fontsize=9)


def _aim(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color=AIM_COLOR, linewidth=2, label=label)
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.15 * value))


def _spread(figures: Sequence[Figure]) -> list[list[float]]:
    """From the median down and up, as error bars want it."""
    return [[each.median - each.lowest for each in figures], [each.highest - each.median for each in figures]]


PLOTS: Mapping[str, Callable[[Drawing, Record], None]] = MappingProxyType(
    {"claim": claim, "growth": growth, "latency": latency, "profile": profile, "scale": scale, "soak": soak}
)

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--results", type=FOLDER, default=RESULTS, help="The folder with the records.")
@click.option("--out", type=FOLDER, default=IMAGES, help="The folder for the images.")
def main(results: Path, out: Path) -> None:
    """Draw the newest record of each benchmark that has a plot."""
    for path in draw_all(results, out):
        print(path)


if __name__ == "__main__":
    main(prog_name="python -m bench.plots")
