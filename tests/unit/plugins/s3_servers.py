"""Servers that speak S3: moto, told to check signatures as S3 does, and s3rver, which is another's reading of S3."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugins.artifacts.bucketconfig import BucketConfig
from plugins.artifacts.s3 import make_client

BUCKET = "artifacts"
START_LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """A server with an empty bucket; `client` is boto3's."""

    name: str
    port: int
    keys: tuple[str, str]
    client: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def config(self, **more: Any) -> dict[str, Any]:
        """The section `store.s3` of a config, which goes to it."""
        return {**_section(self.port, self.keys), **more}

    def empty(self) -> None:
        """Remove all objects, and what is left of uploads in parts."""
        for found in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.client.delete_object(Bucket=BUCKET, Key=found["Key"])


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(name: str, folder: Path) -> Iterator[Server]:
    port = free_port()
    argv = _moto(port) if name == "moto" else _s3rver(port, folder)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "MOTO_PORT": str(port)}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            _wait(process, port, folder / "server.log")
            keys = _moto_keys(port) if name == "moto" else ("S3RVER", "S3RVER")
            client = make_client(BucketConfig.model_validate(_section(port, keys)))
            try:
                client.create_bucket(Bucket=BUCKET)
                yield Server(name, port, keys, client)
            finally:
                client.close()
        finally:
            process.kill()
            process.wait()


def _section(port: int, keys: tuple[str, str]) -> dict[str, Any]:
    section = {"bucket": BUCKET, "endpoint": f"http://127.0.0.1:{port}", "stall": 5}
    return {**section, "accessKeyId": keys[0], "secretAccessKey": keys[1]}


def _moto_keys(port: int) -> tuple[str, str]:
    """Those of a user that may do everything; from then on moto checks signatures."""
    import boto3

    url = f"http://127.0.0.1:{port}"
    iam = boto3.client(
        "iam", endpoint_url=url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    iam.create_user(UserName="worker")
    key = iam.create_access_key(UserName="worker")["AccessKey"]
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="worker", PolicyName="all", PolicyDocument=policy)
    iam.close()
    httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()
    return key["AccessKeyId"], key["SecretAccessKey"]


def _moto(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _s3rver(port: int, folder: Path) -> list[str]:
    beside = Path(sys.executable).parent.parent / "s3rver/node_modules/.bin/s3rver"
    command = shutil.which("s3rver") or (str(beside) if beside.exists() else None)
    if command is None or shutil.which("node") is None:
        pytest.skip("s3rver is not installed (make s3rver)")
    return [command, "-d", str(folder / "data"), "-a", "127.0.0.1", "-p", str(port), "--no-vhost-buckets"]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server takes connections."""
    import time

    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        with closing(socket.socket()) as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)  # another program, which has no other way to say that it is ready
    raise AssertionError(log.read_text())
