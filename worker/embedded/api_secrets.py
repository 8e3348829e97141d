"""The secrets service."""

from __future__ import annotations

import json
from dataclasses import dataclass

from worker.embedded.call import Call
from worker.embedded.errors import ResourceExpired, ResourceNotFound
from worker.embedded.routing import Endpoint, Reply
from worker.embedded.store import Store, Transaction
from worker.embedded.tasks import Json
from worker.embedded.times import to_wire
from worker.queue.models import SecretRequest


@dataclass(frozen=True)
class SecretMethods:
    """The methods, on a store."""

    store: Store

    def endpoints(self) -> list[Endpoint]:
        """Each method with its scopes."""
        return [
            Endpoint("secrets", "set", "secrets:set:<name>", self.set, hide_payload=True),
            Endpoint("secrets", "remove", "secrets:set:<name>", self.remove),
            Endpoint("secrets", "get", "secrets:get:<name>", self.get),
            Endpoint("secrets", "list", "secrets:list-secrets", self.list),
        ]

    async def set(self, call: Call) -> Reply:
        """Create or replace a secret."""
        expires = to_wire(call.read(SecretRequest).expires)
        secret = json.dumps(call.document["secret"])
        await self.store.transact(
            lambda tx: tx.run("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", call.params["name"], secret, expires)
        )
        return Reply({})

    async def remove(self, call: Call) -> Reply:
        """Remove a secret, whether there is one or not."""
        await self.store.transact(lambda tx: tx.run("DELETE FROM secrets WHERE name = ?", call.params["name"]))
        return Reply({})

    async def get(self, call: Call) -> Reply:
        """The secret. Raises ResourceNotFound and ResourceExpired."""
        row = await self.store.transact(lambda tx: tx.one("SELECT * FROM secrets WHERE name = ?", call.params["name"]))
        if row is None:
            raise ResourceNotFound("Secret not found")
        if row["expires"] <= call.now:
            raise ResourceExpired("The requested resource has expired.")
        return Reply({"secret": json.loads(row["secret"]), "expires": row["expires"]})

    async def list(self, call: Call) -> Reply:
        """The names of all secrets."""
        page = call.page()

        def work(tx: Transaction) -> Json:
            names = [
                row["name"]
                for row in tx.all(
                    "SELECT name FROM secrets WHERE name > ? AND expires > ? ORDER BY name LIMIT ?",
                    page.after_text,
                    call.now,
                    page.limit + 1,
                )
            ]
            return {"secrets": names[: page.limit], **page.token(names)}

        return Reply(await self.store.transact(work))
