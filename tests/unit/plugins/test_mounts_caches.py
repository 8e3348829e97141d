"""Caches: one run's alone while in use, kept where the run says so, and never handed out where that is in doubt."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from caches_world import NAMES, ShiftedPorts, ask_to_purge, open_purging, use

from plugins.mounts import cachefiles, purge
from plugins.mounts.caches import Caches, open_caches
from plugins.mounts.purge import Requests
from worker.errors import FatalWorkerFault, ResourceUnavailable
from worker.folders import size_of
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.services import Services
from worker.testing.runs import open_services

T = TypeVar("T")


@asynccontextmanager
async def opened(folder: Path, capacity: int = 3) -> AsyncGenerator[tuple[Caches, Services], None]:
    with trio.fail_after(60):
        async with open_services(folder, capacity=capacity) as services, open_caches(services) as caches:
            yield caches, services


async def leave(caches: Caches, name: str, text: str = "", *, keep: bool = True) -> str:
    """Be a run with that cache, which leaves `text` there; what was there before."""
    async with caches.lease(name) as lease:
        file = lease.path / "file"
        before = file.read_text() if file.exists() else ""
        assert lease.fresh == (before == "")
        file.write_text(text or before)
        lease.keep = keep
        return before


async def fail(caches: Caches, *, keep: bool) -> None:
    async with caches.lease("a") as lease:
        lease.keep = keep
        (lease.path / "file").write_text("x")
        raise RuntimeError


async def test_what_a_run_leaves_is_there_for_the_next_of_that_name(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _):
        assert await leave(caches, "a", "one") == ""
        assert await leave(caches, "b", "other") == ""
        assert await leave(caches, "a", "two") == "one"
        assert await leave(caches, "a") == "two"


async def test_what_is_not_kept_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        await leave(caches, "a", "two", keep=False)
        assert await leave(caches, "a", "three", keep=False) == ""
        await services.trash.wait_empty()
        assert size_of(services.work_dir)[0] < 100_000
        assert [*(services.work_dir / "caches").iterdir(), *(services.work_dir / "leased").iterdir()] == []


async def test_a_run_that_fails_in_its_block_keeps_what_it_said_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _):
        for keep in (True, False):
            with pytest.raises(RuntimeError):
                await fail(caches, keep=keep)
            assert await leave(caches, "a", keep=False) == ("x" if keep else "")


async def test_runs_at_once_have_one_each_and_the_last_used_goes_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _):
        async with caches.lease("a") as one, caches.lease("a") as two:
            assert one.path != two.path
            assert one.fresh
            assert two.fresh
            for number, lease in enumerate((one, two)):
                (lease.path / "file").write_text(str(number))
                lease.keep = True
        # The second one was given back first.
        assert await leave(caches, "a", "0") == "0"
        assert await leave(caches, "a", "0") == "0"
        async with caches.lease("a") as first, caches.lease("a") as second:
            assert [(lease.path / "file").read_text() for lease in (first, second)] == ["0", "1"]


async def test_a_pool_is_no_larger_than_the_capacity(tmp_path: Path) -> None:
    async with opened(tmp_path, capacity=3) as (caches, _), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(leave, caches, "a", "y")
    async with opened(tmp_path, capacity=2) as (caches, _):
        assert len(await caches.unused()) == 3
        await leave(caches, "a", "x")
        assert len(await caches.unused()) == 2
        assert await leave(caches, "a") == "x"


async def test_a_cancelled_run_gives_back_what_it_has(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        with trio.CancelScope() as scope:
            async with caches.lease("a") as lease:
                lease.keep = True
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert await leave(caches, "a") == "one"
        with trio.CancelScope() as scope:
            scope.cancel()
            async with caches.lease("a"):
                await trio.lowlevel.checkpoint()
        assert list((services.work_dir / "leased").iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "link", "file", "dangling"])
async def test_a_cache_that_the_task_has_replaced_is_lost(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("somebody else's")
    async with opened(tmp_path) as (caches, _):
        async with caches.lease("a") as lease:
            lease.path.rmdir()
            match what:
                case "link":
                    lease.path.symlink_to(tmp_path / "elsewhere")
                case "dangling":
                    lease.path.symlink_to("nowhere")
                case "file":
                    lease.path.write_text("no folder")
            lease.keep = True
        assert await leave(caches, "a") == ""
    assert (tmp_path / "elsewhere" / "file").exists()
    assert f"cache a is lost: {'its folder' if what == 'nothing' else 'a link or a file'}" in caplog.text


async def test_a_moved_folder_that_is_back_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        async with caches.lease("a") as lease:
            (lease.path / "file").write_text("x")
            lease.path.rename(services.work_dir / "there")
            (services.work_dir / "there").chmod(0o500)
            (services.work_dir / "there").rename(lease.path)
            lease.keep = True
        assert await leave(caches, "a") == "x"


async def test_purged_names_are_gone_and_those_in_use_do_not_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _):
        for name in NAMES:
            await leave(caches, name, "x")
        async with caches.lease(NAMES[0]) as lease:
            lease.keep = True
            await caches.purge(NAMES[:2])
            async with caches.lease(NAMES[0]) as later:
                later.keep = True
                (later.path / "file").write_text("later")
        assert await leave(caches, NAMES[0], "y") == "later"
        assert await leave(caches, NAMES[1], "y") == ""
        assert await leave(caches, NAMES[2], "y") == "x"


@pytest.mark.parametrize("moment", [cachefiles.keep, os.rename])
async def test_what_is_purged_on_its_way_does_not_come_back(tmp_path: Path, moment: object) -> None:
    class Interrupted(Ports):
        async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
            result = await super().run_sync(function, *args)
            if function is moment and purging:
                await caches.purge(["a"])
            return result

    purging = False
    async with open_services(tmp_path, ports=Interrupted()) as services, open_caches(services) as caches:
        await leave(caches, "a", "one")
        purging = True
        await leave(caches, "a")
        purging = False
        assert await leave(caches, "a", "two") == ""
        assert not caches._in_use | caches._doomed


# Restarts


async def test_a_restart_finds_what_was_kept_and_nothing_that_was_in_use(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        work_dir = services.work_dir
    for _ in range(2):
        async with opened(tmp_path) as (caches, _):
            assert await leave(caches, "a") == "one"
    # As a killed worker leaves it.
    (work_dir / "caches" / "0").rename(work_dir / "leased" / "0")
    async with opened(tmp_path) as (caches, services):
        assert await leave(caches, "a", "x") == ""
        await services.trash.wait_empty()
        assert list((work_dir / "leased").iterdir()) == []


async def test_of_several_the_last_used_goes_first_after_a_restart_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _), caches.lease("a") as one, caches.lease("a") as two:
        for text, lease in (("last", one), ("first", two)):
            (lease.path / "file").write_text(text)
            lease.keep = True
    async with opened(tmp_path) as (caches, _):
        assert [item.name for item in await caches.unused()] == ["cache a", "cache a"]
        assert await leave(caches, "a") == "last"


def spoil(cache: Path, how: str) -> None:
    meta, content = cache / "meta.json", cache / "content"
    if how in {"a pipe", "a link", "no meta"}:
        meta.unlink()
    if how in {"no content", "another's content", "a file"}:
        shutil.rmtree(content)
    match how:
        case "empty meta":
            meta.write_text("")
        case "a list":
            meta.write_text("[]")
        case "a time without a zone":
            meta.write_text(json.dumps({"name": "a", "made": "2026-01-01", "used": "2026-01-01", "boot": ""}))
        case "a pipe":
            os.mkfifo(meta)
        case "a link":
            meta.symlink_to("/dev/zero")
        case "another's content":
            content.symlink_to("/etc")
        case "a file":
            shutil.rmtree(cache)
            cache.touch()


SPOILED = [
    *("no meta", "empty meta", "a list", "a time without a zone", "a pipe", "a link"),
    *("no content", "another's content", "a file"),
]


@pytest.mark.parametrize("how", SPOILED)
async def test_what_is_not_as_it_should_be_is_thrown_away(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        cache = services.work_dir / "caches" / "0"
    spoil(cache, how)
    async with opened(tmp_path) as (caches, services):
        assert await leave(caches, "a", "two") == ""
        await services.trash.wait_empty()
        assert {path.name for path in cache.parent.iterdir()} == {"0", "boot"}


async def test_after_a_loss_of_power_nothing_is_trusted(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        folder = services.work_dir / "caches"

    def switch_on_again() -> None:
        meta = json.loads((folder / "0" / "meta.json").read_text())
        (folder / "0" / "meta.json").write_text(json.dumps(meta | {"boot": "another start of the machine"}))

    switch_on_again()
    async with opened(tmp_path) as (caches, _):
        assert [item.name for item in await caches.unused()] == ["cache a"]  # it had ended in order before
    (folder / "clean").unlink()
    (folder / "boot").write_text("another start of the machine")
    async with opened(tmp_path) as (caches, _):
        assert await caches.unused() == []


async def test_what_was_whole_at_the_start_is_trusted_when_the_worker_alone_was_killed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        meta = services.work_dir / "caches" / "0" / "meta.json"
    # The machine was started anew after an orderly end.
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"boot": "another start of the machine"}))
    for _ in range(3):
        async with opened(tmp_path) as (caches, services):
            assert [item.name for item in await caches.unused()] == ["cache a"]
            services.hurry.set()  # as if it were killed: nothing is marked
    # And again, without an end.
    (meta.parent.parent / "boot").write_text("another start of the machine")
    async with opened(tmp_path) as (caches, _):
        assert await caches.unused() == []


@pytest.mark.parametrize("name", ["leased", "mounts", "tasks", "trash"])
async def test_folders_that_nothing_can_be_renamed_between_are_told_at_the_start(tmp_path: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:  # noqa: PTH116
            pytest.skip("/dev/shm is where everything else is")
        async with open_services(tmp_path) as services:
            with suppress(FileNotFoundError):
                (services.work_dir / name).rmdir()
            (services.work_dir / name).symlink_to(elsewhere)
            with pytest.raises(FatalWorkerFault, match=f"/caches and .*/{name} must be on one filesystem"):
                async with open_caches(services):
                    pass


async def test_a_cache_in_doubt_is_not_handed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as (caches, services):
        await leave(caches, "a", "one")
        shutil.rmtree(services.work_dir / "caches" / "0")
        assert await leave(caches, "a", "two") == ""
    assert "cache a is lost" in caplog.text


async def test_folders_that_cannot_be_are_told_at_the_start(tmp_path: Path) -> None:
    async with open_services(tmp_path) as services:
        (services.work_dir / "caches").write_text("a file")
        with pytest.raises(FatalWorkerFault, match="caches cannot be had in workDir: File exists"):
            async with open_caches(services):
                pass


class FullDisk(Ports):
    def __init__(self, *functions: object) -> None:
        super().__init__()
        self.functions = functions

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function in self.functions:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await super().run_sync(function, *args)


async def test_a_full_disk_costs_the_cache_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ports = FullDisk(cachefiles.keep, cachefiles.end)
    async with open_services(tmp_path, ports=ports) as services, open_caches(services) as caches:
        await leave(caches, "a", "one")
        assert await leave(caches, "a", "two") == ""
        assert "cache a is lost: No space left on device" in caplog.text
        ports.functions = (cachefiles.make, cachefiles.end)
        with pytest.raises(ResourceUnavailable, match=r"the cache a cannot be made in workDir: .* is full"):
            await leave(caches, "a", "two")
    assert "caches are lost if the machine goes down now" in caplog.text


# The disk


async def test_the_disk_gets_room_from_caches_that_nobody_uses(tmp_path: Path) -> None:
    async with opened(tmp_path) as (caches, _):
        for name in ("a", "b", "c"):
            await leave(caches, name, name)
        await leave(caches, "a")
        async with caches.lease("b") as lease:
            lease.keep = True
            items = sorted(await caches.unused(), key=lambda item: item.last_used)
            assert [item.name for item in items] == ["cache c", "cache a"]
            assert await caches.remove(items[0])
            assert not await caches.remove(items[0])
        assert await leave(caches, "c", "new") == ""
        assert await leave(caches, "b") == "b"
        assert await leave(caches, "a") == "a"


# Purge requests


async def test_a_purge_request_counts_for_older_caches_alone(tmp_path: Path) -> None:
    ports = ShiftedPorts()
    async with open_purging(tmp_path, ports) as (services, service), open_caches(services) as caches:
        await leave(caches, "a", "one")
        await leave(caches, "b", "one")
        await ask_to_purge(service, "a")
        ports.shift = timedelta(seconds=30)
        assert await leave(caches, "a", "two") == ""
        assert await leave(caches, "b", "two") == "one"
        assert caches._purges is not None
        caches._purges._not_before = trio.current_time()
        # The answer has the request still.
        assert await leave(caches, "a") == "two"


async def test_a_cache_in_use_when_it_is_purged_does_not_come_back(tmp_path: Path) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        async with caches.lease("a") as lease:
            lease.keep = True
            await ask_to_purge(service, "a")
            await caches.follow_requests()
        assert await leave(caches, "a", "x") == ""


async def test_the_service_is_asked_only_where_there_is_a_cache_and_seldom(tmp_path: Path) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        await leave(caches, "a", "one")
        purges = caches._purges
        assert purges is not None
        assert purges._answered is None
        await leave(caches, "a")
        first = purges._answered
        assert first is not None
        await ask_to_purge(service, "a")
        assert await leave(caches, "a") == "one"  # within the 10 s that the service's answers are old anyhow
        assert purges._answered == first
        purges._not_before = trio.current_time()
        assert await leave(caches, "a", "x") == ""


async def test_who_waits_for_an_answer_to_another_gets_what_it_says(tmp_path: Path) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        await leave(caches, "a", "one")
        await leave(caches, "b", "one")
        await ask_to_purge(service, "b")
        found: dict[str, str] = {}

        async def look(name: str) -> None:
            found[name] = await leave(caches, name, "new")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, "a")
            nursery.start_soon(look, "b")
        assert found == {"a": "one", "b": ""}


async def test_an_outage_is_told_once_and_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        service.client.deployment.root_url = service.client.options["rootUrl"] = "http://127.0.0.1:1"
        await leave(caches, "a", "one")
        for _ in range(3):
            assert caches._purges is not None
            caches._purges._not_before = trio.current_time()
            assert await leave(caches, "a") == "one"
    assert caplog.text.count("they are used as they are") == 1


async def test_a_service_that_is_silent_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            service.client.options["rootUrl"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
            await leave(caches, "a", "one")
            assert caches._purges is not None
            caches._purges.limit = 0.1
            assert await leave(caches, "a") == "one"
            caches._purges.limit = 1000
            with trio.fail_after(20):  # it is not asked again for a while
                assert await leave(caches, "a") == "one"
    assert "they are used as they are: no answer within 0.1 seconds" in caplog.text


async def test_a_client_that_may_not_ask_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_purging(tmp_path) as (services, service), open_caches(services) as caches:
        service.client.credentials = lambda: Credentials("nobody", "wrong")
        await leave(caches, "a", "one")
        assert await leave(caches, "a") == "one"
    assert "they are used as they are: purge-cache.purgeRequests: 401" in caplog.text


async def test_requests_that_were_forgotten_since_the_last_answer_may_have_meant_any(tmp_path: Path) -> None:
    ports = ShiftedPorts()
    async with open_purging(tmp_path, ports) as (services, _):
        async with open_caches(services) as caches:
            await leave(caches, "a", "old")
            await caches.follow_requests()
        ports.shift = timedelta(hours=20)
        async with open_caches(services) as caches:
            await leave(caches, "b", "new")
            assert await leave(caches, "a") == "old"
            assert await leave(caches, "b") == "new"
        ports.shift = timedelta(hours=50)
        async with open_caches(services) as caches:
            await leave(caches, "c", "newer")
            assert await leave(caches, "c") == "newer"
            assert await leave(caches, "a") == ""
            assert await leave(caches, "b") == ""


def test_what_requests_concern() -> None:
    ports = Ports()
    now = ports.now()
    requests = Requests({"a": now}, all_before=now - timedelta(hours=20))
    for seconds, concerned in ((-100, True), (4, True), (6, False)):
        assert requests.concern("a", now + timedelta(seconds=seconds)) == concerned
        assert not requests.concern("b", now + timedelta(seconds=seconds))
    assert requests.concern("b", now - timedelta(hours=21))


async def test_a_time_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert purge._read(tmp_path / "missing") is None
    (tmp_path / "purged").write_text("yesterday")
    assert purge._read(tmp_path / "purged") is None


# Many, and kill -9


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


@pytest.mark.parametrize("runs", [200, pytest.param(10_000, marks=pytest.mark.full)])
async def test_runs_with_caches_leave_nothing_behind(tmp_path: Path, runs: int) -> None:
    randomness = random.Random(1)
    async with open_services(tmp_path, capacity=3) as services:
        descriptors = count_descriptors()
        async with open_caches(services) as caches:

            async def user() -> None:
                for _ in range(runs // 4):
                    await use(caches, randomness)

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(user)
            await services.trash.wait_empty()
            assert len(await caches.unused()) <= 3 * len(NAMES)
            assert len(list((services.work_dir / "caches").iterdir())) == len(await caches.unused())
            assert not caches._in_use | caches._doomed
            assert all(list((services.work_dir / name).iterdir()) == [] for name in ("leased", "trash"))
            size, _ = size_of(services.work_dir)
            assert size < 3 * len(NAMES) * 100_000
        assert count_descriptors() <= descriptors


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.full)])
async def test_after_kill_9_at_any_moment_no_corrupted_cache_is_handed_out(tmp_path: Path, kills: int) -> None:
    randomness = random.Random(kills)
    root = Path(__file__).parents[3]
    used_again = found = 0
    for number in range(kills + 1):
        process = await trio.lowlevel.open_process(
            [sys.executable, str(Path(__file__).with_name("caches_world.py")), str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        told = b""
        with trio.move_on_after(60):
            while b"\n" not in told:
                told += await process.stdout.receive_some() or b"\n"
        with trio.move_on_after(randomness.uniform(0.01, 0.5)):
            while chunk := await process.stdout.receive_some():
                told += chunk
        process.kill()
        assert await process.wait() == -signal.SIGKILL, (await process.stderr.receive_some()).decode()
        first, _, rest = told.partition(b"\n")
        found += int(first.split()[1])
        used_again += rest.count(b"+")
        await process.stdout.aclose()
        await process.stderr.aclose()
    assert found > 0
    assert used_again > 0
    async with opened(tmp_path) as (caches, services):
        await services.trash.wait_empty()
        assert len(await caches.unused()) <= 3 * len(NAMES)
        assert size_of(services.work_dir)[0] < 3 * len(NAMES) * 100_000
