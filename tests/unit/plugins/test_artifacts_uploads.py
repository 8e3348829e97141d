"""Uploads that work: what arrives at the storage, and what the log says of it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
import trio
import zstandard
from artifacts_world import TASK, directory, file, generic, open_world
from pydantic import ValidationError

from engines.base import Ended
from plugins.artifacts.plugin import ArtifactsConfig
from plugins.artifacts.uploads import TOLD_SINGLY
from worker.model import COMPLETED
from worker.queue.models import S3ArtifactRequest
from worker.spool import CHUNK
from worker.testing.results import FolderResult


async def test_a_file_arrives_with_its_type_and_encoding(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("out/a.log", b"line\n" * 1000)
        assert await world.upload(file("out/a.log", name="public/a.log")) == COMPLETED
        put = world.storage.puts["public/a.log"]
        assert put.content == b"line\n" * 1000
        assert put.length == int(put.headers["content-length"]) < 1000
        assert (put.headers["content-type"], put.headers["content-encoding"]) == ("text/plain", "gzip")
        [(_, request)] = world.queue.created
        assert isinstance(request, S3ArtifactRequest)
        assert (request.content_type, request.expires) == ("text/plain", TASK.expires)


async def test_what_is_compressed_is_sent_as_it_is_without_encoding(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("a.zip", b"PK")
        assert await world.upload(file("a.zip")) == COMPLETED
        put = world.storage.puts["a.zip"]
        assert (put.body, put.headers["content-type"]) == (b"PK", "application/zip")
        assert "content-encoding" not in put.headers


async def test_type_and_encoding_as_declared_hold_for_all_files_of_a_directory(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("out/a.txt")
        world.write("out/b.zip")
        item = directory("out", name="public", contentType="x/y", contentEncoding="gzip")
        assert await world.upload(item) == COMPLETED
        for put in world.storage.puts.values():
            assert (put.headers["content-type"], put.headers["content-encoding"]) == ("x/y", "gzip")
        assert sorted(world.storage.puts) == ["public/a.txt", "public/b.zip"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_an_empty_file_is_a_file(tmp_path: Path, encoding: str) -> None:
    async with open_world(tmp_path) as world:
        world.write("a", b"")
        assert await world.upload(file("a", contentEncoding=encoding)) == COMPLETED
        assert world.storage.puts["a"].content == b""


async def test_a_directorys_files_are_named_by_their_relative_paths(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for path in ("out/z", "out/a/b/c.txt", "out/a/b c", "other"):
            world.write(path)
        (world.task / "out/link").symlink_to("z")
        assert await world.upload(directory("out/", name="public/")) == COMPLETED
        assert sorted(world.storage.puts) == ["public/a/b c", "public/a/b/c.txt", "public/z"]


@pytest.mark.parametrize(("path", "name"), [(".", "a"), ("./", "a"), ("out", "out/a")])
async def test_a_directory_without_a_name_is_named_by_its_path(tmp_path: Path, path: str, name: str) -> None:
    async with open_world(tmp_path) as world:
        (world.task / path).mkdir(exist_ok=True)
        (world.task / path / "a").touch()
        assert await world.upload(directory(path)) == COMPLETED
        assert list(world.storage.puts) == [name]


async def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (world.task / "out").mkdir()
        assert await world.upload(directory("out")) == COMPLETED
        assert world.queue.created == []


async def test_lines_are_in_the_payloads_order_whatever_ends_first(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for path in ("z.txt", "out/b.zip", "out/a.txt", "c"):
            world.write(path)
        await world.upload(file("z.txt", name="public/z.txt"), directory("out", name="public/out"), file("c"))
        text, zipped, unknown = "text/plain", "application/zip", "application/octet-stream"
        assert [line.partition("] ")[2] for line in world.log.splitlines()] == [
            uploading("public/z.txt", "z.txt", "gzip", text),
            "Uploading artifacts public/out/... from directory out",
            uploading("public/out/a.txt", "out/a.txt", "gzip", text),
            uploading("public/out/b.zip", "out/b.zip", "identity", zipped),
            uploading("c", "c", "gzip", unknown),
        ]


def uploading(name: str, path: str, encoding: str, content_type: str) -> str:
    what = f'content encoding "{encoding}", mime type "{content_type}" and expiry 2026-02-01T12:00:00.000Z'
    return f"Uploading artifact {name} from file {path} with {what}"


async def test_equal_files_make_equal_bytes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("a")
        world.write("b")
        os.utime(world.task / "a", (0, 0))
        await world.upload(file("a"), file("b"))
        assert world.storage.puts["a"].body == world.storage.puts["b"].body


async def test_as_many_at_once_as_configured_and_no_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.config = ArtifactsConfig(parallelism=3)
        world.storage.gate = trio.Event()
        for index in range(12):
            world.write(f"out/{index}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.upload, directory("out"))
            with trio.fail_after(10):
                for _ in range(3):
                    await world.storage.arrivals.acquire()
            world.storage.gate.set()
        assert world.storage.most_busy == 3
        assert len(world.storage.puts) == 12


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path, encoding: str) -> None:
    size = 64 * 1024 * 1024
    async with open_world(tmp_path) as world:
        with (world.task / "big").open("wb") as big:
            big.truncate(size)
        result = FolderResult(world.task)
        assert await world.upload(file("big", contentEncoding=encoding), result=result) == COMPLETED
        assert max(result.reads) <= CHUNK
        assert len(result.reads) >= size // CHUNK
        put = world.storage.puts["big"]
        if encoding == "identity":
            assert put.length == size
            assert put.sha256 == hashlib.sha256(bytes(size)).hexdigest()
        else:
            assert put.content == bytes(size)


async def test_large_compressed_content_is_spooled_and_leaves_nothing_behind(tmp_path: Path) -> None:
    content = os.urandom(3 * 1024 * 1024)
    async with open_world(tmp_path) as world:
        world.write("noise", content)
        assert await world.upload(file("noise")) == COMPLETED
        assert world.storage.puts["noise"].length > len(content) // 2
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["trash"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_an_upload_that_fails_is_tried_again_from_the_start_with_a_fresh_url(
    tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        world.storage.answers = [503]
        world.write("a.txt", b"x" * 1000)
        assert await world.upload(file("a.txt", contentEncoding=encoding)) == COMPLETED
        assert world.storage.puts["a.txt"].content == b"x" * 1000
        assert world.announced == ["a.txt", "a.txt"]
        [told] = [record.getMessage() for record in caplog.records if record.name == "worker.queue.transfer"]
        assert re.search(
            r"a\.txt: attempt 1 to store it: PUT http://127\.0\.0\.1:\d+/: answered with status 503$", told
        )


async def test_a_task_that_failed_has_its_artifacts_too(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.write("a")
        result = FolderResult(world.task, Ended(success=False, exit_code=1, message="exit code 1"))
        assert await world.upload(file("a"), result=result) == COMPLETED
        assert list(world.storage.puts) == ["a"]


async def test_without_a_sandbox_nothing_is_uploaded_and_nothing_held_against_the_task(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert await world.perform(generic(file("missing")), None) == COMPLETED
        assert (world.queue.created, world.log) == ([], "")


async def test_cancellation_ends_uploads_under_way_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.storage.door = trio.Event()
        world.write("noise", os.urandom(8 * 1024 * 1024))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.upload, file("noise"))
            with trio.fail_after(10):
                await world.storage.arrivals.acquire()
            nursery.cancel_scope.cancel()
        assert world.storage.puts == {}
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["trash"]


async def test_rules_say_how_files_are_encoded_whose_task_does_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        rules = {".json": "identity", "text/*": "zstd", "application/zip": "gzip", "*": "identity"}
        world.config = ArtifactsConfig.model_validate({"encodings": rules})
        expected = {"a.json": None, "a.txt": "zstd", "a.zip": "gzip", "unknown": None, "own.txt": "gzip"}
        for name in expected:
            world.write(name, b"some text\n" * 100)
        items = [file(name) for name in expected if name != "own.txt"]
        assert await world.upload(*items, file("own.txt", contentEncoding="gzip")) == COMPLETED
        found = {name: put.headers.get("content-encoding") for name, put in world.storage.puts.items()}
        assert found == expected
        text = world.storage.puts["a.txt"]
        assert zstandard.ZstdDecompressor().decompressobj().decompress(text.body) == b"some text\n" * 100
        assert 'content encoding "zstd"' in world.log


@pytest.mark.parametrize("pattern", ["log", "*.log", ".tar.gz", "text", "TEXT/*", ""])
def test_what_is_no_rule_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        ArtifactsConfig.model_validate({"encodings": {pattern: "gzip"}})


async def test_many_files_have_one_line_together(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for index in range(TOLD_SINGLY + 20):
            world.write(f"out/{index:04}", b"x" * 1000)
        item = directory("out", contentEncoding="identity")
        assert await world.upload(item) == COMPLETED
        lines = world.log.splitlines()
        assert len(lines) == TOLD_SINGLY + 3
        assert lines[-2].endswith("More files of directory out follow, without a line for each")
        assert re.search(r"Uploaded 120 artifacts: 0\.1 MiB in [\d.]+ s, [\d.]+ MiB/s$", lines[-1])
        assert len(world.storage.puts) == TOLD_SINGLY + 20
