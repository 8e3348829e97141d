"""The processes that the worker adopts when their parents die, where it is their subreaper: whose they are.

Source: prctl(2), PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import trio

from worker import cgroups, proctree
from worker.ports import Ports
from worker.proctree import Identity

log = logging.getLogger("worker")

# In the environment of every process of a tree, so that it can be told whose it is.
MARK = "TC_WORKER_TREE"
# Seconds for all who are going from one program to the next during a look: it takes microseconds, if one wants to.
_SETTLING = 0.5


class Tree(Protocol):
    """What there is to know of a tree: its mark, when it was begun (in ticks, as /proc counts), and its leaders."""

    mark: str
    begun: int

    @property
    def led_by(self) -> Collection[Identity]: ...


class Orphans:
    """`still` is held during a look, and while a child is started: until its tree knows it, it looks like an orphan."""

    def __init__(self) -> None:
        self.still = trio.Lock()
        self._trees: list[Tree] = []

    @contextmanager
    def known(self, tree: Tree) -> Iterator[None]:
        """That tree is there while the block lasts."""
        self._trees.append(tree)
        try:
            yield
        finally:
            self._trees.remove(tree)

    def of(self, tree: Tree) -> set[Identity]:
        """Those that belong to `tree`, by their cgroup or by the mark in their environment.

        One that has neither may be anybody's: it is of any tree that it may have been started in, so that it dies with
        the first of them. So are the dead, whose marks are gone; signals do nothing to them.
        """
        marks = {other.mark for other in self._trees}
        until = time.monotonic() + _SETTLING
        found = set()
        for orphan in self._all():
            with suppress(*proctree.GONE):
                own = {*cgroups.trees_of(orphan.pid), proctree.settled_value(orphan.pid, MARK, until)}
                if tree.mark in own or (not own & marks and orphan.started >= tree.begun):
                    found.add(orphan)
        return found

    def _all(self) -> list[Identity]:
        # Tree members are in sessions of their own, and cannot enter the worker's: its helpers are.
        session = os.getsid(0)
        leaders = {leader for tree in self._trees for leader in tree.led_by}
        found = []
        for pid in proctree.children(os.getpid()):
            with suppress(*proctree.GONE):
                stat = proctree.Stat(pid)
                if stat.session != session and (orphan := Identity(pid, stat.started)) not in leaders:
                    found.append(orphan)
        return found

    async def reap(self, ports: Ports) -> None:
        """Wait for them when they die, until cancelled."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            async for _ in signals:
                async with self.still:
                    try:
                        await ports.run_sync(self._reap)
                    except OSError as error:  # such as that there are no more descriptors, which may pass
                        log.warning("processes that have ended could not be waited for: %s", error.strerror)

    def _reap(self) -> None:
        for orphan in self._all():
            if not proctree.is_alive(orphan.pid):
                with suppress(ChildProcessError):
                    os.waitpid(orphan.pid, os.WNOHANG)
