"""When reference cycles are collected: not while modules are imported, then seldom, and without looking at modules.

Python's own pace is meant for small programs. With it a fifth of a trivial task's CPU time, and of a start's, was the
collector's (docs/performance.md).
"""

from __future__ import annotations

import gc

# Of new objects that may belong to cycles, before the youngest generation is looked at; Python's own is 700. A trivial
# task leaves few hundred, so memory does not show it.
YOUNG = 10_000


def pause() -> None:
    """Collect nothing, as while modules are imported: these stay."""
    gc.disable()


def resume() -> None:
    """Collect from now on, but never what there is now. Can be called again, when there is more that stays."""
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    gc.enable()
