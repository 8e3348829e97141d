from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from bench_smoke import run_smoke

from bench.artifacts import limits
from bench.artifacts import questions as upload_questions
from bench.claim import COMPARED, VARIANTS
from bench.claim_report import FIGURES, RATIOS
from bench.livelog import questions
from bench.parameters import SMOKE
from bench.recording import call_kind
from bench.report import figure, quantile, table
from bench.static import PROGRAM
from bench.writing import LINE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    # So many that its comparison with the newest record means something: it fails where a ratio is ten times worse.
    return run_smoke("claim", tmp_path_factory.mktemp("bench"), "--tasks", "60")


def test_every_variant_has_every_figure(smoke: tuple[str, dict[str, Any]]) -> None:
    text, report = smoke
    assert set(report["figures"]) == {variant.name for variant in VARIANTS}
    for figures in report["figures"].values():
        assert set(figures) == set(FIGURES)
    assert {name: set(ratios) for name, ratios in report["ratios"].items()} == {
        f"{each.variant} of {each.limit}": set(RATIOS) for each in COMPARED
    }
    assert report["spawns_per_second"][0] > 0
    for variant in VARIANTS:
        assert f"| {variant.name} " in text


def test_the_limit_makes_the_calls_that_the_worker_makes(smoke: tuple[str, dict[str, Any]]) -> None:
    _, report = smoke
    # How many tasks a claim brings depends on when places become free.
    calls = {
        name: {kind: count for kind, count in each.items() if "claim-work" not in kind}
        for name, each in report["calls"].items()
    }
    assert calls["mock"] == calls["bare calls"]
    assert calls["native"] == calls["bare calls + spawn"]


def test_cancelled_trees_die_and_both_parts_of_it_are_told(tmp_path: Path) -> None:
    text, report = run_smoke("abort", tmp_path)
    assert [(each["kind"], each["at_once"], len(each["times"]), len(each["bare"])) for each in report["found"]] == [
        ("obedient", 1, 2, 2),
        ("obedient", 3, 6, 6),
        ("hostile", 1, 2, 2),
        ("hostile", 3, 6, 6),
    ]
    for each in report["found"]:
        assert f"| {each['kind']}, {each['at_once']} at once " in text
        assert all(0 < times["noticed"] < times["empty"] for times in each["times"])


def test_all_servers_answer_every_question_about_live_logs(tmp_path: Path) -> None:
    text, report = run_smoke("livelog", tmp_path)
    asked = {question.name: question for question in questions(SMOKE)}
    servers: dict[str, set[str]] = {name: set() for name in asked}
    for answer in report["answers"]:
        question = asked[answer["question"]]
        servers[question.name].add(answer["server"])
        assert answer["bytes"] >= question.lines * LINE * question.viewers
        assert f"| {answer['question']}, {answer['server']} " in text
    everybody = {"worker", "hypercorn"} | ({"nginx"} if PROGRAM else set())
    # The others only send a file: they have no lines whose age could be told, and no websocket.
    assert servers == {
        name: everybody if question.way == "http" and "latency" not in name else {"worker"}
        for name, question in asked.items()
    }


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0, 0.5, 0.51, 0.99, 1)] == [1, 2, 3, 4, 4]


def test_figures_are_medians_with_their_spread() -> None:
    assert figure([3, 1, 2]).shown() == "2 (1 to 3)"
    assert figure([1234.5]).shown() == "1234"
    assert table(["", "a"], [["one", "2"]]) == "|     | a |\n| --- | - |\n| one | 2 |"


def test_calls_are_told_apart_by_kind_and_not_by_task() -> None:
    path = "/api/queue/v1/task/fN1SbArXTPSVFNUvaOlinQ/runs/0/completed"
    assert call_kind("POST", path) == "POST queue/task/…/runs/0/completed"
    assert call_kind("PUT", "/blobs/fN1SbArXTPSVFNUvaOlinQ/0/log") == "PUT (presigned URL)"


def test_artifacts_are_uploaded_in_every_way(tmp_path: Path) -> None:
    text, report = run_smoke("artifacts", tmp_path)
    for question in upload_questions(SMOKE):
        uploaders = {each["uploader"] for each in report["answers"] if each["question"] == question.name}
        assert uploaders == {"worker", *limits(question)}
        assert f"| {question.name}, worker " in text
    assert all(each["seconds"] > 0 for each in report["answers"])
