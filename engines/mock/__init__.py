"""Runs nothing: it does what the payload's `mock` property says. For tests, simulations and benchmarks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Literal

import trio
from pydantic import Field

from engines.base import Builder, Ended, Engine, FileInvalid, FileMissing, Result, Sandbox, SandboxFile
from worker.errors import FatalWorkerFault, MalformedPayload, Problem, ResourceUnavailable, TaskFault, WorkerFault
from worker.run import Run
from worker.schema import Document, Slice

Fault = Literal["task", "malformed", "resource", "worker", "fatal", "bug"]


class Script(Document):
    """What happens: `output` and as many numbered `lines` are written, `seconds` pass, `files` are left.

    `raises` has the start fail instead, and `hangs` has it run until it is killed.
    """

    output: str = ""
    lines: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0, strict=False)] = 0
    files: dict[str, str] = {}
    exit_code: int = 0
    hangs: bool = False
    raises: Fault | None = None


class MockPayload(Slice):
    mock: Script = Script()


class MockConfig(Document):
    pass


class MockSandbox(Sandbox):
    def __init__(self) -> None:
        self.done = trio.Event()

    async def wait(self) -> None:
        await self.done.wait()


class MemoryFile(SandboxFile):
    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.size = len(content)

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        head, self._content = self._content[:max_bytes], self._content[max_bytes:]
        return bytes(head)


class MockResult(Result):
    def __init__(self, files: dict[str, str], ended: Ended | None) -> None:
        self._files = files
        self.ended = ended

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        if path not in self._files:
            raise (FileInvalid if self._below(path) else FileMissing)(path)
        yield MemoryFile(self._files[path].encode())

    async def walk(self, path: str) -> AsyncGenerator[str, None]:
        if path in self._files:
            raise FileInvalid(path)
        if not (names := self._below(path)):
            raise FileMissing(path)
        for name in names:
            yield name

    async def is_folder(self, path: str) -> bool:
        return path not in self._files  # nothing runs that could replace it

    def _below(self, path: str) -> list[str]:
        prefix = f"{path.rstrip('/')}/"
        return sorted(name.removeprefix(prefix) for name in self._files if name.startswith(prefix))


class MockBuilder(Builder):
    def __init__(self, run: Run[MockPayload]) -> None:
        super().__init__()
        self._run = run
        self._ended: Ended | None = None

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox, None]:
        script = self._run.payload.mock
        if script.raises is not None:
            raise _fault(script.raises)
        sandbox = MockSandbox()
        async with trio.open_nursery() as playing:
            playing.start_soon(self._play, script, sandbox)
            yield sandbox
            playing.cancel_scope.cancel()

    async def _play(self, script: Script, sandbox: MockSandbox) -> None:
        await self._run.log.write(script.output.encode())
        for number in range(script.lines):
            await self._run.log.write(f"line {number}\n".encode())
        await trio.sleep(script.seconds)
        if script.hangs:
            await trio.sleep_forever()
        message = "" if script.exit_code == 0 else f"exited with code {script.exit_code}"
        self._ended = Ended(script.exit_code == 0, script.exit_code, message)
        sandbox.done.set()

    @asynccontextmanager
    async def result(self) -> AsyncGenerator[Result, None]:
        yield MockResult(self._run.payload.mock.files, self._ended)


def _fault(fault: Fault) -> Exception:
    match fault:
        case "task":
            return TaskFault("the script wants a task's fault")
        case "malformed":
            return MalformedPayload([Problem("mock.raises", "the script wants a malformed payload")])
        case "resource":
            return ResourceUnavailable("the script wants a missing resource")
        case "worker":
            return WorkerFault("the script wants a worker's fault")
        case "fatal":
            return FatalWorkerFault("the script wants a broken worker")
        case "bug":
            return RuntimeError("the script wants a bug")


class Mock(Engine[MockConfig, MockPayload]):
    Config = MockConfig
    payloads: ClassVar = {"generic-worker": MockPayload}
    mounts: ClassVar = True  # nothing runs that could see them

    @asynccontextmanager
    async def builder(self, run: Run[MockPayload]) -> AsyncGenerator[Builder, None]:
        yield MockBuilder(run)
