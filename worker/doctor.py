"""What this machine and its surroundings can do for a worker: each finding with its remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import engines.registry
import plugins.registry
from worker.cgroups import Limits, hasten_moves
from worker.config import Config
from worker.disk import look
from worker.folders import size_of
from worker.http import HttpError, open_http
from worker.ports import Ports
from worker.process import open_containment
from worker.quantities import approximate_size, format_size
from worker.queue.client import service
from worker.queue.deployment import Deployment
from worker.queue.errors import QueueError, Unauthorized
from worker.queue.retry import RetryPolicy
from worker.serving import BadCertificate, listen, load_certificate
from worker.webhooks.tunnelconfig import default_client_id
from worker.workshop import configured_payload

SKEW_TOLD, SKEW_BAD = 30.0, 15 * 60.0  # seconds; services refuse signatures that are 15 minutes off (facts page, 1)


# Folders of workDir.
KEPT = {"caches": "tasks' caches", "downloads": "what tasks have had mounted", "trash": "leftovers to be removed"}

_LIMITS = ("memory", "pids", "cpu")  # cgroup controllers
_REMEDY = "run as root, or where cgroups are delegated: systemd-run --user --scope -p Delegate=yes tc-worker run"


class Health(StrEnum):
    """`BAD` keeps a worker from working."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found, and what to do about it."""

    subject: str
    health: Health
    detail: str
    remedy: str = ""


async def examine(config: Config, ports: Ports, tell: Callable[[Finding], None]) -> None:
    """Look at everything that a worker with this config needs; `tell` gets each finding as it is made."""
    tell(await _containment(ports))
    if command := await ports.run_sync(hasten_moves):
        tell(Finding("cgroup moves", Health.OK, "a task's start may wait some 10 ms for the kernel", command))
    for finding in _installed():
        tell(finding)
    tell(_payload(config))
    tell(await ports.run_sync(_disk, config))
    for finding in await ports.run_sync(_kept, config):
        tell(finding)
    tell(await _webhooks(config, ports))
    for finding in await _queue(config, ports):
        tell(finding)


async def _containment(ports: Ports) -> Finding:
    async with open_containment(ports, "doctor") as containment:
        limitable = sorted(set(_LIMITS) - set(containment.lacking(Limits(1, 1, 1))))
    limits = f"can limit {', '.join(limitable)}" if limitable else "cannot limit their use of the machine"
    detail = f"tasks are held by a {containment.kind}; {limits}"
    if containment.namespaces or containment.homes is not None:
        if len(limitable) == len(_LIMITS):
            return Finding("containment", Health.OK, detail)
        return Finding("containment", Health.WARN, detail, _REMEDY)
    if containment.is_told:
        return Finding("containment", Health.WARN, f"{detail}; they outlive a worker that is killed", _REMEDY)
    return Finding("containment", Health.WARN, f"{detail}; a task's process can escape from it", _REMEDY)


def _installed() -> Iterator[Finding]:
    for kind, registry in (("engine", engines.registry), ("plugin", plugins.registry)):
        for name in registry.names():
            try:
                registry.load(name)
            except ImportError as error:
                yield Finding(f"{kind} {name}", Health.BAD, str(error), "install its package anew, or remove it")
            else:
                yield Finding(f"{kind} {name}", Health.OK, "is installed")


def _payload(config: Config) -> Finding:
    try:
        dialects = configured_payload(config).dialects
    except ValueError as error:
        return Finding("payload", Health.BAD, str(error), "put one of the two plugins into plugins.disabled")
    return Finding("payload", Health.OK, f"engine {config.engine} takes {', '.join(dialects)}")


def _disk(config: Config) -> Finding:
    own = config.worker
    present = next(path for path in (own.work_dir, *own.work_dir.parents) if path.exists())
    if not os.access(present, os.W_OK | os.X_OK) or not present.is_dir():
        return Finding("disk", Health.BAD, f"{present} cannot be written to", "choose another worker.workDir")
    room = look(present)
    files = "" if room.inodes is None else f", for {room.inodes} files"
    detail = f"{approximate_size(room.free)} free in {own.work_dir}{files}"
    if room.free < own.minimum_disk_space:
        remedy = "make room, or lower worker.minimumDiskSpace"
        lacking = f"{detail}, less than minimumDiskSpace, {format_size(own.minimum_disk_space)}"
        return Finding("disk", Health.BAD, lacking, remedy)
    if room.inodes is not None and room.inodes < own.minimum_inodes:
        remedy = "remove files, or lower worker.minimumInodes"
        return Finding("disk", Health.BAD, f"{detail}, fewer than minimumInodes, {own.minimum_inodes}", remedy)
    return Finding("disk", Health.OK, detail)


def _kept(config: Config) -> list[Finding]:
    """What the worker keeps for later tasks, and gives up where room is lacking; and what it is about to remove."""
    found = []
    for name, what in KEPT.items():
        if (folder := config.worker.work_dir / name).is_dir():
            size, whole = size_of(folder)
            amount = approximate_size(size) if whole else f"more than {approximate_size(size)}"
            found.append(Finding(name, Health.OK, f"{what} take {amount}"))
    return found


async def _webhooks(config: Config, ports: Ports) -> Finding:
    where = f"{config.webhooks.host} port {config.webhooks.port}"
    try:
        listeners = await listen(config.webhooks.host, config.webhooks.port)
    except OSError as error:
        return Finding("webhooks", Health.BAD, f"cannot listen on {where}: {error}", "choose another webhooks.port")
    for listener in listeners:
        await listener.aclose()
    if config.webhooks.tls is not None:
        try:
            await load_certificate(config.webhooks.tls, ports)
        except BadCertificate as error:
            return Finding("webhooks", Health.BAD, str(error), "give webhooks.tls another certificate and its key")
    return Finding("webhooks", Health.OK, f"can listen on {where}")


async def _queue(config: Config, ports: Ports) -> list[Finding]:
    if config.root_url is None:
        remedy = "set rootUrl or TASKCLUSTER_ROOT_URL; tc-worker queue starts a queue here"
        return [Finding("queue", Health.WARN, "none is named", remedy)]
    async with open_http(ports) as http:
        deployment = Deployment(config.root_url, http, ports, RetryPolicy(attempts=2, total=10))
        try:
            await service(deployment, "queue", lambda: None).call("ping", parse=_anything)
        except (QueueError, HttpError) as error:
            return [Finding("queue", Health.BAD, str(error), "check rootUrl, the network and the proxy settings")]
        found = [Finding("queue", Health.OK, f"{config.root_url} answers"), _clock(deployment.clock.skew)]
        return [*found, await _credentials(config, deployment)]


def _anything(document: Any) -> Any:
    return document


def _clock(skew: float) -> Finding:
    # The answer's date has no fractions of a second.
    detail = "agrees with the queue's" if abs(skew) < 2 else f"is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead'}"
    remedy = "" if abs(skew) < SKEW_TOLD else "set the clock: let it follow a time server"
    health = Health.BAD if abs(skew) > SKEW_BAD else Health.WARN if remedy else Health.OK
    return Finding("clock", health, detail, remedy)


async def _credentials(config: Config, deployment: Deployment) -> Finding:
    if config.credentials is None:
        remedy = "set credentials, or TASKCLUSTER_CLIENT_ID and TASKCLUSTER_ACCESS_TOKEN"
        return Finding("credentials", Health.BAD, "there are none", remedy)
    client = f"client {config.credentials.client_id}"
    try:
        scopes = await service(deployment, "auth", lambda: config.credentials).call("currentScopes", parse=_scopes)
    except Unauthorized as error:
        return Finding("credentials", Health.BAD, f"{client}: {error.message}", "renew the client, or its token")
    except (QueueError, HttpError) as error:
        return Finding("credentials", Health.WARN, f"{client}: cannot be examined: {error}")
    own = config.worker
    wanted = [f"queue:claim-work:{own.task_queue_id}", f"queue:worker-id:{own.worker_group}/{own.worker_id}"]
    if tunnel := config.webhooks.websocktunnel:
        wanted.append(tunnel.scope(tunnel.client_id or default_client_id(own.worker_group, own.worker_id)))
    if missing := [scope for scope in wanted if not _covered(scope, scopes)]:
        return Finding(
            "credentials", Health.BAD, f"{client} lacks {', '.join(missing)}", "grant the client these scopes"
        )
    return Finding("credentials", Health.OK, f"{client} may claim from {own.task_queue_id}")


def _scopes(document: Any) -> list[str]:
    return [str(scope) for scope in document["scopes"]]


def _covered(scope: str, held: list[str]) -> bool:
    return any(scope == own or (own.endswith("*") and scope.startswith(own[:-1])) for own in held)
