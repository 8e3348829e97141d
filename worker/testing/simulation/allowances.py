"""Known faults of the worker, not mended yet: the world spares it them. Each line goes when its bug does."""

from __future__ import annotations

# An answer that was long on its way sets the worker's idea of the queue's clock back by as much
# (`Deployment._learn_skew`), and who sleeps until a time of the queue's does not notice when that idea changes
# (`TaskRun._sleep_until`): claims are not renewed in time, or are kept for too long. Seconds an answer may take.
LONGEST_WAY_BACK = 40.0
