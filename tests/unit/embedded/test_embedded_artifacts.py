"""Artifacts of all five kinds, in virtual time."""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta
from typing import Any

import httpx
import pytest
import trio
from embedded_world import Api, virtual_queue
from trio.testing import MockClock

from worker.embedded.times import to_wire

TEXT = "text/plain"


async def running(api: Api, **changes: Any) -> str:
    task_id = await api.create(**changes)
    await api.claim()
    return task_id


async def make(api: Api, task_id: str, name: str, kind: str, run_id: int = 0, **details: Any) -> httpx.Response:
    content_type = {} if kind in {"error", "link"} else {"contentType": TEXT}
    expires = to_wire(api.ports.now().replace(hour=12, minute=0))
    body = {"storageType": kind, "expires": expires, **content_type, **details}
    return await api.call("Queue", "createArtifact", task_id, run_id, name, body)


async def upload(api: Api, url: str, content: bytes, **headers: str) -> httpx.Response:
    return await api.as_client(None).send("PUT", url, content, **{"Content-Type": TEXT, **headers})


async def get(api: Api, task_id: str, name: str, run_id: int = 0) -> httpx.Response:
    return await api.call("Queue", "getArtifact", task_id, run_id, name)


async def test_an_upload_comes_back_as_it_was_sent(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        created = (await make(api, task_id, "public/a b%%%.txt", "s3")).json()
        assert created["contentType"] == TEXT
        early = await get(api, task_id, "public/a b%%%.txt")
        assert early.status_code == 303
        assert (await api.send("GET", early.json()["url"])).status_code == 404
        content = bytes(range(256)) * 5000
        assert (await upload(api, created["putUrl"], content, **{"Content-Encoding": "x-test"})).status_code == 200
        anybody = api.as_client(None)
        answer = await get(anybody, task_id, "public/a b%%%.txt")
        assert answer.headers["x-taskcluster-artifact-storage-type"] == "s3"
        assert answer.headers["location"] == answer.json()["url"]
        fetched = await anybody.send("GET", answer.json()["url"])
        assert fetched.content == content
        assert (fetched.headers["content-type"], fetched.headers["content-encoding"]) == (TEXT, "x-test")
        etag = (await anybody.send("GET", answer.json()["url"])).headers["etag"]
        assert (await anybody.send("GET", answer.json()["url"], b"", **{"If-None-Match": etag})).status_code == 304
        part = await anybody.send("GET", answer.json()["url"], Range="bytes=10-19")
        assert (part.status_code, part.content) == (206, content[10:20])
        assert (await anybody.send("GET", answer.json()["url"], Range="bytes=-5")).content == content[-5:]
        assert (await anybody.send("GET", answer.json()["url"], Range="bytes=9999999-")).status_code == 416
        head = await anybody.send("HEAD", answer.json()["url"])
        assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))


async def test_presigned_urls_are_for_one_purpose_and_a_while(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        url = (await make(api, task_id, "public/a", "s3")).json()["putUrl"]
        assert (await upload(api, url, b"x", **{"Content-Type": "text/html"})).status_code == 403
        assert (await upload(api, url.replace("signature=", "signature=0"), b"x")).status_code == 403
        assert (await upload(api, url.replace("expires=1", "expires=2"), b"x")).status_code == 403
        assert (await api.send("GET", url)).status_code == 403
        assert (await api.send("DELETE", url)).status_code == 405
        await trio.sleep(46 * 60)
        assert (await upload(api, url, b"x")).status_code == 403


async def test_the_rules_of_creating_an_artifact_again(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        url = {"url": "https://example.com/1"}
        later = {"expires": to_wire(api.ports.now() + timedelta(hours=13))}
        steps: list[tuple[str, str, dict[str, Any], int]] = [
            ("a", "s3", {}, 200),
            ("a", "s3", {}, 200),
            ("a", "s3", later, 200),
            ("a", "s3", {}, 409),
            ("a", "s3", {**later, "contentType": "text/html"}, 409),
            ("a", "reference", url, 409),
            ("r", "reference", url, 200),
            ("r", "reference", {"url": "https://example.com/2"}, 200),
            ("r", "link", {"artifact": "a"}, 200),
            ("r", "link", {"artifact": "a"}, 200),
            ("r", "link", {"artifact": "b"}, 409),
            ("r", "reference", url, 409),
            ("e", "error", {"reason": "file-missing-on-worker", "message": "m"}, 200),
            ("e", "error", {"reason": "file-missing-on-worker", "message": "m"}, 200),
            ("e", "error", {"reason": "file-missing-on-worker", "message": "n"}, 409),
            ("x", "error", {"reason": "bad-weather", "message": "m"}, 400),
            ("x", "error", {"reason": "file-missing-on-worker", "message": "m" * 4097}, 400),
            ("x", "s3", {"expires": to_wire(api.ports.now() + timedelta(days=2))}, 400),
            ("x", "azure", {}, 400),
            ("x", "reference", {"url": "https://example.com/\r\nx: y"}, 400),
            ("x", "reference", {"url": "nowhere"}, 400),
            ("x", "s3", {"contentType": "text/plain\r\nx: y"}, 400),
            ("schrödinger", "s3", {}, 400),
        ]
        for name, kind, details, expected in steps:
            answer = await make(api, task_id, name, kind, **details)
            assert answer.status_code == expected, (name, kind, details, answer.text)


async def test_links_references_and_errors(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        await make(api, task_id, "r", "reference", url="https://example.com/log")
        await make(api, task_id, "l", "link", artifact="r")
        await make(api, task_id, "public/hidden", "link", artifact="r")
        await make(api, task_id, "c1", "link", artifact="c2")
        await make(api, task_id, "c2", "link", artifact="c1")
        assert (await make(api, task_id, "nowhere", "link", artifact="missing")).status_code == 200
        error: dict[str, Any] = {"reason": "file-missing-on-worker", "message": "gone"}
        await make(api, task_id, "e", "error", **error)
        answer = await get(api, task_id, "l")
        assert (answer.status_code, answer.headers["location"]) == (303, "https://example.com/log")
        assert answer.json() == {"storageType": "reference", "url": "https://example.com/log"}
        assert (await get(api, task_id, "c1")).status_code == 400
        assert (await get(api, task_id, "nowhere")).status_code == 404
        answer = await get(api, task_id, "e")
        assert (answer.status_code, answer.json()) == (424, error)
        content = (await api.call("Queue", "artifact", task_id, 0, "e")).json()
        assert content == {"storageType": "error", **error}
        assert (await get(api.as_client(None), task_id, "public/hidden")).status_code == 403
        assert (await get(api.as_client(None), task_id, "r")).status_code == 403
        listed = (await api.call("Queue", "listArtifacts", task_id, 0)).json()["artifacts"]
        assert [artifact["name"] for artifact in listed] == ["c1", "c2", "e", "l", "nowhere", "public/hidden", "r"]
        assert (await api.call("Queue", "latestArtifactInfo", task_id, "l")).json()["storageType"] == "link"


@pytest.mark.parametrize("method", ["dataInline", "putUrl"])
async def test_objects(autojump_clock: MockClock, method: str) -> None:
    async with virtual_queue() as api:
        task_id = await running(api, projectId="project")
        created = (await make(api, task_id, "public/o", "object")).json()
        assert (await make(api, task_id, "public/o", "object")).json()["uploadId"] == created["uploadId"]
        service = api.as_client(created["credentials"])
        name, content = created["name"], b"content"
        upload_of = {"projectId": created["projectId"], "uploadId": created["uploadId"]}
        proposals = {
            "dataInline": {"contentType": TEXT, "objectData": base64.b64encode(content).decode()},
            "putUrl": {"contentType": TEXT, "contentLength": len(content)},
        }
        body = {**upload_of, "expires": created["expires"], "proposedUploadMethods": {method: proposals[method]}}
        assert (await service.call("Object", "createUpload", "t/other", body)).status_code == 403
        answer = (await service.call("Object", "createUpload", name, body)).json()["uploadMethod"]
        if method == "putUrl":
            early = await service.call("Object", "finishUpload", name, upload_of)
            assert early.status_code == 400
            assert (await upload(api, answer["putUrl"]["url"], content)).status_code == 200
        other = {**body, "uploadId": api.ports.slug()}
        assert (await service.call("Object", "createUpload", name, other)).status_code == 409
        wrong = {**upload_of, "hashes": {"sha256": "0" * 64}}
        assert (await service.call("Object", "finishUpload", name, wrong)).status_code == 400
        hashes = {"sha256": hashlib.sha256(content).hexdigest()}
        for _ in range(2):
            finished = await service.call("Object", "finishUpload", name, {**upload_of, "hashes": hashes})
            assert (finished.status_code, finished.content) == (204, b"")
        assert (await get(api, task_id, "public/o")).status_code == 404
        for _ in range(2):
            finished = await api.call(
                "Queue", "finishArtifact", task_id, 0, "public/o", {"uploadId": created["uploadId"]}
            )
            assert (finished.status_code, finished.content) == (204, b"")
        answer = await get(api.as_client(None), task_id, "public/o")
        assert (await api.send("GET", answer.json()["url"])).content == content
        access = (await api.call("Queue", "latestArtifact", task_id, "public/o")).json()
        reader = api.as_client(access["credentials"])
        wanted = {"acceptDownloadMethods": {"getUrl": True}}
        download = (await reader.call("Object", "startDownload", access["name"], wanted)).json()
        assert download["hashes"] == hashes
        assert (await api.send("GET", download["url"])).content == content


async def test_only_objects_are_finished(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        await make(api, task_id, "a", "s3")
        body = {"uploadId": api.ports.slug()}
        assert (await api.call("Queue", "finishArtifact", task_id, 0, "a", body)).status_code == 400
        assert (await api.call("Queue", "finishArtifact", task_id, 0, "b", body)).status_code == 404


async def test_when_a_run_takes_artifacts(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await api.create()
        assert (await make(api, task_id, "a", "s3")).status_code == 409
        await api.claim()
        assert (await make(api, task_id, "a", "s3")).status_code == 200
        await api.call("Queue", "cancelTask", task_id)
        await trio.sleep(24 * 60)
        assert (await make(api, task_id, "b", "s3")).status_code == 200
        await trio.sleep(2 * 60)
        assert (await make(api, task_id, "c", "s3")).status_code == 409
        done = await running(api)
        await api.call("Queue", "reportCompleted", done, 0)
        assert (await make(api, done, "a", "s3")).status_code == 409


async def test_an_artifact_expires(autojump_clock: MockClock) -> None:
    async with virtual_queue() as api:
        task_id = await running(api)
        expires = to_wire(api.ports.now() + timedelta(minutes=30))
        created = (await make(api, task_id, "public/a", "s3", expires=expires)).json()
        await upload(api, created["putUrl"], b"x")
        url = (await get(api, task_id, "public/a")).json()["url"]
        await trio.sleep(31 * 60)
        assert (await get(api, task_id, "public/a")).status_code == 410
        assert (await api.send("GET", url)).status_code == 404
        assert (await api.call("Queue", "listArtifacts", task_id, 0)).json()["artifacts"] == []
