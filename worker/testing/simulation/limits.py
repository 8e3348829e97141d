"""The bounds within which promises hold, in one place. Seconds. None of them is taken from the worker's own code."""

from __future__ import annotations

# The worker takes a difference of the clocks below 2 s for none, and ends a run 5 s + kill grace before its claim:
# there is no excuse for executing past `takenUntil` by the queue's own clock.
TAKEN_MARGIN = 0.0

# From a 409 that has arrived, or from a signal, to the end of the last process, beyond the kill grace.
DEAD_SLACK = 1.0

# An answer that was longer on its way does not tell what time it is for the queue.
TELLING = 1.0

# From a deadline to the end of the last process, beyond the kill grace: a difference of the clocks below 2 s is none.
DEADLINE_SLACK = 3.0

# After the faults: the longest wait between two claims (60), a long poll that was lost (45), a disk that was low (30),
# a request that stalls in each of two attempts (60), and the end of a task that holds the last place: a hook that hangs
# (200), and its commands (120).
RECOVERY = 600.0

# How long a poll for cancelled tasks may hang: one that was sent before the calm hides a cancel for so long.
POLL_LIMIT = 10.0

# From a cancel to the end of the process, without faults: the poll's interval and jitter, and two quick requests.
CANCEL_SLACK = 1.0

# From the first signal to the end, beyond `shutdown.grace` and the kill grace: a claim that is out is waited for (25),
# what it brings is given back (10).
STOP_SLACK = 25.0 + 10.0

# From the second signal to the end, beyond the kill grace: KILL (5), reports (5), a claim that is given back (10).
ABORT_SLACK = 5.0 + 5.0 + 10.0

# How long a hook keeps others from ending it. Four of them may do so one after the other, and make a stop longer.
SHIELDED = 8.0

# How long before the end of its claim a run may be given up at the earliest, beyond the kill grace: the end's margin
# (5), and what the clock is taken for too late after an answer that was long on its way (60).
GIVEN_UP = 65.0

# An outage that ends so long before the end of a claim, beyond the kill grace, does not cost the claim: the end's
# margin (5), and the longest wait between two attempts (30) with a little for the attempt.
OUTAGE_RECOVERY = 45.0

# From the last resolution to idle workers: the queue may have resolved a run that its worker has yet to end.
IDLE = 120.0

# Of real time, for one seed: it takes less than a second.
SEED = 60.0
