"""The embedded queue on a socket, with the official client, as its users have it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import taskcluster
import taskcluster.download
import taskcluster.exceptions
import taskcluster.upload
import trio
from embedded_world import POOL, WORKER, definition, in_thread, official, real_queue
from mohawk import Sender

from worker.embedded import open_embedded_queue
from worker.ports import Ports

SERVER = """
import sys
from pathlib import Path
import trio
from worker.embedded import open_embedded_queue
from worker.ports import Ports

async def main() -> None:
    async with open_embedded_queue(Ports(), data=Path(sys.argv[1])) as queue:
        print(queue.root_url, queue.credentials.client_id, queue.credentials.access_token, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=2)


def scenario(queue: Any) -> None:
    client = official(queue)
    task_id = taskcluster.slugId()
    client.createTask(task_id, definition(datetime.now(UTC)))
    (claim,) = client.claimWork(POOL, {**WORKER, "tasks": 32})["tasks"]
    worker = official(queue, credentials=claim["credentials"])
    artifact = {"storageType": "s3", "contentType": "text/plain", "expires": soon()}
    url = worker.createArtifact(task_id, 0, "public/logs/live_backing.log", artifact)["putUrl"]
    content = os.urandom(3_000_000)
    requests.put(url, data=content, headers={"Content-Type": "text/plain"}, timeout=10).raise_for_status()
    worker.createArtifact(
        task_id,
        0,
        "public/logs/live.log",
        {"storageType": "link", "artifact": "public/logs/live_backing.log", "expires": soon()},
    )
    worker.reclaimTask(task_id, 0)
    assert worker.reportCompleted(task_id, 0)["status"]["state"] == "completed"
    anybody = taskcluster.Queue({"rootUrl": queue.root_url})
    log = requests.get(anybody.buildUrl("getLatestArtifact", task_id, "public/logs/live.log"), timeout=10)
    assert log.content == content
    signed = client.buildSignedUrl("getLatestArtifact", task_id, "public/logs/live.log")
    assert requests.get(signed, timeout=10).status_code == 200
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as refused:
        anybody.cancelTask(task_id)
    assert refused.value.status_code == 403
    with pytest.raises(taskcluster.exceptions.TaskclusterAuthFailure):
        official(queue, credentials={"clientId": "nobody", "accessToken": "x"}).cancelTask(task_id)


async def test_the_official_client_sees_a_queue() -> None:
    async with real_queue() as queue:
        await in_thread(scenario, queue)


async def test_objects_by_the_official_upload() -> None:
    async with real_queue() as queue:

        def work() -> None:
            client = official(queue)
            task_id = taskcluster.slugId()
            client.createTask(task_id, definition(datetime.now(UTC)))
            client.claimWork(POOL, {**WORKER, "tasks": 1})
            for size in (100, 100_000):
                name, content = f"private/{size}", os.urandom(size)
                wanted = {"storageType": "object", "contentType": "text/plain", "expires": soon()}
                created = client.createArtifact(task_id, 0, name, wanted)
                taskcluster.upload.uploadFromBuf(
                    projectId=created["projectId"],
                    name=created["name"],
                    contentType="text/plain",
                    contentLength=size,
                    uploadId=created["uploadId"],
                    expires=soon(),
                    data=content,
                    maxRetries=0,
                    objectService=official(queue, "Object", credentials=created["credentials"]),
                )
                client.finishArtifact(task_id, 0, name, {"uploadId": created["uploadId"]})
                found, _ = taskcluster.download.downloadArtifactToBuf(
                    taskId=task_id, runId=0, name=name, maxRetries=0, queueService=client
                )
                assert bytes(found) == content

        await in_thread(work)


async def test_two_workers_race_and_share_no_run() -> None:
    count = 40
    taken: Counter[tuple[str, int]] = Counter()

    def create(client: Any) -> None:
        for _ in range(count):
            client.createTask(taskcluster.slugId(), definition(datetime.now(UTC)))

    def work(client: Any, name: str) -> None:
        """Leaves before the last tasks: nobody is left to poll in vain."""
        request = {**WORKER, "workerId": name, "tasks": 2}
        for _ in range(count // 4):
            for claim in client.claimWork(POOL, request)["tasks"]:
                taken[claim["status"]["taskId"], claim["runId"]] += 1
                client.reportCompleted(claim["status"]["taskId"], claim["runId"])

    async with real_queue() as queue:
        client = official(queue)
        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(in_thread, work, client, name)
            nursery.start_soon(in_thread, create, client)
        assert set(taken.values()) == {1}
        assert len({task_id for task_id, _ in taken}) == len(taken) >= count // 2


async def test_a_client_that_hangs_up_loses_no_task() -> None:
    async with real_queue() as queue:
        host, _, port = queue.root_url.removeprefix("http://").partition(":")
        body = json.dumps({**WORKER, "tasks": 1}).encode()
        url = f"{queue.root_url}/api/queue/v1/claim-work/{POOL.replace('/', '%2F')}"
        header = _sign(queue, url, body)
        stream = await trio.open_tcp_stream(host, int(port))
        path = url.removeprefix(queue.root_url)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: {header}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await stream.send_all(head.encode() + body)
        client = official(queue)
        await _until_known(client)
        await stream.aclose()
        with trio.fail_after(10):
            await queue.wait_idle()
        await in_thread(client.createTask, taskcluster.slugId(), definition(datetime.now(UTC)))
        claims = await in_thread(client.claimWork, POOL, {**WORKER, "workerId": "other", "tasks": 1})
        assert len(claims["tasks"]) == 1


async def _until_known(client: Any) -> None:
    """The worker is known as soon as its poll has looked for tasks."""
    with trio.fail_after(10):
        while not (await in_thread(client.listWorkers, *POOL.split("/")))["workers"]:
            pass


def _sign(queue: Any, url: str, body: bytes) -> str:
    key = {"id": queue.credentials.client_id, "key": queue.credentials.access_token, "algorithm": "sha256"}
    return str(Sender(key, url, "POST", content=body, content_type="application/json").request_header)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_polls_are_answered_when_the_queue_stops(cancelled: bool) -> None:
    answers: list[Any] = []

    def poll(client: Any) -> None:
        answers.append(client.claimWork(POOL, {**WORKER, "tasks": 1}))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with real_queue() as queue:
                client = official(queue)
                nursery.start_soon(in_thread, poll, client)
                await _until_known(client)
                if cancelled:
                    scope.cancel()
                    await trio.sleep_forever()
    assert answers == [{"tasks": []}]


async def test_what_the_block_raises_is_raised_as_it_is() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_embedded_queue(Ports()):
            raise LookupError("mine")


async def test_data_survive_a_kill(tmp_path: Path) -> None:
    data = tmp_path / "data"
    task_id = taskcluster.slugId()
    content = os.urandom(100_000)

    def before(server: subprocess.Popen[str]) -> tuple[dict[str, str], dict[str, str]]:
        credentials, root_url = _hello(server)
        client = taskcluster.Queue({"rootUrl": root_url, "credentials": dict(credentials)})
        client.createTask(task_id, definition(datetime.now(UTC)))
        (claim,) = client.claimWork(POOL, {**WORKER, "tasks": 1})["tasks"]
        artifact = {"storageType": "s3", "contentType": "text/plain", "expires": soon()}
        url = client.createArtifact(task_id, 0, "public/a", artifact)["putUrl"]
        requests.put(url, data=content, headers={"Content-Type": "text/plain"}, timeout=10).raise_for_status()
        return credentials, claim["credentials"]

    def after(server: subprocess.Popen[str], credentials: dict[str, str], of_run: dict[str, str]) -> None:
        again, root_url = _hello(server)
        assert again == credentials
        client = taskcluster.Queue({"rootUrl": root_url, "credentials": dict(credentials)})
        fetched = requests.get(client.buildUrl("getArtifact", task_id, 0, "public/a"), timeout=10)
        assert fetched.content == content
        worker = taskcluster.Queue({"rootUrl": root_url, "credentials": dict(of_run)})
        assert worker.reportCompleted(task_id, 0)["status"]["state"] == "completed"

    with _server(data) as server:
        known = await in_thread(before, server)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
    stray = data / "artifacts" / "broken.partial"
    stray.write_bytes(b"an upload that was cut off")
    with _server(data) as server:
        await in_thread(after, server, *known)
        os.kill(server.pid, signal.SIGKILL)
    assert not stray.exists()
    assert (data / "queue.sqlite3").stat().st_mode & 0o077 == 0


def _server(data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER, str(data)], stdout=subprocess.PIPE, text=True)


def _hello(server: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    assert server.stdout is not None
    root_url, client_id, access_token = server.stdout.readline().split()
    return {"clientId": client_id, "accessToken": access_token}, root_url
