"""The faults: whether one happens, seeded, and how many of each kind have happened."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


def seeded(text: str) -> random.Random:
    """Random numbers that `text` decides, on every machine the same."""
    return random.Random(text)  # noqa: S311 - nothing is to be kept secret


@dataclass
class Chaos:
    """Decides, from one stream of random numbers. `rates` has the probability of each kind; a missing one is 0.

    Once `calm` is set, nothing happens any more.
    """

    random: random.Random
    rates: Mapping[str, float]
    calm: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def strikes(self, kind: str) -> bool:
        """Whether a fault of that kind happens here and now; it is counted if so."""
        if not self.drawn(kind):
            return False
        self.counted(kind)
        return True

    def drawn(self, kind: str) -> bool:
        """Whether a fault of that kind is to happen; whoever makes it happen counts it."""
        rate = 0.0 if self.calm else self.rates.get(kind, 0.0)
        return rate > 0 and self.random.random() < rate

    def first_of(self, kinds: Sequence[str]) -> str:
        """The first of `kinds` that is drawn, or nothing."""
        return next((kind for kind in kinds if self.drawn(kind)), "")

    def counted(self, kind: str) -> None:
        """A fault happened."""
        self.counts[kind] += 1

    def between(self, low: float, high: float) -> float:
        """A number between, small ones more often."""
        return low + (high - low) * self.random.random() ** 3

    def one(self, choices: Sequence[T]) -> T:
        """Any of them."""
        return self.random.choice(choices)
