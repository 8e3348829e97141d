"""The one connection to SQLite: opening, the schema, and transactions off the event loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

from worker.embedded.errors import Unavailable
from worker.ports import Ports

T = TypeVar("T")

# A document that is read and written as a whole is one column of JSON; what is searched for has its own.
VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE tasks (
  seq INTEGER PRIMARY KEY,
  task_id TEXT NOT NULL UNIQUE,
  task_queue_id TEXT NOT NULL,
  task_group_id TEXT NOT NULL,
  definition TEXT NOT NULL,
  runs TEXT NOT NULL,
  retries_left INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  state TEXT NOT NULL,
  scheduled TEXT,
  due TEXT,
  expires TEXT NOT NULL
) STRICT;
CREATE INDEX tasks_by_state ON tasks (task_queue_id, state, priority DESC, scheduled, seq);
CREATE INDEX tasks_by_group ON tasks (task_group_id, seq);
CREATE INDEX tasks_by_due ON tasks (due) WHERE due IS NOT NULL;
CREATE INDEX tasks_by_expiry ON tasks (expires);
CREATE TABLE dependencies (
  required TEXT NOT NULL,
  task_id TEXT NOT NULL,
  satisfied INTEGER NOT NULL,
  PRIMARY KEY (required, task_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_by_task ON dependencies (task_id);
CREATE TABLE task_groups (
  task_group_id TEXT PRIMARY KEY, scheduler_id TEXT NOT NULL, expires TEXT NOT NULL, sealed TEXT
) STRICT;
CREATE TABLE artifacts (
  task_id TEXT NOT NULL,
  run_id INTEGER NOT NULL,
  name TEXT NOT NULL,
  storage_type TEXT NOT NULL,
  content_type TEXT NOT NULL,
  expires TEXT NOT NULL,
  details TEXT NOT NULL,
  present INTEGER NOT NULL,
  PRIMARY KEY (task_id, run_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_expiry ON artifacts (expires);
CREATE TABLE objects (
  name TEXT PRIMARY KEY,
  project_id TEXT NOT NULL,
  upload_id TEXT NOT NULL,
  expires TEXT NOT NULL,
  hashes TEXT NOT NULL,
  blob_id TEXT NOT NULL,
  content_type TEXT NOT NULL,
  finished INTEGER NOT NULL
) STRICT;
CREATE TABLE blobs (
  blob_id TEXT PRIMARY KEY,
  file TEXT NOT NULL,
  content_type TEXT NOT NULL,
  content_encoding TEXT,
  length INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  sha512 TEXT NOT NULL
) STRICT;
CREATE TABLE task_queues (task_queue_id TEXT PRIMARY KEY, last_active TEXT NOT NULL) STRICT;
CREATE TABLE workers (
  seq INTEGER PRIMARY KEY,
  task_queue_id TEXT NOT NULL,
  worker_group TEXT NOT NULL,
  worker_id TEXT NOT NULL,
  first_claim TEXT NOT NULL,
  last_active TEXT NOT NULL,
  expires TEXT NOT NULL,
  recent_tasks TEXT NOT NULL,
  quarantine_until TEXT,
  quarantine_details TEXT NOT NULL,
  UNIQUE (task_queue_id, worker_group, worker_id)
) STRICT;
CREATE TABLE secrets (name TEXT PRIMARY KEY, secret TEXT NOT NULL, expires TEXT NOT NULL) STRICT;
CREATE TABLE purge_requests (
  worker_pool_id TEXT NOT NULL, cache_name TEXT NOT NULL, before TEXT NOT NULL,
  PRIMARY KEY (worker_pool_id, cache_name)
) STRICT;
"""
VERSION_2 = """
CREATE TABLE indexed_tasks (
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  task_id TEXT NOT NULL,
  rank REAL NOT NULL,
  expires TEXT NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE namespaces (
  parent TEXT NOT NULL, name TEXT NOT NULL, expires TEXT NOT NULL,
  PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
"""
VERSIONS = (VERSION_1, VERSION_2)
"""What each version adds to the one before it: data of an older one are brought up to date when they are opened."""


class Transaction:
    """SQL within one transaction, and what the rest of the queue must learn once it is committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.pending: set[str] = set()
        self.due: str | None = None
        self.changed = False  # whether it wrote anything; known when it is committed

    def run(self, sql: str, *parameters: Any) -> int:
        """Execute a statement and return how many rows it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def one(self, sql: str, *parameters: Any) -> sqlite3.Row | None:
        """The first row, if there is any."""
        row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def all(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """Every row: queries whose answer may be long carry a LIMIT."""
        return self._connection.execute(sql, parameters).fetchall()

    def became_pending(self, task_queue_id: str) -> None:
        """Workers that wait for work in `task_queue_id` are woken after the commit."""
        self.pending.add(task_queue_id)

    def act_at(self, due: str) -> None:
        """The background service looks at the store again at `due`, if not before."""
        self.due = due if self.due is None else min(self.due, due)


class Store:
    """A database in the folder `data`, or in memory.

    Each call of `transact` is one transaction, all or nothing; they come one after another.
    """

    def __init__(self, ports: Ports, data: Path | None, committed: Callable[[Transaction], None]) -> None:
        self._ports = ports
        self._data = data
        self._committed = committed
        self._lock = trio.Lock()
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Connect, and make the tables where there are none. Raises RuntimeError for a newer version's data."""
        self._connection = await self._ports.run_sync(_connect, self._data)

    async def close(self) -> None:
        """Disconnect; from now on calls are answered with 503."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                await self._ports.run_sync(connection.close)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, committed; where it raises, nothing has changed.

        `work` runs in a thread and must not touch the loop. Once begun it is not cancelled: what was committed is
        always told to those who wait for it.
        """
        async with self._lock:
            connection = self._connection
            if connection is None:
                raise Unavailable("The queue is not running")
            transaction = Transaction(connection)

            def perform() -> T:
                connection.execute("BEGIN IMMEDIATE")
                changes = connection.total_changes
                try:
                    result = work(transaction)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                transaction.changed = connection.total_changes != changes
                return result

            with trio.CancelScope(shield=True):
                result = await self._ports.run_sync(perform)
            self._committed(transaction)
            return result


def _connect(data: Path | None) -> sqlite3.Connection:
    if data is not None:
        # The root client's token and the secrets are in there.
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = ":memory:" if data is None else str(data / "queue.sqlite3")
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    if data is not None:
        Path(name).chmod(0o600)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    # With a write-ahead log what was committed outlives a kill of the process, without a sync for each commit; a
    # power failure may take the last commits, never the consistency.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    latest = len(VERSIONS)
    if version > latest:
        raise RuntimeError(f"The data are of version {version}; this program reads versions up to {latest}")
    if version < latest:
        added = "".join(VERSIONS[version:])
        connection.executescript(f"BEGIN IMMEDIATE; {added} PRAGMA user_version = {latest}; COMMIT;")
