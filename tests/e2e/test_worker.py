from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio

from engines.base import Result
from plugins.base import Plugin, TaskHooks
from worker.claims import StopReason
from worker.config import Config
from worker.model import COMPLETED, Verdict
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.models import TaskStatus
from worker.run import Run
from worker.schema import Document, Slice
from worker.supervisor import Supervisor, run_worker
from worker.testing.world import World, open_world

T = TypeVar("T")

MOCK: dict[str, Any] = {"engine": "mock", "plugins": {"disabled": ["maxRunTime"]}}


def shell(*lines: str, **payload: Any) -> dict[str, Any]:
    return {"command": [["sh", "-c", "\n".join(lines)]], "maxRunTime": 60, **payload}


def reasons(status: TaskStatus) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason_resolved) for run in status.runs]


def last_line(log: str) -> str:
    return log.splitlines()[-1]


async def run_one(world: World, payload: dict[str, Any], **config: Any) -> tuple[str, TaskStatus]:
    task_id = await world.create(payload, **config.pop("task", {}))
    await world.run_worker(world.config(numberOfTasks=1, **config))
    return task_id, await world.queue.status(task_id)


async def test_a_task_is_run_its_log_and_artifacts_are_kept_and_it_is_resolved(tmp_path: Path) -> None:
    payload = shell(
        "mkdir out; echo made > out/a.txt; echo hello $WHOM",
        env={"WHOM": "world"},
        artifacts=[{"type": "directory", "path": "out", "name": "public/out"}],
    )
    async with open_world(tmp_path) as world:
        task_id, status = await run_one(world, payload)
        assert reasons(status) == [("completed", "completed")]
        assert await world.artifact(task_id, "public/out/a.txt") == b"made\n"
        log = await world.log(task_id)
        assert "hello world" in log.splitlines()
        assert (await world.artifact(task_id, "public/logs/live.log")).decode() == log


async def test_the_log_has_the_landmarks_in_their_order(tmp_path: Path) -> None:
    landmarks = [
        "Worker Type settings: {",
        "Task ID: ",
        "=== Task Starting ===",
        "Executing command 0: sh -c 'echo output'",
        "output",
        "Exit Code: 0",
        "Wall Time: ",
        "Result: SUCCEEDED",
        "=== Task Finished ===",
        "Task Duration: ",
    ]
    async with open_world(tmp_path) as world:
        task_id, _ = await run_one(world, shell("echo output"))
        lines = iter((await world.log(task_id)).splitlines())
        for landmark in landmarks:
            assert any(line.partition("] ")[2].startswith(landmark) or line == landmark for line in lines), landmark


@pytest.mark.parametrize(
    ("payload", "expected", "cause"),
    [
        (shell("exit 3"), ("failed", "failed"), "command 0 exited with code 3"),
        (shell("sleep 1000") | {"maxRunTime": 1}, ("failed", "failed"), "maximum run time of 1 seconds"),
        (shell("true", artifacts=[{"type": "file", "path": "public/no"}]), ("failed", "failed"), "public/no"),
        ({"command": [], "maxRunTime": 1}, ("exception", "malformed-payload"), "command: "),
        (
            shell("true", comand=1),
            ("exception", "malformed-payload"),
            "comand: is not a known name; did you mean command?",
        ),
        (shell("true", maxRunTime=10**6), ("exception", "malformed-payload"), "maxRunTime: 1000000 seconds"),
        (shell("true", features={"chainOfTrust": True}), ("exception", "malformed-payload"), "features.chainOfTrust: "),
    ],
)
async def test_the_last_line_of_the_log_says_why_a_task_did_not_complete(
    tmp_path: Path, payload: dict[str, Any], expected: tuple[str, str], cause: str
) -> None:
    async with open_world(tmp_path) as world:
        task_id, status = await run_one(world, payload)
        assert reasons(status) == [expected]
        assert cause in last_line(await world.log(task_id))


async def test_a_listed_exit_code_is_retried(tmp_path: Path) -> None:
    payload = shell('test "$RUN_ID" = 1 || exit 75', onExitStatus={"retry": [75]})
    async with open_world(tmp_path) as world:
        task_id = await world.create(payload)
        await world.run_worker(world.config(numberOfTasks=2))
        expected = [("exception", "intermittent-task"), ("completed", "completed")]
        assert reasons(await world.queue.status(task_id)) == expected


@pytest.mark.parametrize(
    ("raises", "expected"),
    [
        ("task", ("failed", "failed")),
        ("malformed", ("exception", "malformed-payload")),
        ("resource", ("exception", "resource-unavailable")),
        ("worker", ("exception", "internal-error")),
        ("bug", ("exception", "internal-error")),
    ],
)
async def test_who_is_to_blame_is_reported_and_the_worker_goes_on(
    tmp_path: Path, raises: str, expected: tuple[str, str]
) -> None:
    async with open_world(tmp_path) as world:
        faulty = await world.create({"mock": {"raises": raises}})
        sound = await world.create({})
        assert await world.run_worker(world.config(numberOfTasks=2, **MOCK)) is StopReason.NUMBER_OF_TASKS
        assert reasons(await world.queue.status(faulty)) == [expected]
        assert reasons(await world.queue.status(sound)) == [("completed", "completed")]


async def test_a_worker_that_cannot_be_trusted_stops(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        task_id = await world.create({"mock": {"raises": "fatal"}})
        assert await world.run_worker(world.config(**MOCK)) is StopReason.FAULT
        assert reasons(await world.queue.status(task_id)) == [("exception", "internal-error")]


async def test_capacity_tasks_run_at_once_and_not_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        tasks = [await world.create({"mock": {"hangs": True}}) for _ in range(5)]
        async with world.worker(world.config(capacity=3, **MOCK)):
            for task_id in tasks[:3]:
                await world.until(task_id, "running")
            counts = await world.queue.client.call("taskQueueCounts", "proj-test/native", parse=dict)
            assert (counts["claimedTasks"], counts["pendingTasks"]) == (3, 2)


async def test_a_place_that_becomes_free_is_filled_without_delay(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        tasks = [await world.create({}) for _ in range(40)]
        with trio.fail_after(20):
            await world.run_worker(world.config(capacity=2, numberOfTasks=40, **MOCK))
        assert {(await world.queue.status(task)).state for task in tasks} == {"completed"}


async def test_two_hundred_tasks_complete_once_each(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        tasks = [await world.create({}) for _ in range(200)]
        await world.run_worker(world.config(capacity=16, numberOfTasks=200, **MOCK))
        for task in tasks:
            assert reasons(await world.queue.status(task)) == [("completed", "completed")]


async def test_two_workers_share_a_queue_and_no_run_is_run_twice(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        tasks = [await world.create({}) for _ in range(60)]
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                config = world.config(capacity=8, numberOfTasks=30, **MOCK)
                config.worker.work_dir.mkdir()
                nursery.start_soon(world.run_worker, config)
        statuses = [await world.queue.status(task) for task in tasks]
        assert [reasons(status) for status in statuses] == [[("completed", "completed")]] * 60
        assert len({status.runs[0].worker_id for status in statuses}) == 2


async def test_told_to_stop_a_worker_reports_and_the_task_is_retried_elsewhere(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("echo begun; sleep 1000"))
        async with world.worker(world.config()) as worker:
            await world.until(task_id, "running")
            worker.supervisor.stop()
            await worker.done.wait()
            assert worker.reason is StopReason.STOPPED
        status = await world.queue.status(task_id)
        assert reasons(status) == [("exception", "worker-shutdown"), ("pending", None)]
        assert "told to stop" in last_line(await world.log(task_id))


async def test_told_to_finish_a_worker_lets_its_tasks_end_and_claims_no_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.create({"mock": {"seconds": 1}})
        async with world.worker(world.config(shutdown={"onTerm": "finish"}, **MOCK)) as worker:
            await world.until(first, "running")
            second = await world.create({})
            worker.supervisor.stop()
            await worker.done.wait()
        assert (await world.queue.status(first)).state == "completed"
        assert (await world.queue.status(second)).state == "pending"


async def test_a_task_that_is_claimed_while_the_worker_stops_is_given_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.worker(world.config(**MOCK), answers_polls=False) as worker:
        await wait_until_polling(world)
        worker.supervisor.stop()
        task_id = await world.create({})
        await worker.done.wait()
        status = await world.queue.status(task_id)
        assert reasons(status) == [("exception", "worker-shutdown"), ("pending", None)]


async def test_an_idle_worker_beside_its_queue_stops_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.worker(world.config(**MOCK)) as worker:
        await wait_until_polling(world)
        worker.supervisor.stop()
        with trio.fail_after(5):
            await worker.done.wait()


async def wait_until_polling(world: World) -> None:
    """The queue knows a worker when it has polled."""
    with trio.fail_after(10):
        while True:
            changed = world.embedded.changed()
            if (await world.queue.client.call("listWorkers", "proj-test", "native", parse=dict))["workers"]:
                return
            await changed.wait()


async def test_a_long_task_keeps_its_claim_and_its_credentials_stay_fresh(tmp_path: Path) -> None:
    async with open_world(tmp_path, claim_timeout=timedelta(seconds=3)) as world:
        payload = shell("sleep 5; echo late > a", artifacts=[{"type": "file", "path": "a", "name": "public/a"}])
        task_id, status = await run_one(world, payload)
        assert reasons(status) == [("completed", "completed")]
        assert await world.artifact(task_id, "public/a") == b"late\n"


async def test_a_cancelled_task_is_ended_and_nothing_is_reported(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        task_id = await world.create(shell("echo begun; sleep 1000"))
        async with world.worker(world.config(numberOfTasks=1, cancelPollInterval=0.2)) as worker:
            await world.until(task_id, "running")
            await world.queue.cancel_task(task_id)
            await worker.done.wait()
        assert reasons(await world.queue.status(task_id)) == [("exception", "canceled")]
        assert "was cancelled" in last_line(await world.log(task_id))


async def test_a_reclaim_that_is_refused_ends_the_run_too(tmp_path: Path) -> None:
    async with open_world(tmp_path, claim_timeout=timedelta(seconds=6)) as world:
        task_id = await world.create(shell("echo begun; sleep 1000"))
        async with world.worker(world.config(numberOfTasks=1, cancelPollInterval=1000)) as worker:
            await world.until(task_id, "running")
            await world.queue.cancel_task(task_id)
            await worker.done.wait()
        assert "ended this run" in last_line(await world.log(task_id))


async def test_a_task_past_its_deadline_is_ended_and_its_log_is_kept(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        deadline = world.ports.now() + timedelta(seconds=2)
        task_id, status = await run_one(world, shell("echo begun; sleep 1000"), task={"deadline": deadline})
        assert reasons(status) == [("exception", "deadline-exceeded")]
        assert "deadline has passed" in last_line(await world.log(task_id))


async def test_nothing_of_the_workers_is_left_after_its_tasks(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        config = world.config(numberOfTasks=1)
        await world.create(shell("echo x > file"))
        await world.run_worker(config)
        files = [path.name for path in config.worker.work_dir.rglob("*") if path.is_file()]
        assert files == ["lock"]


async def test_credentials_are_in_no_log_and_in_no_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "worker")
    async with open_world(tmp_path) as world:
        task_id, _ = await run_one(world, shell("env; cat /proc/$PPID/cmdline /proc/$PPID/environ; exit 1"))
        log = await world.log(task_id)
        for secret in (world.credentials.access_token, "accessToken", "Authorization", '"signature"'):
            assert secret not in log
            assert secret not in caplog.text


async def test_an_outage_of_the_queue_is_said_once_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first answers of the queue are: unavailable, nonsense, and a connection that is cut off."""
    caplog.set_level(logging.INFO, "worker")
    answers = iter(
        [
            b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n<html>hi",
            b"HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n{",
        ]
    )
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        task_id = await world.create({})
        target = httpx.URL(world.embedded.root_url)

        async def proxy(client: trio.SocketStream) -> None:
            async with client:
                if answer := next(answers, None):
                    await client.receive_some()
                    await client.send_all(answer)
                    return
                async with (
                    await trio.open_tcp_stream(target.host, target.port or 80) as server,
                    trio.open_nursery() as both,
                ):
                    both.start_soon(copy, server, client)
                    await copy(client, server)
                    both.cancel_scope.cancel()

        listeners = await nursery.start(trio.serve_tcp, proxy, 0)
        port = listeners[0].socket.getsockname()[1]
        config = world.config(numberOfTasks=1, **MOCK)
        # The queue signs for its own address, so the worker calls it by that name: only the port differs.
        await run_worker(config, world.ports, root_url=f"http://127.0.0.1:{port}", credentials=world.credentials)
        assert (await world.queue.status(task_id)).state == "completed"
        nursery.cancel_scope.cancel()
    told = [record.getMessage() for record in caplog.records if record.name == "worker.queue"]
    assert len(told) == 2
    assert "queue.claimWork does not work" in told[0]
    assert "queue.claimWork works again" in told[1]


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for chunk in source:
        await sink.send_all(chunk)


async def test_the_settings_in_the_log_name_the_worker(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        task_id, _ = await run_one(world, shell("true"), workerId="me-myself")
        settings = (await world.log(task_id)).splitlines()[0].partition("settings: ")[2]
        assert json.loads(settings)["workerId"] == "me-myself"


class BrokenPorts(Ports):
    """A machine on which `breaks` goes wrong, as `error` says."""

    def __init__(self, breaks: Callable[..., object], error: OSError) -> None:
        super().__init__()
        self.breaks = breaks
        self.error = error

    async def run_sync(self, function: Callable[..., T], /, *args: object) -> T:
        if function is self.breaks:
            await trio.lowlevel.checkpoint()
            raise self.error
        return await super().run_sync(function, *args)


class SkewedPorts(Ports):
    """A machine whose clock is off by an hour."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


async def run_with(world: World, ports: Ports, config: Config) -> StopReason:
    return await run_worker(config, ports, root_url=world.embedded.root_url, credentials=world.credentials)


async def test_a_log_that_the_disk_does_not_take_any_more_is_stored_all_the_same(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        task_id = await world.create({})
        full = BrokenPorts(os.pwrite, OSError(errno.ENOSPC, "No space left on device"))
        await run_with(world, full, world.config(numberOfTasks=1, **MOCK))
        assert reasons(await world.queue.status(task_id)) == [("completed", "completed")]
        assert "Task Duration: " in await world.log(task_id)


async def test_a_clock_that_is_off_by_an_hour_hurts_no_task(tmp_path: Path) -> None:
    async with open_world(tmp_path, claim_timeout=timedelta(seconds=6)) as world:
        task_id = await world.create({"mock": {"seconds": 5}})
        await run_with(world, SkewedPorts(), world.config(numberOfTasks=1, **MOCK))
        assert reasons(await world.queue.status(task_id)) == [("completed", "completed")]


async def test_a_refusal_is_told_once_and_not_kept_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "worker")
    async with open_world(tmp_path) as world:
        wrong = Credentials(world.credentials.client_id, "wrong")
        config = world.config(idleTimeout=2, **MOCK)
        await run_worker(config, world.ports, root_url=world.embedded.root_url, credentials=wrong)
    told = [record.getMessage() for record in caplog.records if "claimWork" in record.getMessage()]
    assert len(told) == 1
    assert "401" in told[0]


async def test_a_task_that_ended_by_itself_before_the_worker_was_told_to_stop_is_not_run_again(tmp_path: Path) -> None:
    stopped: list[Supervisor] = []

    class StopsLate(Plugin[Document, Slice]):
        """Tells the worker to stop when the task's own part is over."""

        @asynccontextmanager
        async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
            yield LateHooks()

    class LateHooks(TaskHooks):
        async def stopped(self, result: Result | None) -> Verdict:
            stopped[0].stop()
            return COMPLETED

    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        task_id = await world.create({})

        async def run(*, task_status: trio.TaskStatus[Supervisor]) -> None:
            await run_worker(
                world.config(**MOCK),
                world.ports,
                root_url=world.embedded.root_url,
                credentials=world.credentials,
                extra_plugins={"stopsLate": StopsLate},
                on_stop=world.embedded.answer_polls,
                task_status=task_status,
            )

        stopped.append(await nursery.start(run))
        assert reasons(await world.resolved(task_id)) == [("completed", "completed")]


async def test_a_task_may_name_its_artifact_like_the_log_and_fails_and_the_log_is_kept(tmp_path: Path) -> None:
    payload = shell("echo x > a", artifacts=[{"type": "file", "path": "a", "name": "public/logs/live.log"}])
    async with open_world(tmp_path) as world:
        task_id, status = await run_one(world, payload)
        assert reasons(status) == [("failed", "failed")]
        assert "Executing command 0" in await world.log(task_id)


async def test_a_task_cannot_hurt_the_worker_by_what_it_leaves_on_disk(tmp_path: Path) -> None:
    deep = "i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done"
    async with open_world(tmp_path) as world:
        config = world.config(numberOfTasks=1)
        task_id = await world.create(shell(deep))
        await world.run_worker(config)
        assert reasons(await world.queue.status(task_id)) == [("completed", "completed")]
        assert list((config.worker.work_dir / "tasks").iterdir()) == []


async def test_variables_that_no_shell_could_name_reach_the_task(tmp_path: Path) -> None:
    payload = {"command": [["env"]], "env": {"FOO.BAR": "1", "my-var": "2"}, "maxRunTime": 60}
    async with open_world(tmp_path) as world:
        task_id, _ = await run_one(world, payload)
        lines = (await world.log(task_id)).splitlines()
        assert {"FOO.BAR=1", "my-var=2"} <= set(lines)
