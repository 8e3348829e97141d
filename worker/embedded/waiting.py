"""Who waits for what: workers for pending tasks, pages for changes, the background service for the next due time."""

from __future__ import annotations

from datetime import datetime, timedelta

import trio

from worker.embedded.store import Transaction
from worker.embedded.times import from_wire
from worker.ports import Ports


class Waiting:
    """Wakes those who wait when a transaction was committed that concerns them. Nobody polls."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._pending: dict[str, trio.Event] = {}
        self._due: datetime | None = None
        self._due_changed = trio.Event()
        self.stopping = False
        self.releases = 0
        self.changed = trio.Event()  # set at the next change of anything; another one then takes its place
        self.version = 0  # changes so far

    def committed(self, transaction: Transaction) -> None:
        """Tell everybody whom the transaction concerns."""
        for task_queue_id in transaction.pending:
            self._wake(task_queue_id)
        self._expect(transaction.due)
        if transaction.changed:
            self.version += 1
            self._tell_change()

    def _tell_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until_changed(self, version: int) -> None:
        """Return when the version is another one, or the queue stops."""
        while self.version == version and not self.stopping:
            await self.changed.wait()

    def stop(self) -> None:
        """Wake everybody who waits: there will be no more work, and nothing to see."""
        self.stopping = True
        self.release()
        self._tell_change()

    def release(self) -> None:
        """Wake every worker that waits now, to be answered with nothing."""
        self.releases += 1
        for task_queue_id in list(self._pending):
            self._wake(task_queue_id)

    def pending(self, task_queue_id: str) -> trio.Event:
        """Set when a task of the queue becomes pending after now. To be asked for before looking for work."""
        return self._pending.setdefault(task_queue_id, trio.Event())

    def _wake(self, task_queue_id: str) -> None:
        event = self._pending.pop(task_queue_id, None)
        if event is not None:
            event.set()

    async def until_due(self, due: str | None) -> None:
        """Return at `due`, or at an earlier time that was committed since the last return; `None` is never."""
        self._expect(due)
        while True:
            if self._due is None:
                await self._due_changed.wait()
                continue
            self._due_changed = trio.Event()
            # A millisecond more, so that the text of then is not before the text of the due time.
            rest = self._due - self._ports.now() + timedelta(milliseconds=1)
            if rest <= timedelta(0):
                self._due = None
                await trio.lowlevel.checkpoint()
                return
            with trio.move_on_after(rest.total_seconds()):
                await self._due_changed.wait()

    def _expect(self, due: str | None) -> None:
        moment = None if due is None else from_wire(due)
        if moment is not None and (self._due is None or moment < self._due):
            self._due = moment
            self._due_changed.set()
