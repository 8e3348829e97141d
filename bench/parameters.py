"""How much is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Parameters:
    """`tasks` in each run, `capacity` of them at once, in so many `rounds`."""

    tasks: int
    rounds: int
    capacity: int


DEFAULTS: Mapping[str, Parameters] = MappingProxyType(
    {
        "abort": Parameters(tasks=100, rounds=2, capacity=10),
        "artifacts": Parameters(tasks=10_000, rounds=2, capacity=10),
        "claim": Parameters(tasks=500, rounds=3, capacity=16),
        "growth": Parameters(tasks=10_000, rounds=3, capacity=16),
        "latency": Parameters(tasks=50, rounds=2, capacity=1),
        "livelog": Parameters(tasks=1000, rounds=3, capacity=500),
        "profile": Parameters(tasks=2000, rounds=3, capacity=16),
        "scale": Parameters(tasks=1000, rounds=1, capacity=1),
        "soak": Parameters(tasks=100_000, rounds=1, capacity=16),
        "workers": Parameters(tasks=3000, rounds=3, capacity=16),
    }
)
SMOKE = Parameters(tasks=6, rounds=1, capacity=3)
# The soak takes as long as it can be looked at twice.
SMOKES: Mapping[str, Parameters] = MappingProxyType(
    {**dict.fromkeys(DEFAULTS, SMOKE), "soak": replace(SMOKE, tasks=2000)}
)
