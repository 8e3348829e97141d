from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import trio
import trio.testing

from worker.cancelpoll import CALL_LIMIT, JITTER, SINGLE_CALLS, CancelPoll, cause_of
from worker.model import Cause, CauseKind, RunKey
from worker.ports import Ports
from worker.queue.errors import ApiError, Forbidden, NotFound, Unauthorized, Unavailable
from worker.queue.models import Run, TaskStatus, TaskStatusWithId
from worker.queue.retry import RetryPolicy
from worker.queue.services import Queue

INTERVAL = timedelta(seconds=10)


def run_status(state: str, reason: str | None = None, run_id: int = 0) -> Run:
    values = {"runId": run_id, "state": state, "reasonCreated": "scheduled", "scheduled": "2026-01-01T00:00:00.000Z"}
    return Run.model_validate(values | ({"reasonResolved": reason} if reason else {}))


@pytest.mark.parametrize(
    ("state", "reason", "kind"),
    [
        ("running", None, None),
        ("exception", "canceled", CauseKind.CANCELLED),
        ("exception", "deadline-exceeded", CauseKind.DEADLINE),
        ("exception", "claim-expired", CauseKind.CLAIM_LOST),
        ("completed", "completed", CauseKind.CLAIM_LOST),
    ],
)
def test_the_cause_follows_from_the_runs_status(state: str, reason: str | None, kind: CauseKind | None) -> None:
    cause = cause_of([run_status("exception", "canceled", 5), run_status(state, reason)], 0)
    assert (cause.kind if cause else None) is kind


def test_a_run_that_the_queue_does_not_list_is_left_alone() -> None:
    assert cause_of([run_status("exception", "canceled", 5)], 0) is None


TASK = TaskStatus.model_validate(
    {
        "taskId": "VtJ5S3MCRjGWdMkpUAYpdg",
        "provisionerId": "proj-test",
        "workerType": "native",
        "taskQueueId": "proj-test/native",
        "schedulerId": "-",
        "projectId": "none",
        "taskGroupId": "VtJ5S3MCRjGWdMkpUAYpdg",
        "deadline": "2026-01-02T00:00:00.000Z",
        "expires": "2026-01-03T00:00:00.000Z",
        "retriesLeft": 5,
        "state": "running",
        "runs": [],
    }
)


@dataclass
class FakeRun:
    key: RunKey
    causes: list[Cause] = field(default_factory=list)

    def stop(self, cause: Cause) -> None:
        self.causes.append(cause)


class FakeQueue(Queue):
    """`cancelled` has the task ids that are; `asked` the ids of every call."""

    def __init__(self, refusal: ApiError | Unavailable | None = None) -> None:
        self.refusal = refusal
        self.hangs = False
        self.cancelled: set[str] = set()
        self.asked: list[list[str]] = []
        self.singly: list[str] = []
        self.times: list[float] = []

    async def statuses(self, task_ids: Iterable[str], *, policy: RetryPolicy | None = None) -> list[TaskStatusWithId]:
        await trio.lowlevel.checkpoint()
        self.asked.append(sorted(task_ids))
        self.times.append(trio.current_time())
        if self.hangs:
            await trio.sleep_forever()
        if self.refusal:
            raise self.refusal
        return [TaskStatusWithId(task_id=task_id, status=self._status(task_id)) for task_id in self.asked[-1]]

    async def status(self, task_id: str, *, policy: RetryPolicy | None = None) -> TaskStatus:
        await trio.lowlevel.checkpoint()
        self.singly.append(task_id)
        return self._status(task_id)

    def _status(self, task_id: str) -> TaskStatus:
        run = run_status("exception", "canceled") if task_id in self.cancelled else run_status("running")
        return TASK.model_copy(update={"runs": [run]})


@asynccontextmanager
async def polling(queue: FakeQueue, count: int) -> AsyncGenerator[dict[RunKey, FakeRun], None]:
    runs = {key: FakeRun(key) for key in (RunKey(f"task{number:02}", 0) for number in range(count))}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(CancelPoll(queue, Ports(), INTERVAL, runs).run)
        yield runs
        nursery.cancel_scope.cancel()


async def test_one_call_covers_all_runs_and_ends_the_cancelled_ones(autojump_clock: trio.testing.MockClock) -> None:
    queue = FakeQueue()
    queue.cancelled = {"task01"}
    async with polling(queue, 40) as runs:
        await trio.sleep(13)
        assert queue.asked == [[f"task{number:02}" for number in range(40)]]
        stopped = [run for run in runs.values() if run.causes]
        assert [run.key.task_id for run in stopped] == ["task01"]
        assert stopped[0].causes[0].kind is CauseKind.CANCELLED


async def test_it_asks_once_an_interval_and_not_to_the_second(autojump_clock: trio.testing.MockClock) -> None:
    queue = FakeQueue()
    async with polling(queue, 1):
        await trio.sleep(1000)
    waits = [later - earlier for earlier, later in zip(queue.times, queue.times[1:], strict=False)]
    assert min(waits) >= 10 * (1 - JITTER)
    assert max(waits) <= 10
    assert len(set(waits)) > 1


async def test_nothing_is_asked_while_nothing_runs(autojump_clock: trio.testing.MockClock) -> None:
    queue = FakeQueue()
    async with polling(queue, 0):
        await trio.sleep(1000)
    assert queue.asked == []


async def test_a_failing_poll_ends_no_run_and_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    queue = FakeQueue(Unavailable("queue.statuses", 1, "down"))
    async with polling(queue, 3) as runs:
        await trio.sleep(100)
        assert len(queue.asked) > 5
        assert not any(run.causes for run in runs.values())
        queue.refusal = None
        queue.cancelled = {"task02"}
        await trio.sleep(13)
        assert runs[RunKey("task02", 0)].causes


@pytest.mark.parametrize("hangs", [False, True])
async def test_that_cancelled_tasks_are_not_noticed_is_told_once_until_they_are_again(
    hangs: bool, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failure = Unauthorized("queue.statuses", 401, "AuthenticationFailed", "expired")
    queue = FakeQueue()
    async with polling(queue, 1):
        for times_told in (1, 2):
            queue.hangs, queue.refusal = hangs, None if hangs else failure
            await trio.sleep(100)
            told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert len(told) == times_told
            assert told[-1].startswith("cancelled tasks are not noticed until the next reclaim: ")
            queue.hangs, queue.refusal = False, None
            await trio.sleep(30)


async def test_a_call_that_hangs_does_not_hide_what_happens_meanwhile(autojump_clock: trio.testing.MockClock) -> None:
    queue = FakeQueue()
    queue.hangs = True
    async with polling(queue, 1) as runs:
        await trio.sleep(13)
        assert len(queue.asked) == 1
        queue.hangs = False
        queue.cancelled = {"task00"}
        await trio.sleep(CALL_LIMIT + 13)
        assert runs[RunKey("task00", 0)].causes


@pytest.mark.parametrize("refusal", [Forbidden("m", 403, "c", "x"), NotFound("m", 404, "c", "x")])
async def test_where_it_is_refused_runs_are_looked_at_in_turn_within_the_budget(
    refusal: ApiError, autojump_clock: trio.testing.MockClock
) -> None:
    queue = FakeQueue(refusal)
    queue.cancelled = {"task24"}
    async with polling(queue, 25) as runs:
        await trio.sleep(10 * 3 * (1 + JITTER) + 1)
        assert len(queue.asked) == 1
        assert len(queue.singly) <= SINGLE_CALLS * 4
        assert set(queue.singly) == {key.task_id for key in runs}
        assert [run.key.task_id for run in runs.values() if run.causes] == ["task24"]
