from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import zstandard
from caches_world import mounted_disk
from mounts_world import MIB, SETTINGS, ArtifactQueue, Page, Site, Trouble, gzipped, open_site, sha

from plugins.mounts.downloads import Downloads, DownloadSettings, _Flight, open_downloads
from plugins.mounts.payload import Content
from plugins.mounts.sources import Source, find_source
from worker.disk import look
from worker.errors import ResourceUnavailable, TaskFault
from worker.ports import Ports
from worker.queue.errors import Forbidden, Unavailable
from worker.run import Run
from worker.schema import Slice
from worker.testing.runs import TASK_ID, log_text, open_run, open_services

T = TypeVar("T")

BIG = os.urandom(3 * MIB)
MODIFIED = "Sat, 31 Jan 2026 12:00:00 GMT"


@dataclass
class World:
    site: Site
    downloads: Downloads
    run: Run[Slice]
    queue: ArtifactQueue
    folder: Path

    async def source(self, path: str, sha256: str | None = None) -> Source:
        known = {"sha256": sha256} if sha256 else {}
        return await find_source(self.run, Content(url=self.site.url(path), **known))

    async def artifact(self, name: str, sha256: str | None = None) -> Source:
        known = {"sha256": sha256} if sha256 else {}
        return await find_source(self.run, Content(task_id=TASK_ID, artifact=name, **known))

    async def get(self, source: Source) -> bytes:
        async with self.downloads.held(source, self.run.log) as entry:
            return await trio.Path(entry.path).read_bytes()

    async def url(self, path: str, sha256: str | None = None) -> bytes:
        return await self.get(await self.source(path, sha256))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@asynccontextmanager
async def open_world(
    tmp_path: Path,
    site: Site | None = None,
    settings: DownloadSettings = SETTINGS,
    ports: Ports | None = None,
) -> AsyncGenerator[World, None]:
    queue = ArtifactQueue()
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    async with (
        open_site() as fresh,
        open_services(tmp_path, ports=ports) as services,
        open_run(folder, Slice(), queue=queue) as run,
        open_downloads(services, settings) as downloads,
    ):
        yield World(site or fresh, downloads, run, queue, services.work_dir / "downloads")


async def test_content_with_a_hash_is_downloaded_once_and_then_found(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages |= {"/a": Page(BIG), "/mirror": Page(BIG)}
        assert await world.url("/a", sha(BIG)) == BIG
        assert await world.url("/a", sha(BIG)) == BIG
        assert await world.url("/mirror", sha(BIG)) == BIG
        assert len(world.site.requests) == 1
        log = await log_text(world.run)
    assert f"[mounts] Downloaded http://127.0.0.1:{world.site.port}/a in" in log
    assert f"{len(BIG)} bytes" in log or "3 MiB with SHA-256 " + sha(BIG) in log
    assert "Found http://127.0.0.1" in log


async def test_content_without_a_hash_is_asked_about_each_time(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages |= {"/tag": Page(b"1", etag='"1"'), "/date": Page(b"1", modified=MODIFIED)}
        for path in ("/tag", "/date"):
            assert [await world.url(path) for _ in range(3)] == [b"1"] * 3
        assert world.site.sent == 2, "a 304 for all but the first"
        world.site.pages["/tag"] = Page(b"22", etag='"2"')
        assert await world.url("/tag") == b"22"
        assert "has not changed since it was downloaded" in await log_text(world.run)
    assert len(world.files()) == 4, "what was replaced is gone"


@pytest.mark.parametrize("page", [Page(b"1"), Page(b"1", etag='W/"1"'), Page(b"1", modified="nonsense")])
async def test_content_that_cannot_be_recognized_is_downloaded_anew(tmp_path: Path, page: Page) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = page
        assert [await world.url("/a") for _ in range(2)] == [b"1", b"1"]
        assert world.site.sent == 2
        for _, headers in world.site.requests:
            assert not headers.keys() & {"if-none-match", "if-modified-since"}


async def test_content_is_not_served_stale_when_its_server_is_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"1", etag='"1"')
        assert await world.url("/a") == b"1"
        world.site.troubles["/a"] = [Trouble(status=503) for _ in range(4)]
        with pytest.raises(ResourceUnavailable, match="in 4 attempts: the server answers with status 503"):
            await world.url("/a")
        assert await world.url("/a") == b"1"


async def test_a_download_that_breaks_is_gone_on_with(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG, etag='"1"')
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB), Trouble(status=500), Trouble(breaks_at=MIB)]
        assert await world.url("/a") == BIG
        assert world.site.sent == len(BIG)
        assert "attempt 2 failed: the server answers with status 500" in await log_text(world.run)


@pytest.mark.parametrize("page", [Page(BIG, etag='"1"', ranges=False), Page(BIG)])
async def test_what_cannot_be_gone_on_with_begins_anew(tmp_path: Path, page: Page) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = page
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB), Trouble(breaks_at=2 * MIB)]
        assert await world.url("/a") == BIG


async def test_content_that_changes_in_the_middle_is_of_one_piece(tmp_path: Path) -> None:
    other = os.urandom(2 * MIB)
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG, etag='"1"')
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB)]
        world.site.gate = trio.Event()
        async with trio.open_nursery() as nursery:

            async def get() -> None:
                assert await world.url("/a") == other

            nursery.start_soon(get)
            await world.site.halfway.acquire()
            world.site.pages["/a"] = Page(other, etag='"2"')
            world.site.gate.set()


async def test_one_download_serves_many_and_survives_each_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG)
        world.site.gate = trio.Event()
        source = await world.source("/a")
        got = []
        first = trio.CancelScope()

        async def cancelled() -> None:
            with first:
                await world.get(source)
                raise AssertionError

        async def get() -> None:
            got.append(await world.get(await world.source("/a")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            await world.site.halfway.acquire()
            for _ in range(20):
                nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            world.site.gate.set()
        assert got == [BIG] * 20
        assert len(world.site.requests) == 1
        assert all(not entry.pins for entry in world.downloads._entries.values())


async def test_a_download_ends_when_nobody_waits_and_can_be_gone_on_with(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG, etag='"1"')
        world.site.gate = trio.Event()
        source = await world.source("/a", sha(BIG))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.get, source)
                await world.site.halfway.acquire()
                scope.cancel()
        world.site.gate.set()
        assert await world.get(source) == BIG
        assert not world.downloads._flights
        assert world.site.requests[-1][1].get("if-range", '"1"') == '"1"'


async def test_a_later_worker_finds_what_was_kept_and_goes_on_with_what_broke_off(tmp_path: Path) -> None:
    async with open_site() as site:
        site.pages |= {"/a": Page(BIG, etag='"1"'), "/b": Page(b"b" * MIB, etag='"2"'), "/c": Page(b"c" * 9)}
        async with open_world(tmp_path, site) as world:
            await world.url("/b", sha(b"b" * MIB))
            await world.url("/c")
            site.troubles["/a"] = [Trouble(breaks_at=MIB)] + [Trouble(status=500)] * 3
            with pytest.raises(ResourceUnavailable):
                await world.url("/a", sha(BIG))
        site.requests.clear()
        async with open_world(tmp_path, site) as world:
            assert await world.url("/b", sha(b"b" * MIB)) == b"b" * MIB
            assert site.requests == []
            assert await world.url("/a", sha(BIG)) == BIG
            assert site.requests[0][1]["range"] == f"bytes={MIB}-"


async def test_what_a_crash_left_half_done_is_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG)
        await world.url("/a", sha(BIG))
        [data] = [path for path in world.folder.iterdir() if path.suffix != ".json"]
        (world.folder / "orphan").write_bytes(b"x")
        (world.folder / "x.part").write_bytes(b"x")
        (world.folder / "lonely.json").write_text("{}")
        (world.folder / "y.json.new").write_text("{")
        data.write_bytes(BIG[:-1])
    async with open_world(tmp_path) as world:
        assert world.files() == []


async def test_damaged_parts_are_found_out_by_the_hash(tmp_path: Path) -> None:
    async with open_site() as site:
        site.pages["/a"] = Page(BIG, etag='"1"')
        site.troubles["/a"] = [Trouble(breaks_at=MIB)] + [Trouble(status=500)] * 3
        async with open_world(tmp_path, site) as world:
            with pytest.raises(ResourceUnavailable):
                await world.url("/a", sha(BIG))
            [part] = world.folder.glob("*.part")
            part.write_bytes(bytes(MIB))
        async with open_world(tmp_path, site) as world:
            assert await world.url("/a", sha(BIG)) == BIG
            assert "its SHA-256 is" in await log_text(world.run)


async def test_a_wrong_hash_is_the_tasks_fault(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"a")
        with pytest.raises(TaskFault, match=f"its SHA-256 is {sha(b'a')}, and not {sha(b'b')}"):
            await world.url("/a", sha(b"b"))
        assert world.files() == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_refusals_are_the_tasks_fault_at_once(tmp_path: Path, status: int) -> None:
    async with open_world(tmp_path) as world:
        world.site.troubles["/a"] = [Trouble(status=status)]
        with pytest.raises(TaskFault, match=f"the server answers with status {status}"):
            await world.url("/a")
        assert len(world.site.requests) == 1


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        source = await find_source(world.run, Content(url="http://127.0.0.1:1/a?token=secret"))
        with pytest.raises(ResourceUnavailable, match="could not be downloaded in 4 attempts") as caught:
            await world.get(source)
        assert "secret" not in str(caught.value) + await log_text(world.run)


async def test_redirects_are_followed_so_far(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        site = world.site
        site.pages["/a"] = Page(b"a")
        site.troubles["/r"] = [Trouble(status=302, headers={"Location": "/a"})]
        assert await world.url("/r") == b"a"
        site.troubles["/loop"] = [Trouble(status=307, headers={"Location": "/loop"}) for _ in range(20)]
        with pytest.raises(TaskFault, match="more than 10 redirects"):
            await world.url("/loop")
        site.troubles["/f"] = [Trouble(status=302, headers={"Location": "file:///etc/passwd"})]
        with pytest.raises(TaskFault, match="neither http nor https"):
            await world.url("/f")


async def test_what_one_place_says_of_content_is_not_asked_of_another(tmp_path: Path) -> None:
    other = bytes(len(BIG))
    async with open_world(tmp_path) as world:
        site = world.site
        site.pages |= {"/a": Page(BIG, etag='"1"'), "/b": Page(other, etag='"1"')}
        ways = [Trouble(status=302, headers={"Location": f"/{to}?signature=secret"}) for to in "aabab"]
        site.troubles |= {"/r": ways, "/a": [Trouble(), Trouble(), Trouble(breaks_at=MIB)]}
        assert [await world.url("/r") for _ in range(3)] == [BIG, BIG, other]
        assert site.sent == 2 * len(BIG), "one 304 to who has said it before"
        assert await world.url("/r") == other, "what broke off at one place is not gone on with at the other"
        conditions = {"if-none-match", "range"}
        assert [path.partition("?")[0] for path, headers in site.requests if headers.keys() & conditions] == ["/a"]
        for path in world.folder.glob("*.json"):
            assert "secret" not in path.read_text()


@pytest.mark.parametrize("url", ["http://127.0.0.1/\ud800", "http://\ud800@127.0.0.1/", "http://a:b/"])
async def test_a_url_that_is_none_is_the_tasks_fault(tmp_path: Path, url: str) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(TaskFault, match=r"\(malformed URL\) is not to be had"):
            await world.get(await find_source(world.run, Content(url=url)))
        world.site.troubles["/a"] = [Trouble(status=302, headers={"Location": "http://a:b/"})]
        with pytest.raises(TaskFault, match="redirects to nowhere"):
            await world.url("/a")


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "xn--a"])
async def test_a_host_that_cannot_be_one_is_the_tasks_fault(tmp_path: Path, host: str) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(TaskFault, match="is not to be had"):
            await world.get(await find_source(world.run, Content(url=f"http://{host}/")))


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_is_too_large_is_refused(tmp_path: Path, chunked: bool) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, max_size=MIB)) as world:
        world.site.pages["/a"] = Page(BIG, chunked=chunked)
        with pytest.raises(TaskFault, match="is larger than 1 MiB"):
            await world.url("/a")
        assert world.files() == []


async def test_encodings_are_undone_and_limited(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        pages = world.site.pages
        pages["/gz"] = Page(gzipped(BIG), etag='"1"', encoding="gzip")
        pages["/zst"] = Page(zstandard.compress(BIG), encoding="zstd")
        pages["/br"] = Page(b"x", encoding="br")
        pages["/bad"] = Page(b"x", encoding="gzip")
        pages["/bomb"] = Page(gzipped(bytes(60 * MIB)), encoding="gzip")
        world.site.troubles["/gz"] = [Trouble(breaks_at=MIB)]
        assert await world.url("/gz", sha(BIG)) == BIG
        assert await world.url("/zst", sha(BIG)) == BIG
        for path, what in {"/br": "which is not understood", "/bad": "cannot be decoded", "/bomb": "more than"}.items():
            with pytest.raises(TaskFault, match=what):
                await world.url(path)


async def test_an_empty_file_is_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"")
        assert await world.url("/a", sha(b"")) == b""


async def test_the_queue_is_asked_for_artifacts_unless_the_hash_is_enough(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages |= {"/p/a": Page(b"a", etag='"1"'), "/s": Page(b"s", etag='"1"')}
        world.queue.places = {"public/a": world.site.url("/p/a"), "private/s": world.site.url("/s")}
        for _ in range(2):
            assert await world.get(await world.artifact("public/a", sha(b"a"))) == b"a"
        assert len(world.queue.asked) == 1
        for _ in range(2):
            assert await world.get(await world.artifact("public/a")) == b"a"
        assert len(world.queue.asked) == 3
        for _ in range(2):
            assert await world.get(await world.artifact("private/s", sha(b"s"))) == b"s"
        assert len(world.queue.asked) == 5
        assert world.site.sent == 3
        world.queue.error = Forbidden("queue.getLatestArtifact", 403, "InsufficientScopes", "no scope")
        with pytest.raises(TaskFault, match=r"artifact private/s of task .* is not to be had: .*403"):
            await world.artifact("private/s", sha(b"s"))


async def test_a_hash_alone_does_not_give_what_is_private(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/s"] = Page(b"s")
        world.queue.places = {"private/s": world.site.url("/s")}
        assert await world.get(await world.artifact("private/s", sha(b"s"))) == b"s"
        with pytest.raises(TaskFault, match="404"):
            await world.url("/nothing", sha(b"s"))
        with pytest.raises(TaskFault, match="404"):
            await world.artifact("private/t", sha(b"s"))


async def test_a_storage_that_refuses_gets_fresh_urls(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"a")
        world.site.troubles["/a"] = [Trouble(status=403), Trouble(status=400)]
        world.queue.places = {"public/a": world.site.url("/a")}
        assert await world.get(await world.artifact("public/a")) == b"a"
        assert len(world.queue.asked) == len({path for path, _ in world.site.requests}) == 3
        world.site.troubles["/a"] = [Trouble(status=403)] * 3
        with pytest.raises(TaskFault, match="status 403"):
            await world.get(await world.artifact("public/a"))


async def test_a_queue_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.queue.error = Unavailable("queue.getLatestArtifact", 10, "silence")
        with pytest.raises(ResourceUnavailable):
            await world.artifact("public/a")


async def test_what_is_kept_is_bounded_and_what_is_in_use_stays(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, kept=5 * MIB // 2)) as world:
        contents = [os.urandom(MIB) for _ in range(4)]
        for number, content in enumerate(contents):
            world.site.pages[f"/{number}"] = Page(content)
        async with world.downloads.held(await world.source("/0", sha(contents[0])), world.run.log) as held:
            for number in (1, 2, 3):
                await world.url(f"/{number}", sha(contents[number]))
            assert await trio.Path(held.path).read_bytes() == contents[0]
            assert len(await world.downloads.unused()) == 1
        kept = {item.key for item in await world.downloads.unused()}
        assert kept == {f"sha256:{sha(contents[0])}", f"sha256:{sha(contents[3])}"}
        [item, other] = await world.downloads.unused()
        assert await world.downloads.remove(item)
        assert not await world.downloads.remove(item)
        async with world.downloads.held(await world.source("/x", other.key.removeprefix("sha256:")), world.run.log):
            assert not await world.downloads.remove(other)


async def test_a_download_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, time=0.05)) as world:
        world.site.pages["/a"] = Page(BIG)
        world.site.gate = trio.Event()
        with pytest.raises(ResourceUnavailable, match="within 0 seconds"):
            await world.url("/a")


async def test_a_file_that_somebody_removed_is_downloaded_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"a")
        await world.url("/a", sha(b"a"))
        for path in world.folder.iterdir():
            path.unlink()
        assert await world.url("/a", sha(b"a")) == b"a"


async def test_a_source_that_is_wrong_hurts_nobody_who_has_another(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(BIG)
        world.site.gate = trio.Event()
        good, bad = await world.source("/a", sha(BIG)), await world.source("/nothing", sha(BIG))
        assert good.address == bad.address
        async with trio.open_nursery() as nursery:

            async def get() -> None:
                assert await world.get(good) == BIG

            nursery.start_soon(get)
            await world.site.halfway.acquire()
            with pytest.raises(TaskFault):
                await world.get(bad)
            world.site.gate.set()


async def test_long_downloads_tell_how_far_they_have_come(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, interval=0.01)) as world:
        world.site.pages["/a"] = Page(BIG)
        world.site.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.url, "/a")
            seen = b""
            with trio.fail_after(30):
                async for chunk in world.run.log.follow():
                    seen += chunk
                    if b" of 3 MiB, " in seen:
                        break
            world.site.gate.set()


class FullPorts(Ports):
    """A disk that is full for so many calls of a function, after the first ones."""

    def __init__(self, times: int, function: str = "_append", after: int = 0) -> None:
        super().__init__()
        self.times = times
        self.function = function
        self.after = after

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if getattr(function, "__name__", "") == self.function:
            self.after -= 1
            if self.after < 0 and self.times:
                self.times -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await super().run_sync(function, *args)


@pytest.mark.parametrize("times", [1, 1000])
async def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, times: int) -> None:
    async with open_world(tmp_path, ports=FullPorts(times)) as world:
        world.site.pages["/a"] = Page(b"a")
        if times == 1:
            # The rest of what had arrived is written again when the attempt ends.
            assert await world.url("/a") == b"a"
        else:
            with pytest.raises(ResourceUnavailable, match="the worker's disk is full: No space left"):
                await world.url("/a")


async def test_a_part_that_cannot_be_remembered_hides_nothing_and_is_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path, ports=FullPorts(1, "save_part", after=1)) as world:
        world.site.pages["/a"] = Page(BIG, etag='"1"')
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB), Trouble(status=404)]
        with pytest.raises(TaskFault, match="the server answers with status 404"):
            await world.url("/a", sha(BIG))
        assert world.files() == []
        assert await world.downloads.unused() == []


async def test_what_was_downloaded_and_could_not_be_kept_is_not_downloaded_again(tmp_path: Path) -> None:
    async with open_world(tmp_path, ports=FullPorts(2, "publish")) as world:
        world.site.pages["/a"] = Page(gzipped(BIG), encoding="gzip")
        assert await world.url("/a") == BIG
        assert len(world.site.requests) == 1


class LookingPorts(FullPorts):
    """Tells what there was in `folder` whenever somebody looked for room on the disk."""

    def __init__(self, times: int, function: str, after: int, folder: Path) -> None:
        super().__init__(times, function, after)
        self.folder = folder
        self.seen: list[set[str]] = []

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is look:
            self.seen.append({path.suffix for path in self.folder.iterdir()})
        return await super().run_sync(function, *args)


async def test_what_was_half_decoded_goes_before_room_is_made_for_it(tmp_path: Path) -> None:
    ports = LookingPorts(1, "next", 1, tmp_path / "work" / "downloads")
    async with open_world(tmp_path, ports=ports) as world:
        world.site.pages["/a"] = Page(gzipped(BIG), encoding="gzip")
        assert await world.url("/a") == BIG
    assert ports.seen == [{".part"}]


@pytest.mark.parametrize("room", [MIB, len(BIG), len(BIG) + 4096])
@pytest.mark.parametrize("hashed", [True, False])
async def test_what_does_not_fit_leaves_nothing_on_a_disk_that_is_full(tmp_path: Path, room: int, hashed: bool) -> None:
    with mounted_disk(tmp_path / "disk") as disk:
        async with open_world(disk) as world:
            world.site.pages["/a"] = Page(BIG, etag='"1"')
            free = os.statvfs(disk).f_bavail * 4096
            (disk / "filler").write_bytes(bytes(free - room))
            fits = room > len(BIG) and not hashed  # else there is something about the part beside it
            known = sha(BIG) if hashed else None
            if fits:
                assert await world.url("/a") == BIG
            else:
                with pytest.raises(ResourceUnavailable, match="the worker's disk is full: No space left"):
                    await world.url("/a", known)
                kept = {name.partition(".")[2] for name in world.files()}
                assert kept <= ({"part", "part.json"} if hashed else set())
            (disk / "filler").unlink()
            assert await world.url("/a", known) == BIG


async def test_parts_count_as_what_is_kept(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, kept=3 * MIB // 2)) as world:
        for path in ("/a", "/b"):
            content = path.encode() * MIB
            world.site.pages[path] = Page(content, etag='"1"')
            world.site.troubles[path] = [Trouble(breaks_at=MIB), *(Trouble(status=500) for _ in range(3))]
            with pytest.raises(ResourceUnavailable):
                await world.url(path, sha(content))
        assert len(await world.downloads.unused()) == 1
        [item] = await world.downloads.unused()
    assert world.files() == [item.key, f"{item.key}.json"]
    async with open_world(tmp_path) as world:
        assert [item.key for item in await world.downloads.unused()] == [item.key]
        assert await world.downloads.remove(item)
        assert world.files() == []


async def test_a_part_is_known_whatever_becomes_of_who_wants_to_go_on_with_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, parallelism=1)) as world:
        world.site.pages |= {"/a": Page(BIG, etag='"1"'), "/b": Page(b"b" * MIB)}
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB), *(Trouble(status=500) for _ in range(3))]
        with pytest.raises(ResourceUnavailable):
            await world.url("/a", sha(BIG))
        [part] = await world.downloads.unused()
        world.site.gate = trio.Event()
        source = await world.source("/a", sha(BIG))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.url, "/b")
            await world.site.halfway.acquire()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(world.get, source)
                    await trio.testing.wait_all_tasks_blocked()
                    assert await world.downloads.unused() == [], "it waits for its place"
                    assert not await world.downloads.remove(part)
                    scope.cancel()
            world.site.gate.set()
        assert part in await world.downloads.unused()
        assert await world.get(source) == BIG
        assert world.site.requests[-1][1]["range"] == f"bytes={MIB}-"
        assert part not in await world.downloads.unused()


async def test_a_download_that_waits_for_its_place_says_so(tmp_path: Path) -> None:
    async with open_world(tmp_path, settings=replace(SETTINGS, parallelism=1)) as world:
        world.site.pages |= {"/a": Page(BIG), "/b": Page(b"b")}
        world.site.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.url, "/a")
            await world.site.halfway.acquire()
            nursery.start_soon(world.url, "/b")
            await trio.testing.wait_all_tasks_blocked()
            log = await log_text(world.run)
            world.site.gate.set()
        assert f"{world.site.url('/b')} waits for a place: this worker downloads 1 at once" in log
        assert f"Downloading {world.site.url('/b')}" not in log
        assert f"Downloading {world.site.url('/b')}" in await log_text(world.run)


async def test_who_is_cancelled_when_a_download_ends_leaves_nothing_that_is_doomed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.site.pages["/a"] = Page(b"a", etag='"1"')
        await world.url("/a")
        [entry] = world.downloads._entries.values()
        source = await world.source("/a")
        flight = world.downloads._flights[source.key] = _Flight(source)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.get, source)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                # Before the waiter wakes the flight ends, and another one has replaced what it brought.
                del world.downloads._flights[source.key], world.downloads._entries[source.address]
                flight.entry, entry.pins, entry.doomed = entry, 1, True
                flight.over.set()
        assert scope.cancelled_caught
    assert world.files() == []


class CancellingPorts(Ports):
    """Dooms and cancels who begins to use a download."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.scope = trio.CancelScope()

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is os.utime and self.world is not None:
            [(address, entry)] = self.world.downloads._entries.items()
            del self.world.downloads._entries[address]
            entry.doomed = True
            self.scope.cancel()
        return await super().run_sync(function, *args)


async def test_who_is_cancelled_while_it_begins_to_use_a_download_leaves_nothing_that_is_doomed(tmp_path: Path) -> None:
    ports = CancellingPorts()
    async with open_world(tmp_path, ports=ports) as world:
        world.site.pages["/a"] = Page(b"a")
        await world.url("/a", sha(b"a"))
        ports.world = world
        with ports.scope:
            await world.url("/a", sha(b"a"))
        assert ports.scope.cancelled_caught
    assert world.files() == []


# Servers that go on with other content than they have begun with


OTHER = os.urandom(len(BIG))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Page(BIG, etag='"1"'), Page(OTHER, etag='"2"')),
        (Page(BIG, modified=MODIFIED), Page(OTHER, modified="Sat, 31 Jan 2026 12:00:01 GMT")),
        (Page(BIG, etag='"1"', modified=MODIFIED), Page(OTHER, modified="Sat, 31 Jan 2026 12:00:01 GMT")),
        (Page(BIG, etag='"1"'), Page(OTHER + b"x", etag='"1"')),
        (Page(BIG, etag='"1"'), Page(OTHER[:-1], etag='"1"')),
        (Page(gzipped(BIG), etag='"1"', encoding="gzip"), Page(gzipped(OTHER[:-9]), etag='"1"', encoding="gzip")),
        (
            Page(gzipped(BIG), etag='"1"', encoding="gzip"),
            Page(bytes(len(gzipped(BIG))), etag='"1"', encoding="identity"),
        ),
    ],
)
async def test_the_rest_of_other_content_is_noticed_and_all_of_it_begun_anew(
    tmp_path: Path, first: Page, then: Page
) -> None:
    async with open_world(tmp_path) as world:
        world.site.heeds_if_range = False
        world.site.pages["/a"] = first
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB)]
        world.site.then["/a"] = then
        assert await world.url("/a") == (OTHER[:-9] if then.encoding == "gzip" else then.content)
        assert "the server goes on with other content than it has begun to send" in await log_text(world.run)
        asked = [headers.get("range") for _, headers in world.site.requests]
        assert asked == [None, f"bytes={MIB}-", None]


async def test_pieces_that_cannot_be_decoded_together_are_begun_anew(tmp_path: Path) -> None:
    packed = gzipped(BIG)
    other = bytes(len(packed))  # which nothing tells from the rest of the first one
    async with open_world(tmp_path) as world:
        world.site.heeds_if_range = False
        world.site.pages["/a"] = Page(packed, etag='"1"', encoding="gzip")
        world.site.troubles["/a"] = [Trouble(breaks_at=MIB)]
        world.site.then["/a"] = Page(other, etag='"1"')
        assert await world.url("/a") == other
        assert "which may be of different things, cannot be decoded" in await log_text(world.run)
        asked = [headers.get("range") for _, headers in world.site.requests]
        assert asked == [None, f"bytes={MIB}-", None]
