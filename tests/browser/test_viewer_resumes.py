"""What the log viewer has received is the log, byte for byte, whatever happened to its connections."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from chromium import Page
from log_server import LogServer
from viewing import in_sight, lines, status, viewing


async def assert_whole(page: Page, log: LogServer, folder: Path) -> None:
    """Save what the page has received, as its reader can, and compare."""
    received = await page.download("#save", folder)
    assert len(received) == len(log.content)
    assert hashlib.sha256(received).digest() == hashlib.sha256(log.content).digest()


def noise(size: int, seed: int) -> bytes:
    """Bytes of every kind, with newlines among them."""
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(("websockets", "knows_offsets"), [(True, True), (False, True), (False, False)])
async def test_a_connection_that_is_cut_again_and_again(
    page: Page, websockets: bool, knows_offsets: bool, tmp_path: Path
) -> None:
    async with viewing(page, websockets=websockets, offsets=knows_offsets) as (log, proxy):
        log.write(b"begun\n")
        await lines(page, 1)
        cuts = random.Random(4)
        counts = [1, *(cuts.randrange(300_000) for _ in range(5))]
        proxy.cut_after(*counts)
        log.write(noise(2_000_000, 1))
        log.end()
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)
        kinds = [kind for kind, _ in log.asked]
        asked = [offset for _, offset in log.asked]
        assert asked == sorted(asked)
        assert len(asked) > len(counts) / 2
        assert 0 < asked[-1] <= len(log.content)
        assert set(kinds) == {"websocket" if websockets else "http"}


@pytest.mark.parametrize("websockets", [True, False])
async def test_a_log_that_goes_on_after_a_cut_in_silence(page: Page, websockets: bool, tmp_path: Path) -> None:
    async with viewing(page, b"before\n", websockets=websockets) as (log, proxy):
        await status(page, "live")
        await lines(page, 1)
        proxy.cut()
        await status(page, "reconnecting")
        await status(page, "live")
        log.write(b"after\n")
        await in_sight(page, 2)
        log.end()
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)


async def test_a_network_that_comes_back_while_the_end_is_under_way(page: Page, tmp_path: Path) -> None:
    async with viewing(page, b"begun\n") as (log, _):
        await lines(page, 1)
        # The page is busy until the rest has come to the browser, and hears of the network before it.
        log.content += b"rest\n" * 400
        await page.evaluate("""(() => {
            const request = new XMLHttpRequest();
            request.open("GET", "/end", false);
            request.send();
            dispatchEvent(new Event("online"));
        })()""")
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)


async def test_a_silent_log_whose_answers_end_again_and_again(page: Page, tmp_path: Path) -> None:
    """By a stream, as through a tunnel that breaks: the queue says that the task still runs."""
    async with viewing(page, b"begun\n", artifact=True, websockets=False) as (log, _):
        await lines(page, 1)
        log.end()
        # With what was new, without, and as the queue has led to it.
        await log.wait_asked(3)
        log.ended = False
        log.write(b"not silent\n")
        await in_sight(page, 2)
        log.detach()
        log.end()
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)


@pytest.mark.parametrize("close_code", [1001, 4008])
async def test_the_rest_is_in_the_stored_log(page: Page, close_code: int, tmp_path: Path) -> None:
    """The worker stops, or the viewer was too slow: between the live and the stored log there is a time without."""
    async with viewing(page, noise(100_000, 2), artifact=True) as (log, _):
        await status(page, "live")
        if close_code == 4008:
            log.end(close_code)
        log.detach()
        await status(page, "reconnecting")
        log.write(noise(100_000, 3))
        log.end()
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)
        assert log.asked == [("websocket", 0)]


async def test_a_stored_log_that_is_cut_is_read_on(page: Page, tmp_path: Path) -> None:
    async with viewing(page, noise(1_000_000, 4), artifact=True) as (log, proxy):
        log.detach()
        log.end()
        proxy.cut_after(400_000, 700_000)
        await page.goto(f"{log.url}log/view?again")
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)


async def test_a_page_that_is_there_before_its_log(page: Page, tmp_path: Path) -> None:
    async with viewing(page, artifact=True) as (log, _):
        log.detach()
        await page.goto(f"{log.url}log/view?again")
        await status(page, "waiting: there is no log yet")
        log.live = True
        log.write(b"here it is\n")
        await in_sight(page, 1)
        assert log.asked[-1] == ("websocket", 0)
        log.end()
        await status(page, "ended")
        await assert_whole(page, log, tmp_path)


async def test_a_log_that_nobody_has_any_more(page: Page) -> None:
    async with viewing(page, b"begun\n") as (log, _):
        await lines(page, 1)
        log.detach()
        await status(page, "cut off: reload (the worker serves this log no longer)")
        log.live = True
        log.write(b"back\n")
        await page.click("#reload")
        await in_sight(page, 2)
        await status(page, "live")


async def test_a_log_that_is_longer_than_a_page_can_hold(page: Page) -> None:
    async with viewing(page, noise(1000, 5)) as (log, _):
        told = await page.evaluate(f"""Promise.all([import("./view/source.js"), import("./view/store.js")])
            .then(async ([{{ Source }}, {{ Store }}]) => {{
                const [store, told] = [new Store(100), []];
                const places = {{ live: "{log.url}log/", artifact: null }};
                await new Source(places, store, () => {{}}, (state, detail) => told.push(state, detail)).run();
                return [store.size, ...told.slice(-2)];
            }})""")
        assert told == [100, "cut off", "the log is longer than this page can hold"]
