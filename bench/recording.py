"""Records the HTTP calls that a worker makes, to show that the bare loop makes the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import httpx

from worker.ports import Ports

_TASK = re.compile(r"/task/[\w-]{22}")
_STORED = re.compile(r"^/(?!api/).*")
_API = re.compile(r"^/api/(\w[\w-]*)/v1")


class RecordingPorts(Ports):
    """The real world, with `calls`: how often each kind of request was sent (`POST queue/task/…/runs/0/completed`)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def transport(self, idle_limit: float) -> httpx.AsyncBaseTransport:
        """A transport that counts."""
        return _Recorder(super().transport(idle_limit), self.calls)


class _Recorder(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, calls: Counter[str]) -> None:
        self._inner = inner
        self._calls = calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._calls[call_kind(request.method, request.url.path)] += 1
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def call_kind(method: str, path: str) -> str:
    """A call's name, the same for all tasks."""
    path = _API.sub(r"\1", _STORED.sub("(presigned URL)", path))
    return f"{method} {_TASK.sub('/task/…', path)}"


def per_task(calls: Mapping[str, int], tasks: int) -> dict[str, float]:
    """Calls of each kind for one task."""
    return {kind: count / tasks for kind, count in sorted(calls.items())}
