"""Workers that live as long as a command."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

import trio

from plugins.base import Plugin
from worker import garbage
from worker.claims import StopReason
from worker.config import Config
from worker.ports import Ports
from worker.supervisor import Supervisor, run_worker, stop_on_signals


async def supervise(
    config: Config,
    ports: Ports,
    extra_plugins: Mapping[str, type[Plugin[Any, Any]]] | None = None,
    on_stop: Callable[[], None] = lambda: None,
) -> StopReason:
    """Run a worker, of which root URL and credentials are known, until it stops; SIGTERM and SIGINT stop it.

    `on_stop` is called when it is told to.
    """
    assert config.root_url is not None
    assert config.credentials is not None
    root_url, credentials = config.root_url, config.credentials
    reasons: list[StopReason] = []

    async def work(*, task_status: trio.TaskStatus[Supervisor]) -> None:
        reasons.append(
            await run_worker(
                config,
                ports,
                root_url=root_url,
                credentials=credentials,
                extra_plugins=extra_plugins,
                on_stop=on_stop,
                task_status=task_status,
            )
        )
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        supervisor = await nursery.start(work)
        garbage.resume()
        nursery.start_soon(stop_on_signals, supervisor)
    return reasons[0]


async def wait_for_signal() -> None:
    """Return at SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(aiter(signals))
