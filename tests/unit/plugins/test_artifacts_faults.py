"""What cannot be uploaded: whose fault it is, what the queue is told, and that the others are uploaded all the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from artifacts_world import Storage, World, directory, docker, file, open_world
from trio.testing import MockClock

from engines.base import FileMissing, SandboxFile
from plugins.artifacts.plugin import ArtifactsConfig
from plugins.artifacts.report import REMEMBERED, Remark, Report
from worker.model import COMPLETED, Severity, Verdict
from worker.ports import Ports
from worker.queue.errors import ApiError, Conflict, Forbidden, Unavailable
from worker.queue.models import ErrorArtifactRequest
from worker.spool import SMALL
from worker.testing.results import FolderResult
from worker.testing.runs import RecordingQueue


async def test_a_missing_file_fails_the_task_and_becomes_an_error_artifact(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("there")
        verdict = await world.upload(file("missing", name="public/m"), file("there"))
        text = "artifact public/m was not uploaded: there is nothing at missing"
        assert verdict == Verdict(Severity.FAILED, text)
        assert list(world.storage.puts) == ["there"]
        [request] = [made for _, made in world.queue.created if isinstance(made, ErrorArtifactRequest)]
        assert (request.reason, request.message) == ("file-missing-on-worker", "there is nothing at missing")
        assert world.log.splitlines()[-1] == f"[taskcluster:error] {text}"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (file("folder"), "invalid-resource-on-worker"),
        (directory("plain"), "invalid-resource-on-worker"),
        (directory("missing"), "file-missing-on-worker"),
        (file("locked"), "file-not-readable-on-worker"),
        (directory("locked"), "file-not-readable-on-worker"),
        (file("large"), "too-large-file-on-worker"),
    ],
)
async def test_every_fault_has_its_reason(tmp_path: Path, item: dict[str, Any], reason: str) -> None:
    async with open_world(tmp_path) as world:
        world.config = ArtifactsConfig(max_file_size=100)
        (world.task / "folder").mkdir()
        world.write("plain")
        world.write("large", bytes(101))
        result = FolderResult(world.task, unreadable={"locked"})
        verdict = await world.upload(item, result=result)
        assert world.errors == {item["path"]: reason}
        assert verdict.severity is Severity.FAILED
        assert item["path"] in verdict.message


@pytest.mark.parametrize("name", [".", "./"])
async def test_a_directory_whose_name_is_no_artifacts_is_told_in_the_log_alone(tmp_path: Path, name: str) -> None:
    async with open_world(tmp_path) as world:
        world.queue.refusals[name] = ApiError("queue.createArtifact", 400, "InputValidationError", "no such name")
        verdict = await world.upload(directory("missing", name=name))
        text = f"artifact {name} was not uploaded: there is nothing at missing"
        assert verdict == Verdict(Severity.FAILED, text)
        assert world.log.splitlines()[-1] == f"[taskcluster:error] {text}"


async def test_a_task_may_have_only_so_much(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.config = ArtifactsConfig(max_total_size=100, parallelism=1)
        for name in ("a", "b", "c"):
            world.write(name, bytes(45))
        verdict = await world.upload(file("a"), file("b"), file("c"))
        text = "c has 45 bytes, and 90 are uploaded already: this worker uploads 100 bytes of one task at most"
        assert verdict == Verdict(Severity.FAILED, f"artifact c was not uploaded: {text}")
        assert sorted(world.storage.puts) == ["a", "b"]
        assert world.errors == {"c": "too-large-file-on-worker"}


@pytest.mark.parametrize("item", [file("missing"), directory("missing"), file("folder"), file("locked")])
async def test_an_optional_artifact_fails_nothing(tmp_path: Path, item: dict[str, Any]) -> None:
    async with open_world(tmp_path) as world:
        (world.task / "folder").mkdir()
        result = FolderResult(world.task, unreadable={"locked"})
        assert await world.upload({**item, "optional": True}, result=result) == COMPLETED
        assert world.queue.created == []
        assert "[taskcluster:warn " in world.log.splitlines()[-1]


async def test_docker_workers_artifacts_are_optional(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        payload = docker({"public/a": {"type": "file", "path": "missing"}})
        assert await world.perform(payload, FolderResult(world.task)) == COMPLETED


async def test_after_an_abort_what_is_there_is_uploaded_and_the_rest_is_nobodys_fault(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("out/there")
        verdict = await world.upload(
            directory("out"), file("missing"), directory("no"), result=FolderResult(world.task, None)
        )
        assert verdict == COMPLETED
        assert list(world.storage.puts) == ["out/there"]
        assert world.errors == {}
        assert "artifact missing was not uploaded: there is nothing at missing" in world.log
        assert "[taskcluster:error]" not in world.log


class ChangingFile(SandboxFile):
    """Says that it has 10 bytes, and has as many as `content` has."""

    size = 10

    def __init__(self, content: bytes, error: OSError | None) -> None:
        self.content = content
        self.error = error

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.error:
            raise self.error
        part, self.content = self.content[:max_bytes], self.content[max_bytes:]
        return part


class ChangingResult(FolderResult):
    """`fickle` is no real file."""

    def __init__(self, folder: Path, make: Callable[[], SandboxFile]) -> None:
        super().__init__(folder)
        self.make = make

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        if path == "fickle":
            yield self.make()
        else:
            async with super().open(path) as real:
                yield real


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize("content", [b"short", b"longer than it was"])
async def test_a_file_that_grows_or_shrinks_hurts_its_own_artifact_only(
    tmp_path: Path, content: bytes, encoding: str
) -> None:
    async with open_world(tmp_path) as world:
        world.write("calm")
        result = ChangingResult(world.task, lambda: ChangingFile(content, None))
        verdict = await world.upload(file("fickle", contentEncoding=encoding), file("calm"), result=result)
        assert verdict.severity is Severity.FAILED
        assert "fickle changed its length" in verdict.message
        assert list(world.storage.puts) == ["calm"]
        assert world.errors == {"fickle": "invalid-resource-on-worker"}


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_file_that_cannot_be_read_to_its_end_is_unreadable(tmp_path: Path, encoding: str) -> None:
    async with open_world(tmp_path) as world:
        result = ChangingResult(world.task, lambda: ChangingFile(b"", OSError(5, "Input/output error")))
        verdict = await world.upload(file("fickle", contentEncoding=encoding), result=result)
        text = "artifact fickle was not uploaded: fickle cannot be read: Input/output error"
        assert verdict == Verdict(Severity.FAILED, text)
        assert world.errors == {"fickle": "file-not-readable-on-worker"}


async def test_a_file_that_vanishes_between_two_attempts_is_missing(tmp_path: Path) -> None:
    files: list[SandboxFile] = [ChangingFile(b"ten bytes.", None)]

    def once() -> SandboxFile:
        if not files:
            raise FileMissing("there is nothing at fickle")
        return files.pop()

    async with open_world(tmp_path) as world:
        world.storage.answers = [503]
        item = file("fickle", contentEncoding="identity")
        verdict = await world.upload(item, result=ChangingResult(world.task, once))
        assert verdict == Verdict(Severity.FAILED, "artifact fickle was not uploaded: there is nothing at fickle")


async def test_an_error_that_cannot_be_told_since_the_upload_had_begun_is_still_the_verdict(tmp_path: Path) -> None:
    class Strict(RecordingQueue):
        async def create_artifact(self, key: Any, name: str, request: Any) -> Any:
            if name in {known for known, _ in self.created}:
                raise Conflict("queue.createArtifact", 409, "RequestConflict", "another type")
            return await super().create_artifact(key, name, request)

    async with open_world(tmp_path) as world:
        world.queue = Strict(world.queue.storage_url)
        item = file("fickle", contentEncoding="identity")
        verdict = await world.upload(item, result=ChangingResult(world.task, lambda: ChangingFile(b"short", None)))
        assert verdict.severity is Severity.FAILED
        assert "more like it" not in verdict.message


async def test_a_directorys_name_that_the_queue_would_refuse_fails_the_task_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        world.write("out/ünïcode")
        world.write("out/plain")
        verdict = await world.upload(directory("out"))
        assert verdict.severity is Severity.FAILED
        assert verdict.message.startswith("artifact out/\\xfcn\\xefcode was not uploaded: an artifact's name must be")
        assert list(world.storage.puts) == ["out/plain"]
        assert world.errors == {}


async def test_one_name_for_two_files_of_a_directory_and_a_file_fails(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("out/a", b"from the directory")
        world.write("b", b"from the file")
        verdict = await world.upload(directory("out", name="public"), file("b", name="public/a"))
        text = "artifact public/a was not uploaded: out/a and b would have the same name"
        assert verdict == Verdict(Severity.FAILED, text)
        assert world.storage.puts["public/a"].content == b"from the file"


async def test_one_name_for_files_of_two_directories_fails(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("one/sub/a", b"1")
        world.write("two/a", b"2")
        verdict = await world.upload(directory("one", name="public"), directory("two", name="public/sub"))
        assert verdict.severity is Severity.FAILED
        assert "two/a and one/sub/a would have the same name" in verdict.message
        assert world.storage.puts["public/sub/a"].content == b"1"


async def test_the_same_file_twice_under_one_name_is_uploaded_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("public/a.txt")
        item = file("./public/a.txt", name="public/a.txt", contentType="x/y")
        assert await world.upload(directory("public"), item) == COMPLETED
        assert world.announced == ["public/a.txt"]
        assert world.storage.puts["public/a.txt"].headers["content-type"] == "x/y"


async def test_a_service_that_fails_costs_the_task_a_resource_and_the_others_are_uploaded(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for name in "abcd":
            world.write(name)
        world.queue.refusals["b"] = Unavailable("queue.createArtifact", 10, "no connection")
        world.queue.refusals["c"] = Forbidden("queue.createArtifact", 403, "InsufficientScopes", "no")
        verdict = await world.upload(file("a"), file("b"), file("c"), file("d"), file("missing"))
        text = "artifact b was not uploaded: queue.createArtifact: no usable answer in 10 attempts: no connection"
        assert verdict == Verdict(Severity.RESOURCE_UNAVAILABLE, f"{text} (and 1 more like it)")
        assert sorted(world.storage.puts) == ["a", "d"]
        assert world.errors == {"missing": "file-missing-on-worker"}


async def test_a_storage_that_refuses_is_a_resource_that_is_missing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.storage.answers = [404]
        world.write("a")
        verdict = await world.upload(file("a"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert verdict.message.endswith("answered with status 404")
        assert "attempt=" not in verdict.message + world.log  # nothing of the presigned URL's query


async def test_a_file_that_is_too_large_for_the_storage_is_not_sent_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.storage.answers = [400]
        world.storage.refusal = b"<Error><Code>EntityTooLarge</Code></Error>"
        world.write("a")
        verdict = await world.upload(file("a"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert verdict.message.endswith("answered with status 400 EntityTooLarge")
        assert world.announced == ["a"]


async def test_no_room_for_compressing_is_a_resource_that_is_missing(tmp_path: Path) -> None:
    class FullDisk(Ports):
        async def run_sync(self, function: Callable[..., Any], /, *args: object) -> Any:
            if getattr(function, "__name__", "") == "_compress":
                raise OSError(28, "No space left on device")
            return await super().run_sync(function, *args)

    async with open_world(tmp_path) as world:
        world.ports = FullDisk()
        world.write("a", b"a" * 2 * SMALL)
        world.write("b.zip")
        verdict = await world.upload(file("a"), file("b.zip"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert "No space left" in verdict.message
        assert list(world.storage.puts) == ["b.zip"]


async def test_a_conflict_fails_its_own_artifact_only(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("a")
        world.write("b")
        world.queue.refusals["a"] = Conflict("queue.createArtifact", 409, "RequestConflict", "exists otherwise")
        verdict = await world.upload(file("a"), file("b"))
        text = "artifact a was not uploaded: the queue refuses it: exists otherwise"
        assert verdict == Verdict(Severity.FAILED, text)
        assert list(world.storage.puts) == ["b"]


async def test_errors_are_told_in_the_payloads_order(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        names = [f"missing{index}" for index in range(30)]
        verdict = await world.upload(*(file(name) for name in names))
        told = [line.split()[2] for line in world.log.splitlines() if line.startswith("[taskcluster:error]")]
        assert told == names
        assert verdict.message == (
            "artifact missing0 was not uploaded: there is nothing at missing0 (and 29 more like it)"
        )


async def test_any_number_of_errors_is_remembered_in_bounded_memory(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for index in range(REMEMBERED + 20):
            world.write(f"out/ä{index:03}")
        verdict = await world.upload(directory("out"))
        assert verdict.message.endswith(f"(and {REMEMBERED + 19} more like it)")
        assert "20 more artifacts were not uploaded either" in world.log.splitlines()[-1]


def test_the_worst_decides_even_when_it_is_not_among_the_first() -> None:
    report = Report()
    for order in reversed(range(REMEMBERED + 1)):
        report.add(Remark(order, Severity.FAILED, f"failed {order}"))
    report.add(Remark(1000, Severity.RESOURCE_UNAVAILABLE, "no storage"))
    assert report.verdict() == Verdict(Severity.RESOURCE_UNAVAILABLE, "no storage")


class SlowPorts(Ports):
    """A storage that takes 25 s, in virtual time; blocking calls run inline, since that does not wait for threads."""

    async def run_sync(self, function: Callable[..., Any], /, *args: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        async def answer(request: httpx.Request) -> httpx.Response:
            await request.aread()
            await trio.sleep(25 if "slow" in request.url.path else 5)
            return httpx.Response(200)

        return httpx.MockTransport(answer)


async def test_a_long_upload_says_how_far_it_is(tmp_path: Path, autojump_clock: MockClock) -> None:
    (tmp_path / "task").mkdir()
    world = World(tmp_path, Storage(), RecordingQueue(), ports=SlowPorts())
    world.write("slow.zip", bytes(1024 * 1024))
    world.write("fast.zip")
    assert await world.upload(file("slow.zip"), file("fast.zip")) == COMPLETED
    lines = [line.partition("] ")[2] for line in world.log.splitlines()]
    assert lines[2:] == [
        "Uploading artifact slow.zip: 1.0 of 1.0 MiB, 0.1 MiB/s",
        "Uploading artifact slow.zip: 1.0 of 1.0 MiB, 0.1 MiB/s",
    ]


@pytest.mark.parametrize(("encoding", "severity"), [("identity", Severity.FAILED), ("gzip", Severity.COMPLETED)])
async def test_no_task_is_completed_with_an_artifact_that_cannot_be_fetched_though_it_is_optional(
    tmp_path: Path, encoding: str, severity: Severity
) -> None:
    async with open_world(tmp_path) as world:
        result = ChangingResult(world.task, lambda: ChangingFile(b"short", None))
        item = {**file("fickle", contentEncoding=encoding), "optional": True}
        verdict = await world.upload(item, result=result)
        assert verdict.severity is severity
        # Announced and without content, or not there at all.
        assert bool(world.announced) == (severity is Severity.FAILED)
        assert not world.storage.puts
