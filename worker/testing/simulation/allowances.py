"""What the world spares the worker, since nobody could do better."""

from __future__ import annotations

# Seconds that an answer takes on its way back, at most: a claim must not be over when the worker hears of it.
LONGEST_WAY_BACK = 20.0
