"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameters:
    """`tasks` in each run, `capacity` of them at once, in so many `rounds`."""

    tasks: int
    rounds: int
    capacity: int


DEFAULT = Parameters(tasks=500, rounds=3, capacity=16)
SMOKE = Parameters(tasks=6, rounds=1, capacity=3)
