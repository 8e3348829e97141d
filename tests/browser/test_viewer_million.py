"""The log viewer with a log of a million lines. How fast that is, docs/viewer.md tells."""

from __future__ import annotations

from chromium import Page
from viewing import at_rest, in_sight, lines, of_row, row, status, viewing

COUNT = 1_000_000
EVERY = 1000


def content() -> bytes:
    return b"".join(
        b"%07d a \x1b[32mrare\x1b[0m needle\n" % number
        if number % EVERY == 0
        else b"%07d a line of the log with some words in it, as many as lines have\n" % number
        for number in range(1, COUNT + 1)
    )


async def test_a_million_lines(page: Page) -> None:
    async with viewing(page, content()) as (log, _):
        log.end()
        await status(page, "ended")
        await lines(page, COUNT)
        await in_sight(page, COUNT)

        await page.press("/", *"rare needle")
        await page.wait(f"document.getElementById('found').innerText.endsWith('of {COUNT // EVERY:,} lines')")
        await page.press("Escape", "Home")
        await in_sight(page, 1)
        assert await page.evaluate("document.getElementById('log').scrollTop") == 0

        await at_rest(page)
        # By the wheel rows move by pixels as in any list, although all of them are higher than the page can be.
        for _ in range(3):
            await page.send("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=180)
        await in_sight(page, 31)

        await page.press("l", *"500000", "Enter")
        await in_sight(page, 500_000)
        assert (await row(page, 500_000)).startswith("0500000 ")
        share = "document.getElementById('log').scrollTop / document.getElementById('spacer').offsetHeight"
        assert 0.49 < await page.evaluate(share) < 0.51
        await at_rest(page)
        await page.press("PageDown")
        await page.wait(f"{of_row(500_000)}?.getBoundingClientRect().bottom < 0 || !{of_row(500_000)}")
        await in_sight(page, 500_040)

        # By the scroll bar.
        await page.evaluate("log.scrollTop = 0.25 * spacer.offsetHeight")
        await page.wait(f"Math.abs(parseInt(document.querySelector('.number').innerText) - {COUNT // 4}) < 2000")
        await page.press("w", "End")
        await in_sight(page, COUNT)
        await page.press("w", "End")
        await in_sight(page, COUNT)

        assert await page.evaluate("document.querySelectorAll('*').length") < 1000
        await page.send("HeapProfiler.collectGarbage")
        usage = await page.send("Runtime.getHeapUsage")
        assert usage["usedSize"] < 32e6
        assert usage["backingStorageSize"] < len(log.content) + 32e6
