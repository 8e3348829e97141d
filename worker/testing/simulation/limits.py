"""The bounds within which promises hold, in one place. Seconds, unless they are a `timedelta`."""

from __future__ import annotations

from datetime import timedelta

# The worker takes a difference of the clocks below 2 s for none (`NOTABLE_SKEW`), and ends a run 5 s + kill grace
# before its claim: there is no excuse for executing past `takenUntil` by the queue's own clock.
TAKEN_MARGIN = timedelta(0)

# After the faults: the longest wait between two claims (60), a long poll that was lost (45), a disk that was low (30),
# a request that stalls in each of two attempts (60), and the end of a task that holds the last place: a hook that hangs
# (200), and its commands (120).
RECOVERY = 600.0

# From a cancel to the end of the process, without faults: the poll's interval and jitter, and two quick requests.
CANCEL_SLACK = 1.0

# Beyond `shutdown.grace` and the kill grace: a claim that is out is waited for (25), what it brings is given back (10).
STOP_SLACK = 60.0

# From the last resolution to idle workers: the queue may have resolved a run that its worker has yet to end.
IDLE = 120.0
