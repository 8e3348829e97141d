from __future__ import annotations

from pathlib import Path

import trio

from plugins.mounts.caches import open_caches
from worker.testing.runs import open_services


async def test_a_cache_that_is_kept_is_there_again(tmp_path: Path) -> None:
    async with open_services(tmp_path) as services:
        async with open_caches(services) as caches:
            async with caches.lease("a") as lease:
                assert lease.fresh
                (lease.path / "file").write_text("kept")
                lease.keep = True
            async with caches.lease("a") as lease:
                assert not lease.fresh
                lease.keep = True
        async with open_caches(services) as caches, caches.lease("a") as lease:
            assert (lease.path / "file").read_text() == "kept"
        async with open_caches(services) as caches, caches.lease("a") as lease:
            assert lease.fresh
        with trio.fail_after(10):
            await services.trash.wait_empty()
        assert not list((services.work_dir / "trash").iterdir())
