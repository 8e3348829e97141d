"""The operator's own bucket, on servers that speak S3, and what breaks on the way to them."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trio
from artifacts_world import World, file, open_world
from pydantic import ValidationError
from s3_servers import BUCKET, Server, running

from engines.base import SandboxFile
from plugins.artifacts.bucketconfig import SMALLEST_PART, BucketConfig
from plugins.artifacts.plugin import ArtifactsConfig
from plugins.artifacts.s3 import S3, base_url_of, make_client
from worker.model import COMPLETED, Severity
from worker.ports import Ports
from worker.queue.errors import Conflict, QueueError, Unavailable
from worker.queue.models import ReferenceArtifactRequest
from worker.queue.retry import RetryPolicy
from worker.testing.faultyproxy import Break, Fault, FaultyProxy, open_faulty_proxy
from worker.testing.results import FolderResult
from worker.testing.runs import TASK_ID

PART = SMALLEST_PART
BIG = os.urandom(64 * 1024) * (2 * PART // 65536) + b"the rest"  # three parts


@pytest.fixture(scope="module", params=["moto", "s3rver"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@asynccontextmanager
async def open_bucket_world(
    folder: Path, server: Server, **more: Any
) -> AsyncGenerator[tuple[World, FaultyProxy], None]:
    """Uploads go through a proxy; what is stored is looked at without it."""
    server.empty()
    async with open_world(folder) as world, open_faulty_proxy(server.port) as proxy:
        section = server.config(endpoint=proxy.url, **more)
        world.config = ArtifactsConfig.model_validate({"store": {"s3": section}})
        yield world, proxy


def stored(server: Server, name: str) -> tuple[bytes, dict[str, Any]]:
    found = server.client.get_object(Bucket=BUCKET, Key=f"{TASK_ID}/0/{name}")
    return found["Body"].read(), found


def keys(server: Server) -> list[str]:
    return [found["Key"] for found in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def uploads_left(server: Server) -> int:
    if server.name == "s3rver":
        return 0  # it neither lists nor aborts them
    return len(server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def references(world: World) -> dict[str, ReferenceArtifactRequest]:
    return {name: made for name, made in world.queue.created if isinstance(made, ReferenceArtifactRequest)}


def a(method: bytes, query: bytes = b"") -> Any:
    return lambda request: request.method == method and query in request.target


async def test_a_small_file_is_one_object_and_a_reference(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        world.write("a.log", b"line\n" * 100)
        assert await world.upload(file("a.log", name="public/a b#1.log")) == COMPLETED
        body, found = stored(server, "public/a b#1.log")
        assert gzip.decompress(body) == b"line\n" * 100
        assert (found["ContentType"], found["ContentEncoding"]) == ("text/plain", "gzip")
        assert found["Metadata"]["sha256"] == hashlib.sha256(body).hexdigest()
        assert found["Metadata"]["expires"] == "2026-02-01T12:00:00.000Z"
        reference = references(world)["public/a b#1.log"]
        assert reference.url == f"{proxy.url}/{BUCKET}/{TASK_ID}/0/public/a%20b%231.log"
        assert len(proxy.seen) == 1
        assert world.storage.puts == {}


@pytest.mark.parametrize("checksum", ["sha256", "md5"])
async def test_a_large_file_is_sent_in_parts(tmp_path: Path, server: Server, checksum: str) -> None:
    async with open_bucket_world(tmp_path, server, checksum=checksum) as (world, proxy):
        world.write("big.bin", BIG)
        item = file("big.bin", name="public/big", contentEncoding="identity")
        assert await world.upload(item) == COMPLETED
        body, found = stored(server, "public/big")
        assert body == BIG
        assert found["ContentType"] == "application/octet-stream"
        assert [line.split()[0] for line in proxy.seen] == ["POST", "PUT", "PUT", "PUT", "POST"]
        assert uploads_left(server) == 0


async def test_an_empty_file_is_an_object(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, _):
        world.write("a", b"")
        assert await world.upload(file("a", name="public/a", contentEncoding="identity")) == COMPLETED
        assert stored(server, "public/a")[0] == b""


async def test_options_are_those_of_the_config(tmp_path: Path, server: Server) -> None:
    more = {"storageClass": "STANDARD_IA", "serverSideEncryption": "AES256", "prefix": "ours/"}
    async with open_bucket_world(tmp_path, server, publicUrl="https://cdn.example.com/x/", **more) as (world, _):
        world.write("a")
        world.write("big", BIG)
        items = [file(name, name=f"public/{name}", contentEncoding="identity") for name in ("a", "big")]
        assert await world.upload(*items) == COMPLETED
        for name in ("a", "big"):
            key = f"ours/{TASK_ID}/0/public/{name}"
            found = server.client.head_object(Bucket=BUCKET, Key=key)
            if server.name == "moto":
                assert (found["StorageClass"], found["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")
            assert references(world)[f"public/{name}"].url == f"https://cdn.example.com/x/{key}"


async def test_where_a_private_artifact_is_cannot_be_guessed(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, _):
        world.write("a", b"secret")
        assert await world.upload(file("a", name="private/a")) == COMPLETED
        (key,) = keys(server)
        task, run, token, name = key.split("/", 3)
        assert (task, run, name) == (TASK_ID, "0", "private/a")
        assert len(token) >= 20
        assert references(world)["private/a"].url.endswith(f"/{token}/private/a")


FAULTS = {
    "reset at 0": Fault(Break.RESET),
    "reset at 50": Fault(Break.RESET, 0.5),
    "answer reset": Fault(Break.RESET, 1),
    "stall at 50": Fault(Break.STALL, 0.5),
    "500": Fault(Break.STATUS, 1, 500),
    "503": Fault(Break.STATUS, 0, 503, (("Retry-After", "0"),)),
    "expired": Fault(Break.STATUS, 1, 400, body=b"<Error><Code>ExpiredToken</Code></Error>"),
    "truncated": Fault(Break.LOST),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_part_that_fails_is_repeated_alone(
    tmp_path: Path, server: Server, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bucket_world(tmp_path, server, stall=1) as (world, proxy):
        proxy.break_next(a(b"PUT", b"partNumber=2"), fault)
        world.write("big", BIG)
        assert await world.upload(file("big", name="public/big", contentEncoding="identity")) == COMPLETED
        assert stored(server, "public/big")[0] == BIG
        assert proxy.broken == 1
        assert [line.split()[0] for line in proxy.seen].count("PUT") == 4
        [told] = [record.getMessage() for record in caplog.records if record.name == "plugins.artifacts.s3"]
        assert told.startswith(f"{TASK_ID}/0/public/big: attempt 1 of s3.upload_part: ")


@pytest.mark.parametrize("step", [b"uploads", b"uploadId="])
@pytest.mark.parametrize("fault", [Fault(Break.RESET), Fault(Break.STATUS, 1, 503)])
async def test_other_calls_are_repeated_too(tmp_path: Path, server: Server, fault: Fault, step: bytes) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        proxy.break_next(a(b"POST", step), fault)
        world.write("big", BIG)
        assert await world.upload(file("big", name="public/big", contentEncoding="identity")) == COMPLETED
        assert stored(server, "public/big")[0] == BIG


NO_SUCH_UPLOAD = Fault(Break.STATUS, 1, 404, body=b"<Error><Code>NoSuchUpload</Code></Error>")
COMPLETIONS = {
    "lost": ([Fault(Break.RESET, 1)], []),
    "lost, and then a look at it fails": ([Fault(Break.RESET, 1), NO_SUCH_UPLOAD], [Fault(Break.RESET)]),
    "lost, and later than the look": (
        [Fault(Break.RESET, 1), NO_SUCH_UPLOAD],
        [Fault(Break.STATUS, 1, 404), Fault(Break.STATUS, 1, 503)],
    ),
}


@pytest.mark.parametrize(("completions", "looks"), COMPLETIONS.values(), ids=COMPLETIONS)
async def test_an_upload_whose_completion_was_not_heard_of_is_complete(
    tmp_path: Path, server: Server, completions: list[Fault], looks: list[Fault]
) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        for fault in completions:
            proxy.break_next(a(b"POST", b"uploadId="), fault)
        for fault in looks:
            proxy.break_next(a(b"HEAD"), fault)
        world.write("big", BIG)
        assert await world.upload(file("big", name="public/big", contentEncoding="identity")) == COMPLETED
        assert stored(server, "public/big")[0] == BIG


async def test_a_refusal_costs_a_resource_and_leaves_nothing(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        refusal = Fault(Break.STATUS, 1, 403, body=b"<Error><Code>AccessDenied</Code></Error>")
        proxy.break_next(a(b"PUT", b"partNumber=2"), refusal)
        world.write("big", BIG)
        world.write("small")
        verdict = await world.upload(file("big", contentEncoding="identity"), file("small", name="public/small"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert verdict.message == "artifact big was not uploaded: s3.upload_part: 403 AccessDenied"
        assert list(references(world)) == ["public/small"]
        assert keys(server) == [f"{TASK_ID}/0/public/small"]
        assert uploads_left(server) == 0


@pytest.mark.parametrize("changed", ["accessKeyId", "secretAccessKey"])
async def test_bad_keys_are_told(tmp_path: Path, server: Server, changed: str) -> None:
    if (server.name, changed) == ("s3rver", "secretAccessKey"):
        pytest.skip("s3rver does not look at signatures of version 4")
    async with open_bucket_world(tmp_path, server, **{changed: "WRONG-ONE"}) as (world, _):
        world.write("a")
        verdict = await world.upload(file("a", name="public/a"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        code = {"accessKeyId": "InvalidAccessKeyId", "secretAccessKey": "SignatureDoesNotMatch"}[changed]
        assert verdict.message.endswith(f"s3.put_object: 403 {code}")
        assert "WRONG-ONE" not in world.log
        assert references(world) == {}


async def test_where_no_connection_is_made_it_is_tried_again() -> None:
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        keys = {"accessKeyId": "any", "secretAccessKey": "any", "region": "us-east-1"}
        section = {"bucket": BUCKET, "endpoint": f"http://127.0.0.1:{deaf.getsockname()[1]}", **keys}
        with closing(make_client(BucketConfig.model_validate(section))) as client:
            s3 = S3(Ports(), client, BUCKET, RetryPolicy(attempts=2, first=0))
            with pytest.raises(Unavailable) as caught:
                await s3.call("put_object", b"x", Key="private/not-to-be-guessed")
    assert str(caught.value) == (
        "s3.put_object: no usable answer in 2 attempts: s3.put_object: EndpointConnectionError"
    )


async def test_what_boto3_says_of_a_call_is_not_told(server: Server) -> None:
    s3 = S3(Ports(), server.client, BUCKET)
    with pytest.raises(QueueError) as caught:
        await s3.call("put_object", b"x", Key="private/not-to-be-guessed", Metadata={"not": "ascïi"})
    assert str(caught.value) == "s3.put_object: ParamValidationError"


class FickleFile(SandboxFile):
    """Says that it has as many bytes as `BIG`, and has `length`."""

    size = len(BIG)

    def __init__(self, length: int) -> None:
        self.left = length

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        part = bytes(min(max_bytes, self.left))
        self.left -= len(part)
        return part


class FickleResult(FolderResult):
    def __init__(self, folder: Path, length: int) -> None:
        super().__init__(folder)
        self.length = length

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        if path == "fickle":
            yield FickleFile(self.length)
        else:
            async with super().open(path) as real:
                yield real


@pytest.mark.parametrize("more", [-1, 1])
async def test_a_file_that_grows_or_shrinks_hurts_its_own_artifact_only(
    tmp_path: Path, server: Server, more: int
) -> None:
    async with open_bucket_world(tmp_path, server) as (world, _):
        world.write("calm")
        items = [file(name, name=f"public/{name}", contentEncoding="identity") for name in ("fickle", "calm")]
        verdict = await world.upload(*items, result=FickleResult(world.task, len(BIG) + more))
        assert verdict.severity is Severity.FAILED
        assert "fickle changed its length" in verdict.message
        assert world.errors == {"public/fickle": "invalid-resource-on-worker"}
        assert keys(server) == [f"{TASK_ID}/0/public/calm"]
        assert uploads_left(server) == 0


async def test_cancellation_takes_back_what_was_begun_at_once(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        world.write("big", BIG)
        arrived = trio.Event()

        def wanted(request: h11.Request) -> bool:
            if b"partNumber=3" in request.target:
                arrived.set()
            return False

        proxy.break_next(wanted, Fault(Break.STALL))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.upload, file("big", name="public/big", contentEncoding="identity"))
            with trio.fail_after(10):
                await arrived.wait()
                nursery.cancel_scope.cancel()
        assert references(world) == {}
        assert keys(server) == []
        assert uploads_left(server) == 0


SILENT = {"all": a(b"POST"), "parts and their end": lambda request: request.method != b"POST"}


@pytest.mark.parametrize("kind", SILENT)
async def test_a_silent_bucket_delays_a_cancellation_by_twice_its_stall_at_most(
    tmp_path: Path, server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bucket_world(tmp_path, server, stall=1) as (world, proxy):
        world.write("big", BIG)
        arrived = trio.Event()

        def wanted(request: h11.Request) -> bool:
            silent: bool = SILENT[kind](request)
            if silent:
                arrived.set()
            return silent

        proxy.break_next(wanted, Fault(Break.STALL), times=10**6)
        with trio.fail_after(10) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.upload, file("big", name="public/big", contentEncoding="identity"))
                await arrived.wait()
                limit.deadline = trio.current_time() + 2 * 1 + 1
                nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()  # the nursery's own cancellation hides that of the limit
        assert references(world) == {}
        assert ("may be left in the bucket" in caplog.text) == (kind != "all")


MISSING = {
    "s3.create_multipart_upload": (b"POST", b"<InitiateMultipartUploadResult/>", BIG, "UploadId"),
    "s3.upload_part": (b"PUT", b"", BIG, "ETag"),
    "s3.put_object": (b"PUT", b"", b"small", "ETag"),
}


@pytest.mark.parametrize("method", MISSING)
async def test_a_service_whose_answers_lack_something_is_named(tmp_path: Path, server: Server, method: str) -> None:
    verb, body, content, member = MISSING[method]
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        proxy.break_next(a(verb), Fault(Break.STATUS, 1, 200, body=body))
        world.write("a", content)
        verdict = await world.upload(file("a", name="public/a", contentEncoding="identity"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert verdict.message.endswith(f"{method}: the service's answer has no {member}")
        assert references(world) == {}


@pytest.mark.parametrize("content", [b"small", BIG], ids=["whole", "in parts"])
async def test_a_service_that_has_stored_other_bytes_is_not_believed(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    async with open_bucket_world(tmp_path, server) as (world, proxy):
        headers = (("ETag", '"x"'), ("x-amz-checksum-sha256", "AAAA"))
        proxy.break_next(a(b"PUT"), Fault(Break.STATUS, 1, 200, headers, b""))
        world.write("a", content)
        verdict = await world.upload(file("a", name="public/a", contentEncoding="identity"))
        assert verdict.severity is Severity.RESOURCE_UNAVAILABLE
        assert "other bytes than were sent" in verdict.message
        assert references(world) == {}


async def test_a_queue_that_refuses_the_reference_fails_that_artifact(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bucket_world(tmp_path, server) as (world, _):
        world.write("a")
        world.queue.refusals["public/a"] = Conflict("queue.createArtifact", 409, "RequestConflict", "exists")
        verdict = await world.upload(file("a", name="public/a"))
        assert verdict.severity is Severity.FAILED
        [key] = keys(server)
        [warning] = [record for record in caplog.records if record.name == "plugins.artifacts.bucket"]
        assert f"public/a has no reference and stays in the bucket as {key}: " in warning.getMessage()


async def test_what_is_stored_can_be_fetched_where_the_reference_says(tmp_path: Path, server: Server) -> None:
    async with open_bucket_world(tmp_path, server) as (world, _), httpx.AsyncClient() as client:
        world.write("a +", b"text")
        assert await world.upload(file("a +", name="public/a +")) == COMPLETED
        # Both servers let in nobody without a signature, which does not change the place.
        parameters = {"Bucket": BUCKET, "Key": f"{TASK_ID}/0/public/a +"}
        signed = httpx.URL(server.client.generate_presigned_url("get_object", parameters))
        assert signed.raw_path.partition(b"?")[0] == httpx.URL(references(world)["public/a +"].url).raw_path
        if server.name == "moto":
            return  # it takes signatures in headers alone
        answer = await client.get(signed)
        assert (answer.content, answer.headers["content-encoding"]) == (b"text", "gzip")


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({}, "https://bkt.s3.amazonaws.com"),
        ({"region": "eu-west-1"}, "https://bkt.s3.eu-west-1.amazonaws.com"),
        ({"region": "eu-west-1", "bucket": "b.k.t"}, "https://s3.eu-west-1.amazonaws.com/b.k.t"),
        ({"region": "cn-north-1"}, "https://bkt.s3.cn-north-1.amazonaws.com.cn"),
        ({"region": "eu-west-1", "pathStyle": True}, "https://s3.eu-west-1.amazonaws.com/bkt"),
        ({"endpoint": "http://minio:9000/"}, "http://minio:9000/bkt"),
        ({"endpoint": "https://s3.example.com", "pathStyle": False}, "https://bkt.s3.example.com"),
    ],
)
def test_objects_are_found_where_boto3_puts_them(more: dict[str, Any], place: str) -> None:
    config = BucketConfig.model_validate({"bucket": "bkt", **more})
    with closing(make_client(config)) as client:
        assert base_url_of(client, config.bucket) == place


def test_objects_are_found_at_the_endpoint_of_the_environment() -> None:
    script = "\n".join(
        (
            "from plugins.artifacts.bucketconfig import BucketConfig",
            "from plugins.artifacts.s3 import base_url_of, make_client",
            "print(base_url_of(make_client(BucketConfig(bucket='bkt', path_style=True)), 'bkt'))",
        )
    )
    env = {"PATH": os.environ["PATH"], "AWS_ENDPOINT_URL_S3": "http://minio:9000"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "http://minio:9000/bkt\n"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"region": "r", "accessKeyId": "k"}, "given together"),
        ({"region": "r", "sessionToken": "t"}, "sessionToken"),
        ({"region": "r", "kmsKeyId": "k"}, "kmsKeyId"),
        ({"region": "r", "partSize": "1 MiB"}, "partSize"),
        ({"endpoint": "s3.example.com"}, "http or https"),
    ],
)
def test_what_does_not_belong_together_is_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        BucketConfig.model_validate({"bucket": "bkt", **more})


def test_secrets_do_not_show() -> None:
    config = BucketConfig(bucket="bkt", region="r", access_key_id="k", secret_access_key="hidden", session_token="too")
    assert "hidden" not in repr(config)
    assert "too" not in repr(config)


def test_a_file_of_any_size_has_few_enough_parts() -> None:
    config = BucketConfig(bucket="bkt", region="r")
    assert config.part_size_for(5 * 2**30) == PART
    assert -(-(5 * 2**40) // config.part_size_for(5 * 2**40)) <= 10_000
