"""The limit of uploads: create each artifact and PUT it, with plain httpx or curl: `python -m bench.puts`.

It claims the pool's one task and uploads the files of a folder, several at once. Nothing is compressed, hashed, counted
or tried again, and any error ends it.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

import click
import httpx
import trio

from worker.http import open_http
from worker.model import RunKey
from worker.ports import Ports
from worker.queue.credentials import Credentials
from worker.queue.deployment import Deployment
from worker.queue.models import S3ArtifactRequest
from worker.queue.services import Queue

CHUNK = 256 * 1024
CONTENT_TYPE = "application/octet-stream"
CURL = ("curl", "--disable", "--silent", "--show-error", "--fail", "--http1.1", "--output", "/dev/null")


async def upload_all(pool: str, paths: list[Path], at_once: int, with_curl: bool) -> tuple[float, float]:
    """Upload all files and report; the seconds that it took, and those of CPU, curl's included."""
    ports = Ports()
    credentials = Credentials(os.environ["TASKCLUSTER_CLIENT_ID"], os.environ["TASKCLUSTER_ACCESS_TOKEN"])
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with open_http(ports) as http, httpx.AsyncClient(limits=limits, timeout=600) as plain:
        queue = Queue(Deployment(os.environ["TASKCLUSTER_ROOT_URL"], http, ports), lambda: credentials)
        (claim,) = (await queue.claim_work(pool, "bench", "bare", 1)).tasks
        key = RunKey(claim.status.task_id, claim.run_id)
        request = S3ArtifactRequest(content_type=CONTENT_TYPE, expires=claim.status.expires)
        begun, used = time.perf_counter(), _cpu()

        async def work() -> None:
            while paths:
                path = paths.pop()
                answer = await queue.create_artifact(key, f"public/{path.name}", request)
                if with_curl:
                    argv = [
                        *CURL,
                        "--header",
                        f"Content-Type: {CONTENT_TYPE}",
                        "--upload-file",
                        str(path),
                        "--config",
                        "-",
                    ]
                    # The URL is signed, and arguments are for everybody to read.
                    await trio.run_process(argv, stdin=f'url = "{answer.put_url}"'.encode())
                    continue
                headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(path.stat().st_size)}
                with path.open("rb") as file:
                    (await plain.put(answer.put_url, content=_chunks(file), headers=headers)).raise_for_status()

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
        seconds, cpu = time.perf_counter() - begun, _cpu() - used
        await queue.report_completed(key)
        return seconds, cpu


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    while chunk := file.read(CHUNK):  # blocks; the others wait for it
        yield chunk


@click.command()
@click.argument("pool")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("at_once", type=int)
@click.option("--curl", "with_curl", is_flag=True, help="Have curl send each file.")
def main(pool: str, folder: Path, at_once: int, with_curl: bool) -> None:
    """The queue and its credentials come by the environment. Prints the seconds and the CPU seconds that it took."""
    print(json.dumps(trio.run(upload_all, pool, sorted(folder.iterdir()), at_once, with_curl)))


if __name__ == "__main__":
    main()
