from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.logfile import CHUNK
from worker.ports import Ports
from worker.tasklog import LogSettings, TaskLog, open_tasklog

T = TypeVar("T")


async def everything(log: TaskLog, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in log.follow(offset)])


async def test_readers_get_every_byte_from_their_offset_and_then_the_end(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        await log.write(b"one\n")
        await log.write(b"\xff\x00two\n")
        await log.close()
        assert await everything(log) == b"one\n\xff\x00two\n"
        assert await everything(log, 4) == b"\xff\x00two\n"
        assert await everything(log, log.size) == b""


async def test_a_reader_waits_for_what_is_written_later(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def follow(log: TaskLog) -> None:
        async for chunk in log.follow():
            got.append(chunk)
            more.set()

    async with open_tasklog(Ports(), tmp_path / "log") as log, trio.open_nursery() as nursery:
        for text in (b"first", b"second"):
            more = trio.Event()
            if not got:
                nursery.start_soon(follow, log)
            await log.write(text)
            await more.wait()
        await log.close()
    assert b"".join(got) == b"firstsecond"


async def test_what_nobody_reads_is_written_in_large_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_tasklog(Ports(), path) as log:
        await log.write(b"x" * (CHUNK - 1))
        assert not path.exists()
        await log.write(b"x")
        assert path.stat().st_size == CHUNK
        await log.write(b"y")
        await log.close()
        assert path.stat().st_size == CHUNK + 1
    assert not path.exists()


async def test_a_short_log_needs_no_file(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "missing" / "log") as log:
        await log.write(b"x" * (CHUNK - 1))
        await log.close()
        assert await everything(log) == b"x" * (CHUNK - 1)
    assert not (tmp_path / "missing").exists()


async def test_remarks_of_the_worker_have_the_prefix_that_viewers_parse(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        log.say("one\ntwo")
        log.warn("three")
        log.error("four")
        await log.close()
        lines = (await everything(log)).decode().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    for pattern, line in zip(
        [
            rf"\[taskcluster {time}\] one",
            rf"\[taskcluster {time}\] two",
            rf"\[taskcluster:warn {time}\] three",
            r"\[taskcluster:error\] four",
        ],
        lines,
        strict=True,
    ):
        assert re.fullmatch(pattern, line)


async def test_a_remark_with_a_lone_surrogate_is_logged_all_the_same(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        log.say(os.fsdecode(b"name-\xff"))
        await log.close()
        assert b"name-\\udcff" in await everything(log)


async def test_a_closed_log_takes_no_more(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        await log.close()
        with pytest.raises(ValueError, match="closed"):
            await log.write(b"x")


async def test_a_cancelled_writer_loses_nothing(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        with trio.CancelScope() as scope:
            scope.cancel()
            await log.write(b"z" * CHUNK)
        assert scope.cancelled_caught
        await log.write(b"end")
        await log.close()
        assert await everything(log) == b"z" * CHUNK + b"end"


async def test_a_log_is_not_readable_for_others(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        await log.write(b"x" * CHUNK)
        assert (tmp_path / "log").stat().st_mode & 0o077 == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=3 * CHUNK), max_size=6), st.integers(0, 4 * CHUNK))
def test_bytes_are_whole_and_in_order_for_readers_at_any_offset(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], offset: int
) -> None:
    whole = b"".join(pieces)

    async def compare(log: TaskLog) -> None:
        assert await everything(log, offset) == whole[offset:]

    async def main() -> None:
        path = tmp_path_factory.mktemp("log") / "log"
        async with open_tasklog(Ports(), path) as log, trio.open_nursery() as nursery:
            nursery.start_soon(compare, log)
            for piece in pieces:
                await log.write(piece)
            await log.close()

    trio.run(main)


class FullDisk(Ports):
    """Takes nothing more once it `is_full`."""

    is_full = False

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if self.is_full and function is os.pwrite:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().run_sync(function, *args)


async def test_what_a_full_disk_did_not_take_is_read_from_memory_in_the_end(tmp_path: Path) -> None:
    ports = FullDisk()
    async with open_tasklog(ports, tmp_path / "log") as log:
        await log.write(b"x" * CHUNK)
        ports.is_full = True
        with pytest.raises(OSError, match="No space"):
            await log.write(b"y" * (CHUNK + 1))
        log.error("the disk is full")
        with pytest.raises(OSError, match="No space"):
            await log.close()
        whole = b"x" * CHUNK + b"y" * (CHUNK + 1) + b"[taskcluster:error] the disk is full\n"
        assert await everything(log) == whole
        assert await everything(log, CHUNK + 3) == whole[CHUNK + 3 :]


# What it does not tell


async def test_secrets_are_hidden_from_output_and_remarks_also_when_they_come_in_pieces(tmp_path: Path) -> None:
    settings = LogSettings(secrets=frozenset({b"open-sesame"}), patterns=(re.compile(rb"ghp_\w+"),))
    async with open_tasklog(Ports(), tmp_path / "log", settings) as log:
        for byte in b"say open-sesame, ghp_abcdef\n":
            await log.write(bytes([byte]))
        log.say("Executing command 0: knock open-sesame and ghp_123")
        await log.write(b"x" * CHUNK + b"\n")  # so that it gets a file
        await log.close()
        text = await everything(log)
        assert (tmp_path / "log").read_bytes() == text
    assert text.startswith(b"say [redacted], [redacted]\n[taskcluster ")
    assert b"knock [redacted] and [redacted]\n" in text


async def test_a_remark_does_not_split_a_secret(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log", LogSettings(secrets=frozenset({b"open-sesame"}))) as log:
        await log.write(b"say open-se")
        log.say("a remark")
        await log.write(b"same\n")
        await log.close()
        text = await everything(log)
    assert re.fullmatch(rb"say \[taskcluster \S+\] a remark\n\[redacted\]\n", text)


async def test_what_was_held_back_is_told_when_the_output_ends(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log", LogSettings(secrets=frozenset({b"open-sesame"}))) as log:
        await log.write(b"say open-se")
        assert log.size == len(b"say ")
        log.end_output()
        log.say("after it")
        await log.close()
        assert re.fullmatch(rb"say open-se\[taskcluster \S+\] after it\n", await everything(log))


async def test_secrets_that_become_known_later_are_hidden_from_then_on(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log") as log:
        await log.write(b"open-sesame ")
        log.hide([b"open-sesame", b"abc"])
        await log.write(b"open-sesame abc ")
        log.say("open-sesame")
        await log.close()
        text = await everything(log)
    assert text.startswith(b"open-sesame [redacted] abc [taskcluster ")
    assert text.endswith(b"] [redacted]\n")


# How long it gets


async def test_of_a_log_that_is_too_long_the_beginning_and_the_end_are_kept(tmp_path: Path) -> None:
    settings = LogSettings(size_limit=1000, tail=1000)
    async with open_tasklog(Ports(), tmp_path / "log", settings) as log:
        lines = [b"line %d\n" % number for number in range(10_000)]
        for line in lines:
            await log.write(line)
        assert log.size < 1200
        log.error("it failed")
        await log.close()
        text = await everything(log)
    whole = b"".join(lines)
    assert text.startswith(whole[:1000] + b"\n[taskcluster:warn ")
    assert b"the log has reached its limit of 1 kB" in text
    _, end = text.rsplit(b"KiB of the log are left out here\n", 1)
    assert whole.endswith(end.removesuffix(b"[taskcluster:error] it failed\n"))
    assert end.startswith(b"line ")
    assert 900 < len(end) <= 1000


async def test_where_nothing_was_left_out_it_does_not_say_so(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log", LogSettings(size_limit=10, tail=1000)) as log:
        await log.write(b"0123456789" * 50)
        await log.close()
        text = await everything(log)
    beginning, _, end = text.partition(b"\n[taskcluster:warn ")
    assert beginning == b"0123456789"
    assert end.partition(b"\n")[2] == b"0123456789" * 49


async def test_the_tail_of_one_endless_line_is_kept_too(tmp_path: Path) -> None:
    async with open_tasklog(Ports(), tmp_path / "log", LogSettings(size_limit=10, tail=1024)) as log:
        for _ in range(100):
            await log.write(b"x" * 1000)
        await log.write(b"\n")
        await log.close()
        assert (await everything(log)).endswith(b"left out here\n" + b"x" * 1023 + b"\n")


# When it was written


async def test_every_write_has_its_time(tmp_path: Path) -> None:
    class Clock(Ports):
        time = datetime(2026, 1, 31, tzinfo=UTC)

        def now(self) -> datetime:
            return self.time

    ports = Clock()
    async with open_tasklog(ports, tmp_path / "log", LogSettings(secrets=frozenset({b"open-sesame"}))) as log:
        await log.write(b"first open-sesame\n")
        second = log.size
        ports.time += timedelta(seconds=5)
        await log.write(b"second\n")
        assert log.times.at(0) == log.times.at(second - 1) == datetime(2026, 1, 31, tzinfo=UTC).timestamp()
        assert log.times.at(second) == ports.time.timestamp()


async def test_others_get_their_turn_while_patterns_are_sought_and_a_cancel_loses_no_output(tmp_path: Path) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_tasklog(Ports(), tmp_path / "log", LogSettings(patterns=(re.compile(rb"\w+@"),))) as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            with trio.CancelScope() as scope:
                scope.cancel()
                await log.write(b"." * CHUNK)
            nursery.cancel_scope.cancel()
        await log.close()
        assert await everything(log) == b"." * CHUNK
    assert turns >= 10


def test_no_secret_is_in_the_repr_of_the_settings() -> None:
    assert "hunter2" not in repr(LogSettings(secrets=frozenset([b"hunter2"])))
