from __future__ import annotations

import subprocess
import sys

# In a process of its own: what was frozen stays so.
PROGRAM = """
import weakref
from worker import garbage

class Cycle:
    def __init__(self):
        self.own = self

garbage.pause()
before = weakref.ref(Cycle())
paused = [[] for _ in range(2 * garbage.YOUNG)]
assert before(), "collected while paused"
garbage.resume()
after = weakref.ref(Cycle())
resumed = [[] for _ in range(2 * garbage.YOUNG)]
assert before(), "what there was is not looked at"
assert not after(), "not collected"
"""


def test_cycles_are_collected_after_the_start_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
