"""An outage is told once, and so is its end."""

from __future__ import annotations

import logging

import pytest

from worker.queue.outage import Outage


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="worker.queue")
    return caplog


def test_outage_is_told_once_and_its_end_too(told: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for second in range(5):
        outage.failed("queue.claimWork", "connection refused", float(second))
    outage.failed("queue.reclaimTask", "connection refused", 5.0)
    outage.answered("queue.claimWork", 6.0)
    outage.answered("queue.reclaimTask", 6.0)
    assert [(record.levelname, record.getMessage()) for record in told.records] == [
        ("WARNING", "queue.claimWork does not work: connection refused; it is tried again"),
        ("INFO", "queue.claimWork works again, after 6.0 s"),
    ]


def test_one_method_that_keeps_failing_beside_others_that_work_is_told_once(told: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for second in range(5):
        outage.failed("queue.claimWork", "500", float(second))
        outage.answered("queue.status", float(second))
    assert [record.levelname for record in told.records] == ["WARNING"]


def test_next_outage_is_told_again(told: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for _ in range(2):
        outage.failed("queue.claimWork", "500", 0.0)
        outage.answered("queue.claimWork", 1.0)
    assert [record.levelname for record in told.records] == ["WARNING", "INFO"] * 2
