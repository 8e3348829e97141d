"""When which byte of a log was written, as JSON."""

from __future__ import annotations

import json
from itertools import islice

from starlette.types import Scope, Send

from plugins.livelog.answers import CONTENT_HEADERS, Header, answer
from worker.linetimes import LineTimes

BATCH = 1000  # entries that are made and sent at once

HEADERS: list[Header] = [*CONTENT_HEADERS, (b"content-type", b"application/json")]


async def send_times(times: LineTimes, offset: int, scope: Scope, send: Send) -> None:
    """`{"times": [[OFFSET, MILLISECONDS], ...], "precision": SECONDS}`, from the byte at `offset` on."""
    if scope["method"] == "HEAD":
        await answer(scope, send, 200, HEADERS)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    before, last = b'{"times":[', -1
    while batch := [entry for entry in islice(times.since(offset), BATCH) if entry[0] > last]:
        body = before + json.dumps(batch, separators=(",", ":"))[1:-1].encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        before, last = b",", batch[-1][0]
        offset = last + 1
    end = (b"" if last >= 0 else before) + b'],"precision":%b}' % json.dumps(times.precision).encode()
    await send({"type": "http.response.body", "body": end})
