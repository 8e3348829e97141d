"""What every engine must do. Derive from `EngineSuite` in a test module and say how your engine is scripted.

class TestMine(EngineSuite):
    engine_class = Mine
    ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from engines.base import Builder, Ended, Engine, FileInvalid, FileMissing, Lending, Result, Volume
from worker.errors import TaskFault
from worker.run import Run
from worker.schema import Slice
from worker.testing.runs import log_text, open_run, open_services


class EngineSuite(ABC):
    """Each method that begins with `test_` is one promise of `engines.base`."""

    engine_class: ClassVar[type[Engine[Any, Any]]]
    sees_volumes: ClassVar[bool] = True  # whether something runs that can

    @abstractmethod
    def prints(self, text: str) -> Slice:
        """A payload that writes `text`, which has no newline, as a line, and succeeds."""

    @abstractmethod
    def exits(self, code: int) -> Slice:
        """A payload that ends with that exit code."""

    @abstractmethod
    def hangs(self) -> Slice:
        """A payload that writes the line `here` and then runs until it is killed, deaf to TERM where it can be."""

    @abstractmethod
    def leaves(self, path: str, content: str) -> Slice:
        """A payload that leaves a file in the task's directory, folders made as needed."""

    @asynccontextmanager
    async def opened(self, folder: Path, payload: Slice) -> AsyncGenerator[tuple[Run[Slice], Builder], None]:
        """A run of `payload` and its builder."""
        async with open_services(folder) as services, open_run(folder, payload) as run:
            engine = self.engine_class(self.engine_class.Config(), services)
            async with engine.worker_scope(), engine.builder(run) as builder:
                yield run, builder

    async def played(self, builder: Builder) -> None:
        """Run the sandbox to its end."""
        async with builder.sandbox() as sandbox:
            await sandbox.wait()

    async def test_output_is_in_the_log_when_the_sandbox_is_left(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.prints("out and about")) as (run, builder):
            await self.played(builder)
            assert "out and about" in (await log_text(run)).splitlines()

    @pytest.mark.parametrize("code", [0, 1, 77])
    async def test_the_exit_code_is_known_and_only_0_is_success(self, tmp_path: Path, code: int) -> None:
        async with self.opened(tmp_path, self.exits(code)) as (_, builder):
            await self.played(builder)
            async with builder.result() as result:
                assert isinstance(result.ended, Ended)
                assert result.ended.exit_code == code
                assert result.ended.success == (code == 0)
                assert bool(result.ended.message) == (code != 0)

    async def test_leaving_the_block_kills_and_what_was_killed_did_not_end(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.hangs()) as (run, builder):
            async with builder.sandbox():
                await _line(run, "here")
            async with builder.result() as result:
                assert result.ended is None

    async def test_a_cancelled_run_can_be_read(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.hangs()) as (run, builder):
            with trio.CancelScope() as execution:
                async with builder.sandbox() as sandbox:
                    await _line(run, "here")
                    execution.cancel()
                    await sandbox.wait()
            assert execution.cancelled_caught
            async with builder.result() as result:
                assert result.ended is None

    async def test_a_result_can_be_opened_where_the_start_was_cancelled(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.exits(0)) as (_, builder):
            with trio.CancelScope() as execution:
                execution.cancel()
                await self.played(builder)
            async with builder.result():
                pass

    async def test_files_are_read_whole(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.leaves("a/b.txt", "content")) as (_, builder):
            await self.played(builder)
            async with builder.result() as result, result.open("a/b.txt") as file:
                assert file.size == len("content")
                assert await file.receive_some(3) + await file.receive_some(100) == b"content"
                assert await file.receive_some(1) == b""

    async def test_folders_are_walked(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.leaves("a/b/c.txt", "content")) as (_, builder):
            await self.played(builder)
            async with builder.result() as result:
                assert [name async for name in result.walk("a")] == ["b/c.txt"]

    async def test_what_is_not_there_is_missing(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.exits(0)) as (_, builder):
            await self.played(builder)
            async with builder.result() as result:
                with pytest.raises(FileMissing):
                    await _open(result, "nothing")
                with pytest.raises(FileMissing):
                    await anext(aiter(result.walk("nothing")))

    async def test_a_folder_is_no_file_and_a_file_no_folder(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, self.leaves("a/b.txt", "content")) as (_, builder):
            await self.played(builder)
            async with builder.result() as result:
                with pytest.raises(FileInvalid):
                    await _open(result, "a")
                with pytest.raises(FileInvalid):
                    await anext(aiter(result.walk("a/b.txt")))

    async def test_volumes_are_there(self, tmp_path: Path) -> None:
        self._only_with_volumes()
        async with self.opened(tmp_path, self.exits(0)) as (_, builder):
            given, shared = _folder(tmp_path / "given"), tmp_path / "shared"
            shared.write_text("others read it too")
            builder.volumes = [
                Volume(given, "in/folder", Lending.GIVEN),
                Volume(shared, "in/folder/shared", Lending.SHARED),
            ]
            await self.played(builder)
            async with builder.result() as result:
                assert await _read(result, "in/folder/old.txt") == b"old"
                assert await _read(result, "in/folder/shared") == b"others read it too"
        assert shared.read_text() == "others read it too"

    @pytest.mark.parametrize("ended", [True, False])
    async def test_what_was_lent_is_back_with_what_the_task_has_made(self, tmp_path: Path, ended: bool) -> None:
        self._only_with_volumes()
        async with self.opened(tmp_path, self.leaves("a/cache/new.txt", "new") if ended else self.hangs()) as (
            run,
            builder,
        ):
            lent = _folder(tmp_path / "lent")
            builder.volumes.append(Volume(lent, "a/cache", Lending.LENT))
            async with builder.sandbox() as sandbox:
                await (sandbox.wait() if ended else _line(run, "here"))
            async with builder.result() as result:
                assert await _read(result, "a/cache/old.txt") == b"old"
                assert await result.is_folder("a/cache")
                assert not await result.is_folder("a/cache/old.txt")
        assert {path.name for path in lent.iterdir()} == ({"old.txt", "new.txt"} if ended else {"old.txt"})

    @pytest.mark.parametrize("path", ["../out", "a/../../out", "", "."])
    async def test_no_volume_is_outside_of_the_tasks_directory(self, tmp_path: Path, path: str) -> None:
        self._only_with_volumes()
        async with self.opened(tmp_path, self.exits(0)) as (_, builder):
            builder.volumes.append(Volume(_folder(tmp_path / "given"), path, Lending.GIVEN))
            with pytest.raises(TaskFault, match="cannot be mounted"):
                await self.played(builder)

    def _only_with_volumes(self) -> None:
        if not (self.engine_class.mounts and self.sees_volumes):
            pytest.skip("nothing sees volumes in this engine")


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "old.txt").write_text("old")
    return path


async def _read(result: Result, path: str) -> bytes:
    content = b""
    async with result.open(path) as file:
        while chunk := await file.receive_some(1000):
            content += chunk
    return content


async def _open(result: Result, path: str) -> None:
    async with result.open(path):
        pass


async def _line(run: Run[Slice], line: str) -> None:
    """Wait until the log has that line."""
    text = b""
    with trio.fail_after(10):
        while f"{line}\n".encode() not in text:
            text += await run.log.read(len(text))
