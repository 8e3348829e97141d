"""Which artifact of a run is its log, for whoever looks for it from outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

# The first is a stream while the task runs, afterwards a link to the second, which was uploaded then.
LIVE = "public/logs/live.log"
BACKING = "public/logs/live_backing.log"


def log_names(payload: Mapping[str, object]) -> list[str]:
    """Where a run's log may be, the likeliest first, in every dialect of payloads (facts page, 2: `logs`, `log`).

    A malformed payload too has a log, which says what is wrong: where a name cannot be used, by the usual one.
    """
    logs, log = payload.get("logs"), payload.get("log")
    live, backing = log, backing_name(log) if isinstance(log, str) else None
    if isinstance(logs, Mapping):
        live, backing = logs.get("live"), logs.get("backing")
    return [_name(live, LIVE), _name(backing, BACKING), LIVE, BACKING]


def _name(given: object, usual: str) -> str:
    return given if isinstance(given, str) and given else usual


def backing_name(log: str) -> str:
    """docker-worker's rule: `_backing` before the extension, `banana.log.txt` becomes `banana.log_backing.txt`."""
    suffix = PurePosixPath(log).suffix
    return log.removesuffix(suffix) + "_backing" + suffix
