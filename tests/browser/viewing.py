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
    page: Page,
    content: bytes = b"",
    *,
    fragment: str = "",
    artifact: bool = False,
    websockets: bool = True,
    offsets: bool = True,
) -> AsyncGenerator[tuple[LogServer, Proxy], None]:
    """A live log that begins with `content`, and `page` at its viewer; yields the log and the proxy before it."""
    log = LogServer(Viewer(), artifact="/artifact" if artifact else None, websockets=websockets, offsets=offsets)
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


async def worst_contrast(page: Page) -> tuple[float, str, str]:
    """The lowest contrast (WCAG 2) of any text that the page shows, with its element's class and text."""
    ratio, class_name, text = await page.evaluate("""(() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => parse(colour).slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return parse(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) => element.offsetParent
        && !element.disabled && [...element.childNodes].some((node) => node.data?.trim()));
    return texts.map((element) => {
        const [one, other] = [light(getComputedStyle(element).color), light(ground(element))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        return [ratio, element.className, element.innerText];
    }).sort(([one], [other]) => one - other)[0];
})()""")
    return float(ratio), str(class_name), str(text)
