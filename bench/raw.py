"""The fastest loop of a trivial task's calls that was found in Python: `python -m bench.raw`.

h11 on Trio, connections of each task's own, requests prepared but for the task's id, answers not looked at but for what
the next call needs. A signature is prepared too, which no queue would take: `bench.canned` does.
"""

from __future__ import annotations

import json
import os
from urllib.parse import urlsplit

import click
import h11
import trio

from bench.bare import LOG, MAX_CLAIM
from worker import garbage

_JSON = "application/json"
_SIGNATURE = 'Hawk id="bench", ts="1", nonce="nonce00", mac="0000000000000000000000000000000000000000000="'
_LINK = b'{"storageType":"link","artifact":"public/logs/live_backing.log","contentType":"text/plain","expires":"%b"}'
_S3 = b'{"storageType":"s3","contentType":"text/plain","expires":"%b"}'


class Connection:
    """One, with one request at a time."""

    def __init__(self, stream: trio.SocketStream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, path: str, body: bytes, *more: tuple[str, str]) -> bytes:
        """The body of the answer. Raises where its status is not 200."""
        headers = [("Host", self._host), ("Content-Length", str(len(body))), *more]
        events = [h11.Request(method=method, target=path, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
        await self._stream.send_all(b"".join(self._h11.send(event) or b"" for event in events))
        answer = b""
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(bytes(await self._stream.receive_some(65536)))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise OSError(f"{method} {path}: status {event.status_code}")
            elif isinstance(event, h11.Data):
                answer += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._h11.start_next_cycle()
                return answer

    async def call(self, path: str, body: bytes) -> bytes:
        """As `ask`, of the queue."""
        return await self.ask("POST", path, body, ("Authorization", _SIGNATURE), ("Content-Type", _JSON))


async def run_tasks(root_url: str, pool: str, tasks: int, capacity: int) -> None:
    """Claim and complete the tasks. It asks for what is free as soon as one place is."""
    url = urlsplit(root_url)
    idle: list[Connection] = []

    async def connect() -> Connection:
        stream = await trio.open_tcp_stream(url.hostname or "", url.port or 80)
        return Connection(stream, url.netloc)

    async def run(status: dict[str, str]) -> None:
        connection, other = [idle.pop() if idle else await connect() for _ in range(2)]
        task_id, expires = status["taskId"], status["expires"].encode()
        path = f"/api/queue/v1/task/{task_id}/runs/0"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.call, f"{path}/artifacts/public/logs/live.log", _LINK % expires)
            created = await connection.call(f"{path}/artifacts/public/logs/live_backing.log", _S3 % expires)
            where = urlsplit(json.loads(created)["putUrl"])
            headers = (("Content-Type", "text/plain"), ("Content-Encoding", "gzip"))
            await connection.ask("PUT", f"{where.path}?{where.query}", LOG, *headers)
        await connection.call(f"{path}/completed", b"{}")
        idle.extend((connection, other))
        places.release()

    places = trio.Semaphore(capacity, max_value=capacity)
    claimer = await connect()
    left = tasks
    async with trio.open_nursery() as nursery:
        while left:
            await places.acquire()
            places.release()
            wanted = min(places.value, left, MAX_CLAIM)
            body = json.dumps({"tasks": wanted, "workerGroup": "bench", "workerId": "raw"}).encode()
            answer = json.loads(await claimer.call(f"/api/queue/v1/claim-work/{pool}", body))
            left -= len(answer["tasks"])
            for claim in answer["tasks"]:
                places.acquire_nowait()
                nursery.start_soon(run, claim["status"])


@click.command()
@click.option("--pool", required=True)
@click.option("--tasks", type=int, required=True)
@click.option("--capacity", type=int, required=True)
def main(pool: str, tasks: int, capacity: int) -> None:
    """The queue comes by the environment."""
    garbage.resume()  # as the worker does
    trio.run(run_tasks, os.environ["TASKCLUSTER_ROOT_URL"], pool, tasks, capacity)


if __name__ == "__main__":
    main()
