"""A worker's process is heard whatever it says."""

from __future__ import annotations

import subprocess
import sys

import trio

from worker.testing.realworker import RealWorker

SCRIPT = "import os; os.write(2, 'é'.encode() * 100_000 + b'x' + 'é'.encode() * 100_000 + b'end')"


async def test_one_that_says_more_than_a_pipe_holds_can_end_unheard_and_is_heard_later() -> None:
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE)
        assert process.stderr is not None
        async with process.stderr, trio.open_nursery() as nursery:
            worker = RealWorker(process)
            nursery.start_soon(worker.listen)
            assert await process.wait() == 0
            await worker.hear("é" * 100_000 + "end")
