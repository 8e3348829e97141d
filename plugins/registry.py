"""The plugins there are. All of them are on, unless the config's `plugins.disabled` names them."""

from __future__ import annotations

from typing import Any

from plugins.base import Plugin
from worker.registry import Registry

_PLUGINS = Registry[Plugin[Any, Any]](
    "tc_worker.plugins",
    {
        "artifacts": "plugins.artifacts:Artifacts",
        "env": "plugins.env:Env",
        "livelog": "plugins.livelog:LiveLog",
        "logPrefix": "plugins.logprefix:LogPrefix",
        "maxRunTime": "plugins.maxruntime:MaxRunTime",
        "mounts": "plugins.mounts:Mounts",
        "success": "plugins.success:Success",
    },
)

names = _PLUGINS.names
load = _PLUGINS.load
