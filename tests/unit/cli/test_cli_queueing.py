from __future__ import annotations

from datetime import timedelta

from worker.cli.queueing import joined
from worker.config import parse_config
from worker.embedded import EmbeddedQueue
from worker.ports import Ports
from worker.queue.credentials import Credentials


async def test_a_worker_beside_its_own_queue_asks_every_second() -> None:
    queue = EmbeddedQueue(Ports(), credentials=Credentials("root", "token"))
    queue.root_url = "http://127.0.0.1:1"
    intervals = {}
    for given in ({}, {"cancelPollInterval": "7 seconds"}):
        config = joined(parse_config({"worker": given}, {}), queue)
        intervals[len(given)] = config.worker.cancel_poll_interval
    assert intervals == {0: timedelta(seconds=1), 1: timedelta(seconds=7)}


async def test_a_worker_beside_its_own_queue_is_seen_from_this_machine_alone() -> None:
    queue = EmbeddedQueue(Ports(), credentials=Credentials("root", "token"))
    queue.root_url = "http://127.0.0.1:1"
    tunnel = {"provider": "websocktunnel", "websocktunnel": {"url": "https://t.example", "audience": "a"}}
    config = joined(parse_config({"webhooks": tunnel}, {}), queue)
    assert (config.webhooks.provider, config.webhooks.host, config.webhooks.port) == ("local", "127.0.0.1", 0)
