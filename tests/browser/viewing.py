"""What the tests of the log viewer share: a log that is served, and a page that shows it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from chromium import Page
from log_server import LogServer, Proxy, serve_log

from worker.viewer import Viewer


@asynccontextmanager
async def viewing(
    page: Page, content: bytes = b"", *, fragment: str = "", artifact: bool = False, websockets: bool = True
) -> AsyncGenerator[tuple[LogServer, Proxy], None]:
    """A live log that begins with `content`, and `page` at its viewer; yields the log and the proxy before it."""
    log = LogServer(Viewer(), artifact=artifact, websockets=websockets)
    log.write(content)
    async with serve_log(log) as proxy:
        await page.goto(f"{log.url}log/view{fragment}")
        await page.wait("document.getElementById('log')")
        yield log, proxy
        await page.goto("about:blank")


async def status(page: Page, wanted: str) -> None:
    """Wait for the state that the status line tells."""
    await page.wait(f"document.getElementById('status')?.innerText.startsWith({json.dumps(wanted)})")


async def lines(page: Page, count: int) -> None:
    """Wait until the page has so many lines."""
    await page.wait(f"document.getElementById('size').innerText.startsWith('{count:,} lines,')")


async def row(page: Page, number: int) -> str:
    """What is shown of a line, which is waited for; from 1."""
    (text,) = await page.wait(f"((row) => row && [row.querySelector('.text').textContent])({of_row(number)})")
    return str(text)


def of_row(number: int) -> str:
    """An expression for the element of a line, which is null where there is none."""
    return f"document.querySelector('.number[href=\"#L{number}\"]')?.closest('.row')"


async def in_sight(page: Page, number: int) -> None:
    """Wait until a line can be seen."""
    await page.wait(f"""(() => {{
        const [box, view] = [{of_row(number)}, document.getElementById('log')].map((e) => e?.getBoundingClientRect());
        return box && box.top >= view.top - 1 && box.bottom <= view.bottom + 1;
    }})()""")


async def at_rest(page: Page) -> None:
    """Wait until the page was drawn: a key that scrolls, pressed in the same instant as a jump, would be lost."""
    await page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
