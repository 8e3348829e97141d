"""The engines there are."""

from __future__ import annotations

from typing import Any

from engines.base import Engine
from worker.registry import Registry

_ENGINES = Registry[Engine[Any, Any]](
    "tc_worker.engines",
    {
        "mock": "engines.mock:Mock",
        "native": "engines.native:Native",
    },
)

names = _ENGINES.names
load = _ENGINES.load
