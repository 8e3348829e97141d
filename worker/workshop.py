"""What all runs of a worker share: its engine and plugins, made from the config, and the payload schema out of both."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import engines.registry
import plugins.registry
from engines.base import Engine
from plugins.base import Plugin
from worker.config import Config
from worker.limits import Limiter
from worker.payload import Owner, PayloadSchema
from worker.pluginhost import Member, in_order
from worker.queue.deployment import Deployment
from worker.services import Services
from worker.tasklog import LogSettings
from worker.watchdog import Watchdog

ENGINE = "engine"  # the owner of the engine's slice of the payload


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a run is made with. `plugins` are in the order in which they are entered."""

    services: Services
    deployment: Deployment
    engine: Engine[Any, Any]
    plugins: Sequence[Member]
    schema: PayloadSchema
    limiter: Limiter
    log: LogSettings


def payload_schema(
    engine: type[Engine[Any, Any]], plugin_classes: Mapping[str, type[Plugin[Any, Any]]]
) -> PayloadSchema:
    """The payload that an engine and plugins accept together. Raises ValueError where they claim the same property."""
    owners = [Owner(ENGINE, engine.payloads)]
    owners += [Owner(name, plugin.payloads) for name, plugin in plugin_classes.items()]
    return PayloadSchema(tuple(engine.payloads), owners)


def configured_payload(config: Config) -> PayloadSchema:
    """The payload schema of the engine and the plugins that `config` names."""
    return payload_schema(
        engines.registry.load(config.engine), {name: plugins.registry.load(name) for name in config.plugin_configs}
    )


@asynccontextmanager
async def open_workshop(
    config: Config,
    services: Services,
    deployment: Deployment,
    extra_plugins: Mapping[str, type[Plugin[Any, Any]]],
    extra_engines: Mapping[str, type[Engine[Any, Any]]] | None = None,
    watchdog: Watchdog | None = None,
) -> AsyncGenerator[Workshop, None]:
    """Make engine and plugins and enter their worker scopes, for as long as the block lasts.

    Extra plugins are added under their names, with the defaults of their config. An extra engine is there under its
    name for a `config` that names it and has its config. Without a `watchdog` nobody watches. Raises ValueError where
    engine and plugins do not fit together, FatalWorkerFault where the machine lacks what one of them needs, and
    WorkerFault where one of them takes too long.
    """
    engine_class = (extra_engines or {}).get(config.engine) or engines.registry.load(config.engine)
    engine = engine_class(config.engine_config, services)
    members = [
        Member(name, plugins.registry.load(name)(own_config, services))
        for name, own_config in config.plugin_configs.items()
    ]
    members += [Member(name, plugin(plugin.Config(), services)) for name, plugin in extra_plugins.items()]
    ordered = in_order(members)
    schema = payload_schema(type(engine), {member.name: type(member.plugin) for member in ordered})
    limits = config.worker.limits
    limiter = Limiter(limits, watchdog or Watchdog(limits.stuck.total_seconds(), time.monotonic))
    named = [("the engine", engine.worker_scope())]
    named += [(f"plugin {member.name}", member.plugin.worker_scope()) for member in ordered]
    async with AsyncExitStack() as scopes:
        for name, scope in named:
            await scopes.enter_async_context(
                limiter.scope(f"{name}: its worker scope", scope, limits.prepare, limits.clean_up)
            )
        log = config.worker.log.settings(config.secrets)
        yield Workshop(services, deployment, engine, ordered, schema, limiter, log)
