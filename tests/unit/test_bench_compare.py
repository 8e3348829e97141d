"""Comparing two records of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.compare import NotComparable, compare


def record(path: Path, **figures: tuple[float, float, float]) -> Path:
    names = ("median", "lowest", "highest")
    row = {name: dict(zip(names, values, strict=True)) for name, values in figures.items()}
    path.write_text(json.dumps({"figures": {"mock": row}}))
    return path


def test_what_both_have_is_compared(tmp_path: Path) -> None:
    before = record(tmp_path / "before.json", speed=(100, 90, 110), cpu=(2, 1, 3), gone=(1, 1, 1))
    after = record(tmp_path / "after.json", speed=(200, 190, 210), cpu=(2.5, 2, 4), new=(1, 1, 1))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in compare(before, after).splitlines()]
    assert lines[2:] == [
        ["mock", "speed", "100 (90 to 110)", "200 (190 to 210)", "2", "yes"],
        ["mock", "cpu", "2 (1 to 3)", "2.5 (2 to 4)", "1.25", "no"],
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": {"mock": {"speed": 1}}}', '{"figures": {}}'])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.json"
    other.write_text(text)
    with pytest.raises(NotComparable, match="other"):
        compare(record(tmp_path / "before.json", speed=(1, 1, 1)), other)
