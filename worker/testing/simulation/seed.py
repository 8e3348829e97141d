"""Lives through one seed, whatever happens: what does not come to its end is a failure like any other."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import trio
import trio.testing
from trio._core import _run as scheduler

from worker.testing.simulation import limits
from worker.testing.simulation.history import History, HistoryHandler, describe
from worker.testing.simulation.plan import plan_of
from worker.testing.simulation.variants import VARIANTS
from worker.testing.simulation.world import World


@dataclass(frozen=True)
class Outcome:
    """What came of a seed. `broken` is empty where every promise was kept."""

    seed: int
    broken: str
    digest: str
    events: int
    faults: Counter[str]
    tail: list[str] = field(default_factory=list)


class _TooLong(BaseException):
    """A seed goes round in circles. Nothing that catches errors catches this."""


def simulate(seed: int, variant: str = "none", *, all_lines: bool = False, seconds: float = limits.SEED) -> Outcome:
    """Live through one seed. The same seed gives the same digest where PYTHONHASHSEED is the same.

    It takes `seconds` of real time at most. Whatever is raised is a promise that was broken.
    """
    with TemporaryDirectory(prefix="simulation-") as name, _engine_installed(Path(name)), _reproducible(seed):
        world = World(plan_of(seed), VARIANTS[variant](), Path(name))
        history, where = world.history, list[str]()
        try:
            with _heard(history, name), _limited(seconds):
                trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
        except (Exception, BaseExceptionGroup, _TooLong) as error:  # noqa: BLE001 - the seed is to be told
            history.fail("the simulation comes to its end", describe(error))
            where = "".join(traceback.format_exception(error)).splitlines()
    tail = history.tail() + where if history.broken or all_lines else []
    return Outcome(seed, history.broken, history.digest, history.count, world.chaos.counts, tail)


@contextmanager
def _limited(seconds: float) -> Generator[None, None, None]:
    """Raises _TooLong in the midst of whatever goes on too long, and again, should that not be enough."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong(f"more than {seconds:g} s of real time")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds, max(1.0, seconds / 10))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _engine_installed(folder: Path) -> Generator[None, None, None]:
    """The engine is known to the registry in the way of any installed package."""
    info = folder / "simulation-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: simulation\nVersion: 1\n")
    module = "worker.testing.simulation.engine"
    (info / "entry_points.txt").write_text(f"[tc_worker.engines]\nsimulated = {module}:Simulated\n")
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _reproducible(seed: int) -> Generator[None, None, None]:
    """Trio's scheduling follows the seed, and garbage is not collected in the middle of something."""
    setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - Trio has no public switch for it
    scheduler._r.seed(seed)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _heard(history: History, hidden: str) -> Generator[None, None, None]:
    """The worker's own log goes into the history."""
    logger = logging.getLogger("worker")
    handler = HistoryHandler(history, hidden)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
