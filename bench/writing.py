"""A task's program: writes lines, each with the time at which it is written. Run as it is, with any Python."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

LINE = 100  # bytes, with the line's end
BATCH = 640  # lines that are written at once where there is no rate


def main(go: str, lines: int, rate: float) -> None:
    """Wait for the file `go`; write so many lines, so many a second, 0 for as fast as it goes."""
    while not Path(go).exists():
        time.sleep(0.02)  # the task's sandbox shares nothing but files with the benchmark
    out = sys.stdout.fileno()
    began = time.monotonic()
    batch = max(1, int(rate / 100)) if rate else BATCH  # a write each 10 ms at most
    for done in range(0, lines, batch):
        if rate:
            time.sleep(max(0.0, began + done / rate - time.monotonic()))
        line = f"{time.time_ns():<{LINE - 1}}\n".encode()
        rest = memoryview(line * min(batch, lines - done))
        while rest:
            rest = rest[os.write(out, rest) :]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
