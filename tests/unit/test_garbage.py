from __future__ import annotations

import subprocess
import sys

import pytest

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


# As the commands run, each of them by `run_async`.
COMMAND = """
import gc
from worker import garbage

garbage.pause()
from worker.cli.common import run_async

async def work():
    return 0 if gc.isenabled() and gc.get_threshold()[0] == garbage.YOUNG and gc.get_freeze_count() else 1

run_async(work)
"""


@pytest.mark.parametrize("program", [PROGRAM, COMMAND], ids=["module", "command"])
def test_cycles_are_collected_after_the_start_and_not_before(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
