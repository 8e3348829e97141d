"""A process that downloads without end, to be killed: `python mounts_downloader.py FOLDER PORT`.

What it gets from `/N` must be what `content_of(N)` is; else it ends with 3.
"""

from __future__ import annotations

import random
import sys
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import trio
from mounts_world import MIB, SETTINGS, sha

from plugins.mounts.downloads import open_downloads
from plugins.mounts.payload import Content
from plugins.mounts.sources import find_source
from worker.schema import Slice
from worker.testing.runs import open_run, open_services

PAGES = 8


def content_of(number: int) -> bytes:
    """What is at a path: of different sizes, and none like another."""
    return random.Random(number).randbytes(MIB // 2 + number * MIB // 8)


async def main(folder: Path, port: int) -> None:
    settings = replace(SETTINGS, kept=4 * MIB)
    with tempfile.TemporaryDirectory() as elsewhere:
        async with (
            open_services(folder) as services,
            open_run(Path(elsewhere), Slice()) as run,
            open_downloads(services, settings) as downloads,
        ):
            for number in count():
                page = number % PAGES
                hashed = {"sha256": sha(content_of(page))} if number % 2 else {}
                content = Content(url=f"http://127.0.0.1:{port}/{page}", **hashed)
                async with downloads.held(await find_source(run, content), run.log) as entry:
                    if await trio.Path(entry.path).read_bytes() != content_of(page):
                        sys.exit(3)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
