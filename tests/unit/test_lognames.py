"""Where a run's log is looked for."""

from __future__ import annotations

from typing import Any

import pytest

from worker.lognames import BACKING, LIVE, log_names


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        ({}, [LIVE, BACKING]),
        ({"logs": {}}, [LIVE, BACKING]),
        ({"logs": {"live": "public/a.log", "backing": "public/b.log"}}, ["public/a.log", "public/b.log"]),
        # While the task runs, the live log is where it always is.
        ({"logs": {"backing": "public/b.log"}}, [LIVE, "public/b.log"]),
        ({"log": "public/banana.log.txt"}, ["public/banana.log.txt", "public/banana.log_backing.txt"]),
        ({"log": "private/log"}, ["private/log", "private/log_backing"]),
        # Malformed.
        ({"logs": {"live": ["x"], "backing": None}}, [LIVE, BACKING]),
        ({"logs": {"live": "", "backing": {}}}, [LIVE, BACKING]),
        ({"logs": ["x"], "log": 1}, [LIVE, BACKING]),
    ],
)
def test_the_payloads_names_come_first_and_the_usual_ones_last(payload: dict[str, Any], names: list[str]) -> None:
    assert log_names(payload) == [*names, LIVE, BACKING]
