"""Two records of one benchmark, figure by figure."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report import Figure, digits, table


class NotComparable(Exception):
    """The text says which file is no record, or why the two are of different things."""


def compare(before: Path, after: Path) -> str:
    """A table of what both records have. Raises NotComparable."""
    old, new = _figures(before), _figures(after)
    common = [name for name in old if name in new]
    if not common:
        raise NotComparable(f"{before} and {after} have no figure in common")
    rows = [[*name, old[name].shown(), new[name].shown(), *_change(old[name], new[name])] for name in common]
    return table(["", "figure", before.stem, after.stem, "ratio", "apart"], rows)


def _figures(path: Path) -> dict[tuple[str, str], Figure]:
    try:
        document = json.loads(path.read_text())
        return {
            (row, column): Figure(**values)
            for row, columns in document["figures"].items()
            for column, values in columns.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotComparable(f"{path} is no record of a benchmark with figures: {error}") from error


def _change(old: Figure, new: Figure) -> tuple[str, str]:
    apart = old.highest < new.lowest or new.highest < old.lowest
    return (digits(new.median / old.median) if old.median else "", "yes" if apart else "no")
