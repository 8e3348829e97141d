from __future__ import annotations

from pathlib import PurePosixPath
from typing import ClassVar

from engines.mock import Mock, MockPayload, Script
from engines.native import Native
from engines.native.engine import NativePayload
from worker.schema import Slice
from worker.testing.engine_suite import EngineSuite


class TestMock(EngineSuite):
    sees_volumes: ClassVar = False
    engine_class: ClassVar = Mock

    def prints(self, text: str) -> Slice:
        return MockPayload(mock=Script(output=f"{text}\n"))

    def exits(self, code: int) -> Slice:
        return MockPayload(mock=Script(exit_code=code))

    def hangs(self) -> Slice:
        return MockPayload(mock=Script(output="here\n", hangs=True))

    def leaves(self, path: str, content: str) -> Slice:
        return MockPayload(mock=Script(files={path: content}))


class TestNative(EngineSuite):
    engine_class: ClassVar = Native

    def shell(self, *lines: str) -> Slice:
        return NativePayload(command=[["sh", "-c", "\n".join(lines)]])

    def prints(self, text: str) -> Slice:
        return NativePayload(command=[["echo", text]])

    def exits(self, code: int) -> Slice:
        return self.shell(f"exit {code}")

    def hangs(self) -> Slice:
        return self.shell("trap '' TERM", "echo here", "while :; do sleep 1000; done")

    def leaves(self, path: str, content: str) -> Slice:
        return self.shell(f"mkdir -p {PurePosixPath(path).parent}", f"printf %s {content} > {path}")
