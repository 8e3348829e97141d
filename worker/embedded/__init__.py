"""A Taskcluster queue in one process, on SQLite: for development, tests and one machine.

Production is a Taskcluster deployment, reached by its `rootUrl`.
"""

from __future__ import annotations

from worker.embedded.queue import EmbeddedQueue, open_embedded_queue

__all__ = ["EmbeddedQueue", "open_embedded_queue"]
