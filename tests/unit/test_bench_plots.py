from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

from bench.plots import IMAGES, PLOTS, RESULTS, draw_all
from bench.profile import PARTS

SVG = "{http://www.w3.org/2000/svg}"


def figures(**columns: float) -> dict[str, Any]:
    return {name: {"median": value, "lowest": value * 0.9, "highest": value * 1.1} for name, value in columns.items()}


def speed(value: float) -> dict[str, Any]:
    return figures(tasks_per_second=value)


def quantiles(what: str, *values: float) -> dict[str, Any]:
    return figures(**{f"{what} {share}": value for share, value in zip(("p50", "p90", "p99"), values, strict=True)})


RECORDS: dict[str, dict[str, Any]] = {
    "claim": {
        "variants": ["bare calls", "mock", "mock, queue"],
        "compared": [
            {"variant": "mock", "limit": "bare calls", "speed": 0.85, "cpu": 1.3},
            {"variant": "mock, queue", "limit": "bare calls", "speed": None, "cpu": None},
        ],
        "figures": {"bare calls": speed(641), "mock": speed(320), "mock, queue": speed(77.7)},
    },
    "growth": {
        "found": [
            {"round": number, "unit": unit, "tenths": [{"cpu": 4.0 + number, "wall": 5.0}] * 10}
            for number in (1, 2)
            for unit in ("task", "MB of a log")
        ]
    },
    "latency": {
        "figures": {
            "bare spawn": quantiles("begins", 1, 2, 3),
            "0 ms each way": {**quantiles("begins", 10, 20, 30), **quantiles("report", 4, 5, 6)},
            "20 ms each way": {**quantiles("begins", 11, 21, 31), **quantiles("report", 80, 90, 100)},
        }
    },
    "profile": {
        "figures": {
            engine: figures(**{part: size * (1 + number) for number, part in enumerate(PARTS)})
            for engine, size in (("mock", 0.5), ("native", 1))
        }
    },
    "scale": {
        "figures": {
            **{
                f"{engine}, {tasks}": figures(**{"memory, KiB": 400 / tasks, "lag p99, ms": 4.0})
                for engine in ("mock", "native")
                for tasks in (1, 10, 1000)
            },
            "idle": figures(**{"memory, KiB": 68_000}),
        }
    },
    "soak": {
        "looks": {
            engine: [{"tasks": tasks * more, "memory": 70 * 2**20} for tasks in (10, 20, 30)]
            for engine, more in (("mock", 1000), ("native", 100))
        }
    },
}
SHOWN = {
    "claim": {"tasks a second", "bare calls", "mock", "mock, queue", "641", "320", "77.7", "aim: 0.85 of bare calls"},
    "growth": {"For each task", "For each MB of a log", "tenth", "CPU milliseconds of the worker"},
    "latency": {"milliseconds", "bare spawn", "0 ms", "20 ms", "p50", "p90", "p99", "aim: 10 ms", "aim: 3 round trips"},
    "profile": {*PARTS, "mock", "native", "18 ms", "36 ms", "8", "CPU milliseconds"},
    "scale": {
        "KiB for a task",
        "milliseconds",
        "mock",
        "native",
        "1,000",
        "aim: 300 KiB",
        "aim: 20 ms",
        "tasks at once",
    },
    "soak": {"Resident memory, mock", "Resident memory, native", "MiB", "tasks done", "30,000", "3,000"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for name, record in RECORDS.items():
        (folder / f"{name}-2026-01-02.json").write_text(json.dumps(record))
        (folder / f"{name}-2026-01-01.json").write_text("{}")  # an older one
        (folder / f"{name}-other-2026-01-03.json").write_text("{}")  # another benchmark's
    return folder


@pytest.fixture(scope="module")
def images(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in draw_all(results, tmp_path_factory.mktemp("images"))}


def texts(image: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.parse(image).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_shows_what_the_newest_record_says(name: str, images: dict[str, Path]) -> None:
    found = texts(images[name])
    assert f"bench/results/{name}-2026-01-02.json" in found
    for label in SHOWN[name]:
        assert any(text == label or text.startswith((f"{label} ", f"{label},")) for text in found), label


def test_plots_have_a_background_of_their_own(images: dict[str, Path]) -> None:
    for image in images.values():
        first = next(ElementTree.parse(image).iter(f"{SVG}path"))
        assert "fill: #ffffff" in first.attrib["style"], image  # else text is black on black where the page is dark


def test_the_same_records_make_the_same_images(results: Path, images: dict[str, Path], tmp_path: Path) -> None:
    again = draw_all(results, tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in images.values()]


def test_what_has_no_record_has_no_plot(results: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    (some / "soak-2026-01-02.json").write_text((results / "soak-2026-01-02.json").read_text())
    assert [path.name for path in draw_all(some, tmp_path)] == ["soak.svg"]


def test_the_docs_have_the_plots_of_the_records(tmp_path: Path) -> None:
    for image in draw_all(RESULTS, tmp_path):
        shown = texts(IMAGES / image.name)
        assert shown == texts(image), f"{image.name} is out of date: python -m bench.plots"
