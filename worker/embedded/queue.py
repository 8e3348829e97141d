"""The embedded queue: its parts put together, its background service, and how to serve it on an address."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import trio
from hypercorn.typing import ASGIFramework
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from worker.embedded import upkeep
from worker.embedded.api_artifacts import ArtifactMethods
from worker.embedded.api_claims import ClaimMethods
from worker.embedded.api_common import CommonMethods
from worker.embedded.api_groups import GroupMethods
from worker.embedded.api_index import IndexMethods
from worker.embedded.api_object import ObjectMethods
from worker.embedded.api_pools import PoolMethods
from worker.embedded.api_purge import PurgeMethods
from worker.embedded.api_secrets import SecretMethods
from worker.embedded.api_tasks import TaskMethods
from worker.embedded.api_workers import WorkerMethods
from worker.embedded.app import Application
from worker.embedded.auth import Client, Identity
from worker.embedded.blobs import Blobs
from worker.embedded.call import Call, perform
from worker.embedded.page import Page
from worker.embedded.page_guard import Guard
from worker.embedded.routing import Endpoint, Reply, Router
from worker.embedded.store import Store, Transaction
from worker.embedded.times import to_wire
from worker.embedded.waiting import Waiting
from worker.ports import Ports
from worker.serving import ServingLimits, listen, port_of, serve

ROOT_CLIENT = "static/taskcluster/root"
QUEUE_CLIENT = "static/taskcluster/queue"
CLAIM_TIMEOUT = timedelta(minutes=20)
LAST_ANSWERS = 2.0
"""Seconds that a queue which stops gives to the requests under way."""
LIMITS = ServingLimits(
    headers=64 * 1024,  # a certificate with many scopes makes a long Authorization header
    request_body=2**40,  # artifacts are uploaded here
)


class ClientCredentials(Protocol):
    """A client id and its token."""

    @property
    def client_id(self) -> str:
        """The id."""

    @property
    def access_token(self) -> str:
        """The token."""


class EmbeddedQueue:
    """The services queue, object, index, secrets, purge-cache and auth of a Taskcluster deployment, as far as workers
    and their users need them, for development, tests and one machine.

    `app` is the ASGI application; it answers 503 unless `run` runs. `root_url` is where clients find it, and must be
    set before the first request. `credentials` belong to a client that may do everything; when none are given, a
    random token is made, which a queue with `data` keeps for its next start: it is known when `run` has started.
    With `objects_once` it refuses to create an `object` artifact again, as Taskcluster's queue does.
    `tunnel_secret` is what a websocktunnel server must know to take this queue's tokens.
    """

    def __init__(
        self,
        ports: Ports,
        *,
        data: Path | None = None,
        claim_timeout: timedelta = CLAIM_TIMEOUT,
        credentials: ClientCredentials | None = None,
        objects_once: bool = False,
    ) -> None:
        self._ports = ports
        self._data = data
        self._claim_timeout = claim_timeout
        self._objects_once = objects_once
        self._waiting = Waiting(ports)
        self._store = Store(ports, data, self._waiting.committed)
        self._own = Client(QUEUE_CLIENT, ports.token())
        self._blob_key = ""
        self._blobs = Blobs(ports, self._store, lambda: self.root_url, lambda: self._blob_key)
        self._guard = Guard(lambda: self.root_url, lambda: self.credentials.access_token)
        self._page = Page(ports, self._store, self._waiting, self._guard, self._act)
        self._clients: Mapping[str, Client] = {}
        self._methods: Mapping[str, Endpoint] = {}
        self._application: Application | None = None
        self._requests = 0
        self._idle = trio.Event()
        self._given = credentials is not None
        self.root_url = ""
        self.tunnel_secret = ports.token()
        self.credentials = (
            Client(ROOT_CLIENT, ports.token())
            if credentials is None
            else Client(credentials.client_id, credentials.access_token)
        )

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if self._application is None:
            if scope["type"] == "http":
                answer = {"code": "InternalServerError", "message": "The queue is not running"}
                await JSONResponse(answer, 503)(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the store open and resolve what is due, until cancelled; started when requests are answered.

        When cancelled, long polls are answered at once and other requests under way get 2 s. Raises RuntimeError
        where `data` were written by another version. It can be run once.
        """
        await self._store.open()
        try:
            keys = await self._store.transact(self._load_keys)
            await self._blobs.open(self._data)
            self._application = self._assemble(*keys)
            self._page.begin()
            task_status.started()
            await self._keep_up()
        finally:
            self._waiting.stop()
            with trio.move_on_after(LAST_ANSWERS, shield=True):
                await self.wait_idle()
            self._application = None
            with trio.CancelScope(shield=True):
                # No limit: each is one short call, and a store that is not closed would be left in a thread.
                await self._store.close()
                await self._blobs.close()

    def page_url(self, path: str = "/") -> str:
        """The URL of a page, for the one who has started the queue: whoever knows it may create and cancel tasks."""
        return self.root_url + self._guard.owner.url(path)

    def changed(self) -> trio.Event:
        """Set when anything in the queue changes after now. To be asked for before looking at what is awaited."""
        return self._waiting.changed

    def answer_polls(self) -> None:
        """Answer the polls under way at once: for a worker in the queue's own process, which stops."""
        self._waiting.release()

    async def wait_idle(self) -> None:
        """Return when no request is under way, long polls included."""
        while self._requests:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _keep_up(self) -> None:
        while True:
            now = to_wire(self._ports.now())
            done = await self._store.transact(partial(upkeep.perform, now=now))
            await self._blobs.remove(done.unused_files)
            await self._waiting.until_due(done.due)

    def _load_keys(self, tx: Transaction) -> tuple[str, str, str]:
        """The root client's token, the queue's own, and the key of presigned URLs; kept where there are none."""
        tokens = [self.credentials.access_token, self._own.access_token, self._ports.token()]
        for index, name in enumerate(("root", "queue", "blobs")):
            if index == 0 and self._given:
                continue
            tx.run("INSERT OR IGNORE INTO meta VALUES (?, ?)", f"token:{name}", tokens[index])
            row = tx.one("SELECT value FROM meta WHERE key = ?", f"token:{name}")
            tokens[index] = tokens[index] if row is None else row["value"]
        return tokens[0], tokens[1], tokens[2]

    def _assemble(self, root_token: str, queue_token: str, blob_key: str) -> Application:
        self.credentials = Client(self.credentials.client_id, root_token)
        self._blob_key = blob_key
        self._own = Client(QUEUE_CLIENT, queue_token)
        self._clients = {client.client_id: client for client in (self._own, self.credentials)}
        endpoints = self.endpoints()
        self._methods = {endpoint.name: endpoint for endpoint in endpoints if endpoint.service == "queue"}
        return Application(self._ports, Router(endpoints), lambda: self._clients, self._respond)

    def endpoints(self) -> list[Endpoint]:
        """Every method of every service, with the scopes that it needs."""
        own = self._own
        claims = ClaimMethods(self._ports, self._store, self._waiting, own, self._claim_timeout)
        artifacts = ArtifactMethods(self._ports, self._store, self._blobs, own, self._objects_once)
        return [
            *TaskMethods(self._store).endpoints(),
            *GroupMethods(self._store).endpoints(),
            *claims.endpoints(),
            *artifacts.endpoints(),
            *PoolMethods(self._store).endpoints(),
            *WorkerMethods(self._store).endpoints(),
            *ObjectMethods(self._store, self._blobs).endpoints(),
            *IndexMethods(self._store, artifacts.get_artifact).endpoints(),
            *SecretMethods(self._store).endpoints(),
            *PurgeMethods(self._store).endpoints(),
            *CommonMethods(self._ports, lambda: self._clients, self.tunnel_secret).endpoints(),
        ]

    async def _act(self, request: Request, method: str, params: Mapping[str, str], document: object) -> Reply:
        """What a page does for the root client; `method` is one of the queue's."""
        root = self._clients[self.credentials.client_id]
        identity = Identity(root.client_id, root.scopes)
        raw = b"" if document is None else json.dumps(document).encode()
        return await perform(Call(self._methods[method], params, request, raw, document, identity, self._ports.now()))

    async def _respond(self, request: Request) -> Response | None:
        return await self._blobs.respond(request) or await self._page.respond(request)


@asynccontextmanager
async def open_embedded_queue(
    ports: Ports,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    data: Path | None = None,
    claim_timeout: timedelta = CLAIM_TIMEOUT,
    credentials: ClientCredentials | None = None,
    root_url: str | None = None,
    objects_once: bool = False,
) -> AsyncIterator[EmbeddedQueue]:
    """A queue that answers on `host` and `port` (0 picks a free one) for as long as the block runs.

    At the end, also when cancelled, its polls are answered at once; then connections are closed. `root_url` is what
    clients are told where they come by another address. Raises OSError where the address cannot be had, and what the
    block raises, as it is.
    """
    queue = EmbeddedQueue(
        ports, data=data, claim_timeout=claim_timeout, credentials=credentials, objects_once=objects_once
    )
    listeners = await listen(host, port)
    queue.root_url = root_url or f"http://{_in_url(host)}:{port_of(listeners)}"
    # The last answers need the server: it outlives a cancellation from outside until the queue has ended.
    serving = trio.CancelScope(shield=True)

    async def serve_queue(*, task_status: trio.TaskStatus[None]) -> None:
        with serving:
            await serve(cast("ASGIFramework", queue.app), listeners, limits=LIMITS, task_status=task_status)

    failure: Exception | None = None
    try:
        async with trio.open_nursery() as server:
            try:
                async with trio.open_nursery() as service:
                    await service.start(queue.run)
                    await server.start(serve_queue)
                    try:
                        yield queue
                    except Exception as error:  # noqa: BLE001  # raised below, where no nursery wraps it
                        failure = error
                    service.cancel_scope.cancel()
            finally:
                serving.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()
    if failure is not None:
        raise failure


def _in_url(host: str) -> str:
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104  # not bound here: named, so that it is not put into a URL
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
