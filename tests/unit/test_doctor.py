"""What the doctor finds about the web server."""

from __future__ import annotations

from pathlib import Path

import trio

from worker.config import parse_config
from worker.doctor import Finding, Health, examine
from worker.ports import Ports
from worker.testing.certificates import write_certificate


async def webhooks(document: dict[str, object], folder: Path) -> Finding:
    findings: list[Finding] = []
    with trio.fail_after(60):
        config = parse_config({"webhooks": document}, {"XDG_STATE_HOME": str(folder)}, folder / "tc-worker.yml")
        await examine(config, Ports(), findings.append)
    return next(finding for finding in findings if finding.subject == "webhooks")


async def test_a_certificate_is_looked_at(tmp_path: Path) -> None:
    tls = {"certificate": "certificate.pem", "key": "key.pem"}
    missing = await webhooks({"tls": tls}, tmp_path)
    assert missing.health is Health.BAD
    assert "certificate.pem: cannot be read" in missing.detail
    write_certificate(tmp_path)
    assert (await webhooks({"tls": tls}, tmp_path)).health is Health.OK
