"""The purge-cache service: requests to throw caches away, kept for a day."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import timedelta

from worker.embedded.call import Call
from worker.embedded.errors import InvalidRequestArguments
from worker.embedded.routing import Endpoint, Reply
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import normal, to_wire
from worker.queue.models import PurgeCacheRequest

KEPT = timedelta(days=1)


@dataclass(frozen=True)
class PurgeMethods:
    """The methods, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes. `list` comes first: it would be a worker pool's name otherwise."""
        requests = "purge-cache:purge-requests::<workerPoolId>"
        return [
            Endpoint("purge-cache", "allPurgeRequests", "purge-cache:all-purge-requests", self.all_purge_requests),
            Endpoint("purge-cache", "purgeCache", "purge-cache:<workerPoolId>:<cacheName>", self.purge_cache),
            Endpoint("purge-cache", "purgeRequests", requests, self.purge_requests),
        ]

    async def purge_cache(self, call: Call) -> Reply:
        """Ask the pool's workers to throw a cache away that was made before now."""
        name = call.read(PurgeCacheRequest).cache_name
        call.authorize(cacheName=name)

        def work(tx: Transaction) -> None:
            tx.run("DELETE FROM purge_requests WHERE before <= ?", to_wire(call.moment - KEPT))
            tx.run(
                "INSERT OR REPLACE INTO purge_requests VALUES (?, ?, ?)", call.params["workerPoolId"], name, call.now
            )

        await self.store.transact(work)
        return Reply()

    async def purge_requests(self, call: Call) -> Reply:
        """The requests of a pool, those after `since` if given."""
        since = call.query("since")
        try:
            after = max(normal(since), self._oldest(call)) if since is not None else self._oldest(call)
        except ValueError:
            raise InvalidRequestArguments("since is not a date and time") from None
        rows = await self.store.transact(
            lambda tx: tx.all(
                "SELECT * FROM purge_requests WHERE worker_pool_id = ? AND before > ? ORDER BY before",
                call.params["workerPoolId"],
                after,
            )
        )
        return Reply({"requests": [_shown(row) for row in rows]})

    async def all_purge_requests(self, call: Call) -> Reply:
        """The requests of all pools."""
        page = call.page()

        def work(tx: Transaction) -> Json:
            rows = tx.all(
                "SELECT rowid, * FROM purge_requests WHERE rowid > ? AND before > ? ORDER BY rowid LIMIT ?",
                page.after_number,
                self._oldest(call),
                page.limit + 1,
            )
            shown = [_shown(row) for row in rows[: page.limit]]
            return {"requests": shown, **page.token([row["rowid"] for row in rows])}

        return Reply(await self.store.transact(work))

    def _oldest(self, call: Call) -> str:
        return to_wire(call.moment - KEPT)


def _shown(row: sqlite3.Row) -> Json:
    provisioner_id, _, worker_type = row["worker_pool_id"].partition("/")
    return {
        "provisionerId": provisioner_id,
        "workerType": worker_type,
        "cacheName": row["cache_name"],
        "before": row["before"],
    }
