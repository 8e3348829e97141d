"""A worker that is killed in the midst of downloads, again and again: the next one trusts only what is whole."""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from mounts_downloader import PAGES, content_of
from mounts_world import MIB, Page, open_site, sha

from plugins.mounts import kept

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.full)])
async def test_nothing_damaged_is_handed_out_after_kill_9(tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    good = {sha(content_of(number)) for number in range(PAGES)}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])])}
    async with open_site() as site:
        site.pages |= {f"/{number}": Page(content_of(number), etag=f'"{number}"') for number in range(PAGES)}
        for _ in range(kills):
            enough = site.sent + chance.randrange(10 * MIB)
            argv = [sys.executable, str(HERE / "mounts_downloader.py"), str(tmp_path), str(site.port)]
            async with trio.open_nursery() as nursery:
                run = partial(trio.run_process, argv, env=env, check=False)
                process = await nursery.start(run)
                with trio.fail_after(60):
                    await site.until(enough)
                assert process.returncode is None, "it got what it did not ask for"
                process.send_signal(signal.SIGKILL)
            entries = kept.load(tmp_path / "work" / "downloads")
            assert {sha(entry.path.read_bytes()) for entry in entries} <= good
            assert all(entry.sha256 == sha(entry.path.read_bytes()) for entry in entries)
