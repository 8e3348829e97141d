from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from archives import COMPRESS, HONEST, member, tar
from mounts_world import ArtifactQueue, Page, Site, open_site, sha

from engines.base import Ended, Lending, Volume
from plugins.mounts import Mounts
from plugins.mounts.payload import GenericWorkerPayload
from plugins.mounts.plugin import MountsConfig
from worker.errors import MalformedPayload, ResourceUnavailable, TaskFault
from worker.ports import Ports
from worker.services import Services
from worker.testing.plugin_suite import IdleBuilder
from worker.testing.results import SUCCEEDED, FolderResult
from worker.testing.runs import TASK_ID, log_text, open_run, open_services, task_definition

T = TypeVar("T")

CACHE = {"cacheName": "c", "directory": "cache"}


@dataclass
class World:
    services: Services
    plugin: Mounts
    site: Site
    folder: Path
    queue: ArtifactQueue = field(default_factory=ArtifactQueue)
    log: str = ""
    replaces: bool = False  # whether tasks do what makes them lose their caches

    @asynccontextmanager
    async def mounted(
        self,
        mounts: Sequence[dict[str, Any]],
        ended: Ended | None = SUCCEEDED,
        scopes: Sequence[str] = ("generic-worker:cache:*",),
        purge: Sequence[int] = (),
    ) -> AsyncGenerator[list[Volume], None]:
        """A run from prepare to the end of its scope, with the block where the task would run."""
        payload = GenericWorkerPayload.model_validate(
            {"mounts": list(mounts), "onExitStatus": {"purgeCaches": list(purge)}}
        )
        task = task_definition(dependencies=[TASK_ID], scopes=list(scopes))
        folder = self.folder / self.services.ports.slug()
        folder.mkdir()
        async with open_run(folder, payload, task=task, queue=self.queue) as run:
            builder = IdleBuilder()
            try:
                async with self.plugin.task_scope(run) as hooks:
                    await hooks.prepare(builder)
                    yield builder.volumes
                    for volume in builder.volumes:
                        if volume.lending is Lending.LENT and (ended is not None and not self.replaces):
                            (folder / volume.path).mkdir(parents=True)
                    await hooks.stopped(FolderResult(folder, ended=ended))
            finally:
                with trio.CancelScope(shield=True):
                    self.log = await log_text(run)

    async def contents(self, *mounts: dict[str, Any]) -> list[bytes]:
        async with self.mounted(mounts) as volumes:
            return [await trio.Path(volume.source).read_bytes() for volume in volumes]


@asynccontextmanager
async def open_world(tmp_path: Path, config: MountsConfig | None = None) -> AsyncGenerator[World, None]:
    async with open_site() as site, open_services(tmp_path) as services:
        plugin = Mounts(config or MountsConfig(), services)
        async with plugin.worker_scope():
            yield World(services, plugin, site, tmp_path)
        await services.trash.wait_empty()
        assert list((services.work_dir / "mounts").iterdir()) == []


async def test_files_come_from_everywhere(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages |= {"/u": Page(b"url"), "/a": Page(b"artifact"), "/x": Page(COMPRESS["xz"](b"packed"))}
        world.queue.places = {"public/a": world.site.url("/a")}
        mounts = [
            {"file": "raw", "content": {"raw": "raw"}},
            {"file": "base64", "content": {"base64": "YmFzZTY0"}},
            {"file": "url", "content": {"url": world.site.url("/u"), "sha256": sha(b"url")}},
            {"file": "artifact", "content": {"taskId": TASK_ID, "artifact": "public/a"}},
            {"file": "unpacked", "content": {"url": world.site.url("/x")}, "format": "xz"},
        ]
        async with world.mounted(mounts) as volumes:
            found = {volume.path: (await trio.Path(volume.source).read_text(), volume.lending) for volume in volumes}
        assert found == {
            "raw": ("raw", Lending.GIVEN),
            "base64": ("base64", Lending.GIVEN),
            "url": ("url", Lending.SHARED),
            "artifact": ("artifact", Lending.SHARED),
            "unpacked": ("packed", Lending.GIVEN),
        }
        assert world.queue.asked == [(TASK_ID, "public/a")]
        assert "[mounts] Extracting http://127.0.0.1" in world.log
        assert "[mounts] Extracted 6 bytes to unpacked in" in world.log


async def test_folders_are_given_with_what_an_archive_holds(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/t"] = Page(COMPRESS["zst"](tar(HONEST)))
        mounts = [{"directory": "d", "content": {"url": world.site.url("/t")}, "format": "tar.zst"}]
        async with world.mounted(mounts) as [volume]:
            assert (volume.path, volume.lending) == ("d", Lending.GIVEN)
            assert (volume.source / "dir" / "file.txt").read_text() == "hello\n"
        assert not volume.source.exists()


async def test_volumes_are_in_the_payloads_order_whatever_is_ready_first(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/slow"] = Page(tar([member("f", b"x")]))
        world.site.gate = trio.Event()
        mounts: list[dict[str, Any]] = [
            {"directory": "a", "content": {"url": world.site.url("/slow")}, "format": "tar"},
            {"file": "a/b", "content": {"raw": ""}},
            {"directory": "a/c", "cacheName": "c"},
        ]
        async with trio.open_nursery() as nursery:

            async def get() -> None:
                async with world.mounted(mounts) as volumes:
                    assert [volume.path for volume in volumes] == ["a", "a/b", "a/c"]

            nursery.start_soon(get)
            await world.site.halfway.acquire()
            world.site.gate.set()


async def use(world: World, ended: Ended | None = SUCCEEDED, **more: Any) -> list[str]:
    """Run with a cache and leave a file in it; what was there before."""
    async with world.mounted([CACHE], ended, **more) as [volume]:
        assert volume.lending is Lending.LENT
        before = sorted(path.name for path in volume.source.iterdir())
        (volume.source / f"file{len(before)}").touch()
    return before


async def test_caches_are_kept_after_success_and_failure(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert await use(world) == []
        assert "[mounts] No cache c is there: it is made anew, at cache" in world.log
        assert "[mounts] The cache c is kept" in world.log
        assert await use(world, Ended(success=False, exit_code=1)) == ["file0"]
        assert await use(world) == ["file0", "file1"]
        assert "[mounts] Using the cache c, at cache" in world.log


async def test_caches_are_thrown_away_after_an_abort_and_a_listed_exit_code(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await use(world)
        await use(world, None)
        assert await use(world) == []
        assert await use(world, Ended(success=False, exit_code=7), purge=[7]) == ["file0"]
        assert "The cache c is thrown away, as the task wants it for this exit code" in world.log
        assert await use(world) == []


async def test_a_fresh_cache_gets_its_content_and_an_old_one_does_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/t"] = Page(tar([member("f", b"x")]))
        mount = {**CACHE, "content": {"url": world.site.url("/t")}, "format": "tar"}
        async with world.mounted([mount]) as [volume]:
            assert (volume.source / "f").read_bytes() == b"x"
            (volume.source / "f").write_bytes(b"changed")
        async with world.mounted([mount]) as [volume]:
            assert (volume.source / "f").read_bytes() == b"changed"
        assert len(world.site.requests) == 1


async def test_a_cache_whose_content_was_not_to_be_had_is_not_kept(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/t"] = Page(tar([member("a", b"x"), member("../evil", b"x")]))
        mount = {**CACHE, "content": {"url": world.site.url("/t")}, "format": "tar"}
        with pytest.raises(TaskFault, match=r"was not extracted to cache: '\.\./evil' leads out"):
            async with world.mounted([mount]):
                raise AssertionError
        assert await use(world) == []


@pytest.mark.parametrize(
    "mount",
    [
        {"file": "a", "content": {"url": "/nothing"}},
        {"directory": "b", "content": {"raw": "no zip"}, "format": "zip"},
        {"file": "c", "content": {"raw": "no xz"}, "format": "xz"},
    ],
)
async def test_what_cannot_be_mounted_is_the_tasks_fault(tmp_path: Path, mount: dict[str, Any]) -> None:
    async with open_world(tmp_path) as world:
        content = mount["content"]
        content = {"url": world.site.url(content["url"])} if "url" in content else content
        with pytest.raises(TaskFault):
            async with world.mounted([{**mount, "content": content}]):
                raise AssertionError


async def test_a_cancelled_prepare_leaves_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/t"] = Page(tar(HONEST))
        world.site.gate = trio.Event()
        mounts: list[dict[str, Any]] = [
            CACHE,
            {"directory": "b", "content": {"url": world.site.url("/t")}, "format": "tar"},
        ]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def get() -> None:
                    async with world.mounted(mounts):
                        raise AssertionError

                nursery.start_soon(get)
                await world.site.halfway.acquire()
                scope.cancel()
        assert await use(world) == []
        assert await world.plugin.downloads.unused() == []


async def test_the_first_mount_that_fails_is_the_reason(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/slow"] = Page(b"x" * 1000)
        world.site.gate = trio.Event()
        mounts = [
            {"file": "slow", "content": {"url": world.site.url("/slow")}},
            {"file": "lost", "content": {"url": world.site.url("/nothing")}},
        ]
        with pytest.raises(TaskFault, match="/nothing is not to be had: the server answers with status 404"):
            async with world.mounted(mounts):
                raise AssertionError


async def test_a_cache_that_the_task_has_replaced_is_told_in_its_log(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await use(world)
        world.replaces = True
        assert await use(world) == ["file0"]
        assert "The cache c is not kept: no folder is at cache any more. A task may empty the folder" in world.log
        assert await use(world) == []


class FullPorts(Ports):
    """No more files can be made once the worker has begun."""

    is_full = False

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if self.is_full and getattr(function, "__name__", "") in {"mkdir", "write_bytes", "make"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await super().run_sync(function, *args)


@pytest.mark.parametrize(
    "mount",
    [
        {"file": "a", "content": {"raw": "x"}},
        {"file": "a", "content": {"raw": "x"}, "format": "gz"},
        {"directory": "a", "content": {"raw": "x"}, "format": "zip"},
        {"directory": "a", "cacheName": "a"},
    ],
)
async def test_a_full_disk_is_no_fault_of_the_tasks(tmp_path: Path, mount: dict[str, Any]) -> None:
    ports, payload = FullPorts(), GenericWorkerPayload.model_validate({"mounts": [mount]})
    async with open_services(tmp_path, ports=ports) as services:
        plugin = Mounts(MountsConfig(), services)
        async with plugin.worker_scope(), open_run(tmp_path, payload) as run:
            task = task_definition(scopes=["generic-worker:cache:*"])
            async with plugin.task_scope(replace(run, task=task)) as hooks:
                ports.is_full = True
                with pytest.raises(ResourceUnavailable, match="the worker's disk is full: No space left"):
                    await hooks.prepare(IdleBuilder())


@pytest.mark.parametrize("scopes", [[], ["generic-worker:cache:d"]])
async def test_a_missing_scope_is_told_before_anything_happens(tmp_path: Path, scopes: list[str]) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(MalformedPayload, match="the cache 'c' needs the scope generic-worker:cache:c"):
            async with world.mounted([CACHE], scopes=scopes):
                raise AssertionError


async def test_a_task_without_mounts_costs_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        async with world.mounted([]) as volumes:
            assert volumes == []
            assert list((world.services.work_dir / "mounts").iterdir()) == []
        assert world.log == ""
