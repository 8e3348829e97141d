"""What the doctor finds about the web server, and on the disk."""

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


async def disk(folder: Path, **worker: object) -> list[Finding]:
    findings: list[Finding] = []
    with trio.fail_after(60):
        await examine(parse_config({"worker": {"workDir": str(folder), **worker}}, {}), Ports(), findings.append)
    return [finding for finding in findings if finding.subject in {"disk", "caches", "downloads", "trash"}]


async def test_the_disk_and_what_is_kept_on_it_are_told(tmp_path: Path) -> None:
    (tmp_path / "caches" / "0" / "content").mkdir(parents=True)
    (tmp_path / "caches" / "0" / "content" / "file").write_bytes(b"x" * 2**20)
    free, caches = await disk(tmp_path, minimumDiskSpace=0, minimumInodes=0)
    assert free.health is Health.OK
    assert f" free in {tmp_path}" in free.detail
    assert caches.detail == "tasks' caches take 1 MiB" or caches.detail.startswith("tasks' caches take 1.0 MiB")


async def test_a_disk_with_too_little_room_keeps_a_worker_from_working(tmp_path: Path) -> None:
    (free,) = await disk(tmp_path, minimumDiskSpace="1000 TiB")
    assert free.health is Health.BAD
    assert "less than minimumDiskSpace, 1000 TiB" in free.detail
    (free,) = await disk(tmp_path, minimumDiskSpace=0, minimumInodes=10**15)
    if " for " in free.detail:
        assert free.health is Health.BAD
        assert "fewer than minimumInodes" in free.detail
