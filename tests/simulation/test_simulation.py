"""The worker keeps its promises in a faulty world; and the simulation itself is reproducible, and notices."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

LIMIT = 600  # seconds

PROMISE_BROKEN = {
    "resolves-twice": "a run is resolved once",
    "drops-last-chunk": "the log is whole and in order",
    "forgets-reclaim": "nothing executes past takenUntil",
    "leaves-child": "nothing outlives its run",
    "reports-again": "a run is resolved once",
    "loses-heart": "a run is not given up while it can be kept",
    "ignores-deadline": "nothing executes past its deadline",
    "ignores-exit-code": "completed means that the task succeeded",
    "ignores-max-run-time": "completed means that the task succeeded",
    "quits": "a worker goes on until it is told to stop",
    "forgets-leftovers": "what a killed worker left is dead before the next claim",
    "hangs": "no worker is stuck",
}


def simulate(*options: str, limit: float = LIMIT, hash_seed: str = "") -> tuple[int, str]:
    """Run the command; its exit code and what it printed."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    if hash_seed:
        environ["PYTHONHASHSEED"] = hash_seed
    argv = [sys.executable, "-m", "worker.testing.simulate", *options]
    done = subprocess.run(argv, env=environ, stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
    return done.returncode, done.stdout


def test_300_seeds_break_no_promise() -> None:
    code, printed = simulate("--seed", "1", "--seeds", "300", "--jobs", "2")
    assert code == 0, printed[-20_000:]
    assert re.search(r"^300 seeds, \d+ a minute, \d+ faults, 0 failed$", printed, re.M), printed


@pytest.mark.full
def test_10000_seeds_break_no_promise() -> None:
    code, printed = simulate("--seed", "1", "--seeds", "10000", "--jobs", str(os.cpu_count() or 1), limit=4 * 3600)
    assert code == 0, printed[-20_000:]


@pytest.mark.parametrize("seed", ["3", "18", "52"])
def test_a_seed_replays_to_the_last_byte(seed: str) -> None:
    """Also where processes would hash strings differently."""
    first, second = (simulate("--seed", seed, "--all-lines", hash_seed=hashes) for hashes in ("1", "2"))
    assert "history " in first[1]
    assert re.sub(r"\d+ a minute", "", first[1]) == re.sub(r"\d+ a minute", "", second[1])


def test_seeds_differ() -> None:
    digests = {re.findall(r"^history (\w+)", simulate("--seed", seed)[1], re.M)[0] for seed in ("1", "2")}
    assert len(digests) == 2


ALWAYS = {"resolves-twice", "drops-last-chunk", "forgets-reclaim", "leaves-child"}  # the others take a minute


@pytest.mark.parametrize(
    "variant", [pytest.param(each, marks=() if each in ALWAYS else pytest.mark.full) for each in PROMISE_BROKEN]
)
def test_a_broken_worker_is_caught(variant: str) -> None:
    code, printed = simulate("--seed", "1", "--seeds", "200", "--jobs", "2", "--variant", variant)
    assert code == 1
    assert f" broke a promise: {PROMISE_BROKEN[variant]}: " in printed, printed[-5000:]


def test_a_seed_that_does_not_come_to_its_end_is_told_with_its_history() -> None:
    code, printed = simulate("--seed", "1", "--seeds", "3", "--variant", "spins", "--seconds", "2")
    assert code == 1
    assert " + process" in printed
    assert "broke a promise: the simulation comes to its end: " in printed, printed[-5000:]
    assert "in exit_code" in printed, "where it was"
    assert "to see it again: " in printed


def test_a_seed_that_failed_says_how_to_see_it_again() -> None:
    printed = simulate("--seed", "1", "--seeds", "200", "--variant", "leaves-child")[1]
    again = re.search(r"^to see it again: python -m worker.testing.simulate (.*)$", printed, re.M)
    assert again is not None
    code, replayed = simulate(*again[1].split())
    digests = [re.findall(r"^history (\w{64})", text, re.M)[0] for text in (printed, replayed)]
    assert code == 1
    assert digests[0] == digests[1]
