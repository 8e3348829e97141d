"""The log viewer in Chromium: what it shows, and how one gets about in it."""

from __future__ import annotations

import json

import pytest
import trio
from chromium import SHIFT, Page
from viewing import at_rest, in_sight, lines, of_row, row, status, viewing, worst_contrast

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 1">',
    "<style>#log { display: none }</style></span></div><h1>ended</h1>",
    '"><svg onload=window.hacked=1>',
    "&lt;b&gt; &amp; <a href=javascript:hacked=1>here</a>",
    "\x1b]0;<script>window.hacked = 1</script>\x07title",
    "\x1b[31;1m<iframe srcdoc='<script>parent.hacked=1</script>'>\x1b[0m",
    "\x1b[38;2;1;2;3;url(https://e/)m styled",
]


async def test_what_a_log_says_is_text_and_nothing_else(page: Page) -> None:
    async with viewing(page, "\n".join(HOSTILE).encode()) as (log, _):
        log.end()
        await status(page, "ended")
        shown = [await row(page, number + 1) for number in range(len(HOSTILE))]
        assert shown == [*HOSTILE[:5], "title", HOSTILE[6][7:-4], "rl(https://e/)m styled"]
        assert await page.evaluate("document.querySelectorAll('script').length") == 1
        assert await page.evaluate("document.querySelectorAll('#log :is(img, svg, style, iframe, h1)').length") == 0
        assert await page.evaluate("typeof hacked") == "undefined"
        # Even where markup got in: the page's policy forbids what it could do.
        breach = "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))"
        await page.evaluate(breach)
        assert await page.evaluate("typeof hacked") == "undefined"
        assert len(page.complaints) == 1
        assert "Content Security Policy" in page.complaints.pop()


async def test_it_asks_no_other_host_for_anything(page: Page) -> None:
    async with viewing(page, b"x\n") as (_, __):
        await status(page, "live")
        assert await page.evaluate("performance.getEntriesByType('resource').every((e) => e.name.startsWith(origin))")
        assert await page.evaluate("[...document.links].every((link) => link.origin === location.origin)")


async def test_colours_and_styles(page: Page) -> None:
    text = [
        "\x1b[31mred\x1b[1m and bold",
        "still\x1b[0m",
        "\x1b[38;5;208morange\x1b[0m \x1b[7minverse\x1b[0m \x1b[44mblue",
    ]
    async with viewing(page, "\n".join(text).encode()) as (log, _):
        log.end()
        await status(page, "ended")

        async def seen(number: int, part: int) -> list[str]:
            style = f"getComputedStyle({of_row(number)}.querySelectorAll('.text span')[{part}])"
            found: list[str] = await page.evaluate(f"[{style}.color, {style}.backgroundColor, {style}.fontWeight]")
            return found

        red, none = "rgb(179, 32, 26)", "rgba(0, 0, 0, 0)"
        assert await row(page, 1) == "red and bold"
        assert await seen(1, 0) == [red, none, "400"]
        assert await seen(1, 1) == [red, none, "700"]
        assert await seen(2, 0) == [red, none, "700"]
        assert await seen(3, 0) == ["rgb(255, 135, 0)", none, "400"]
        assert await seen(3, 1) == ["rgb(255, 255, 255)", "rgb(31, 35, 40)", "400"]
        assert await seen(3, 2) == ["rgb(255, 255, 255)", "rgb(31, 117, 216)", "400"]


async def test_bytes_that_are_no_text_and_lines_that_are_too_long(page: Page) -> None:
    long = b"<" + b"0123456789abcdef" * 65536 + b">"
    content = [
        b"caf\xc3\xa9 \xff\xfe \xe2\x82",
        "😀 日本 \x00\x07".encode(),
        long,
        b"",
        b"10%\r20%\r100%\r\n",
        b"a\r\r\n",
    ]
    async with viewing(page, b"\n".join(content)) as (log, _):
        log.end()
        await status(page, "ended")
        assert await row(page, 1) == "café �� �"
        assert await row(page, 2) == "😀 日本 "
        shown = await row(page, 3)
        assert shown.startswith("<0123456789abcdef")
        assert shown.endswith("0123456789abcde … 1,040,386 bytes more: see the raw log")
        assert await row(page, 5) == "100%"
        assert await row(page, 6) == ""
        assert await row(page, 7) == "a"
        await lines(page, 7)
        await page.press("w")
        await page.wait(f"{of_row(3)}.offsetHeight > 500")


async def test_progress_that_overwrites_itself(page: Page) -> None:
    async with viewing(page, b"begin\n 10%") as (log, _):
        assert await row(page, 2) == " 10%"
        log.write(b"\r 20%\r")
        await page.wait(f"{of_row(2)}.innerText.includes('20%')")
        assert await row(page, 2) == " 20%"
        log.write(b"100%\ndone\n")
        assert await row(page, 3) == "done"
        assert await row(page, 2) == "100%"


async def test_it_follows_until_somebody_looks_elsewhere(page: Page) -> None:
    async with viewing(page, b"line\n" * 500) as (log, _):
        await in_sight(page, 500)
        log.write(b"line\n" * 5000)
        await in_sight(page, 5500)
        await at_rest(page)
        assert await page.evaluate("document.getElementById('follow').ariaPressed") == "true"

        await page.send("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=-2000)
        await page.wait("document.getElementById('follow').ariaPressed === 'false'")
        await in_sight(page, 5370)
        log.write(b"line\n" * 500)
        await lines(page, 6000)
        await in_sight(page, 5370)

        await page.press("End")
        await in_sight(page, 6000)
        await page.wait("document.getElementById('follow').ariaPressed === 'true'")
        log.write(b"line\n")
        await in_sight(page, 6001)

        await page.press("f", "Home")
        await in_sight(page, 1)
        log.write(b"line\n")
        await lines(page, 6002)
        await page.press("f")
        await in_sight(page, 6002)


UPWARDS = {
    "a key": None,
    # As screen readers and searches of the browser do.
    "a script": "document.querySelector('.row').scrollIntoView()",
    "a selection": """getSelection().setBaseAndExtent(
        document.querySelector('.row:last-child .text').firstChild, 1,
        document.querySelector('.row:nth-last-child(2) .text').firstChild, 1)""",
}


@pytest.mark.parametrize("how", UPWARDS)
async def test_who_goes_up_in_any_way_is_not_led_back(page: Page, how: str) -> None:
    async with viewing(page, b"line\n" * 500) as (log, _):
        await in_sight(page, 500)
        await at_rest(page)
        if action := UPWARDS[how]:
            await page.evaluate(action)
        else:
            await page.press(" ", modifiers=SHIFT)
        await page.wait("document.getElementById('follow').ariaPressed === 'false'")
        log.write(b"line\n" * 500)
        await lines(page, 1000)
        await at_rest(page)
        assert int(await page.evaluate("document.querySelector('.row').ariaPosInSet")) < 500
        await page.press("f")
        log.write(b"line\n" * 500)
        await in_sight(page, 1500)
        assert await page.evaluate("document.getElementById('follow').ariaPressed") == "true"


async def test_a_flood_carries_nobody_along_who_looks_elsewhere(page: Page) -> None:
    async with viewing(page, b"line\n" * 500) as (log, _), trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                log.write(b"line\n" * 500)
                await at_rest(page)

        await in_sight(page, 500)
        nursery.start_soon(flood)
        for key in ("PageUp", "ArrowUp"):
            await page.wait("document.getElementById('follow').ariaPressed === 'true'")
            await page.press(key)
            await page.wait("document.getElementById('follow').ariaPressed === 'false'")
            await at_rest(page)
            seen = await page.evaluate("document.querySelector('.number').innerText")
            size = int(await page.evaluate("parseInt(document.getElementById('size').innerText.replaceAll(',', ''))"))
            await page.wait(f"parseInt(document.getElementById('size').innerText.replaceAll(',', '')) > {size + 5000}")
            assert abs(int(await page.evaluate("document.querySelector('.number').innerText")) - int(seen)) < 100
            await page.press("End")
        nursery.cancel_scope.cancel()


async def test_numbers_are_links(page: Page) -> None:
    async with viewing(page, b"line\n" * 1000, fragment="#L500") as (log, _):
        await in_sight(page, 500)
        selected = "[...document.querySelectorAll('.selected .number')].map((number) => number.innerText).join()"
        await page.wait(f"{selected} === '500'")

        await page.click('.number[href="#L503"]')
        await page.wait("location.hash === '#L503'")
        await page.wait(f"{selected} === '503'")  # the view moves with it
        await page.click('.number[href="#L500"]', SHIFT)
        await page.wait("location.hash === '#L500-L503'")
        await page.wait(f"{selected} === '500,501,502,503'")

        await page.evaluate("history.back()")
        await page.wait("location.hash === '#L503'")
        await page.wait(f"{selected} === '503'")

        await page.press("l", *"1500-1600", "Enter")
        await page.wait("location.hash === '#L1500-L1600'")
        log.write(b"line\n" * 1000)
        await in_sight(page, 1500)
        await page.press("l", *"nothing", "Enter")
        assert not await page.evaluate("document.getElementById('line').validity.valid")


async def test_search(page: Page) -> None:
    text = [f"{n} hay" for n in range(2000)]
    text[50::100] = [f"{n} needle" for n in range(20)]
    text[70::100] = [f"{n} \x1b[1mN\x1b[0meedless" for n in range(20)]
    async with viewing(page, "\n".join(text).encode() + b"\n") as (log, _):
        await lines(page, 2000)
        await page.press("Home")
        await in_sight(page, 1)

        await page.press("/", *"needle")
        await page.wait("document.getElementById('found').innerText === '1 of 40 lines'")
        await in_sight(page, 51)
        assert await page.evaluate(f"{of_row(51)}.querySelector('mark').innerText") == "needle"
        assert await page.evaluate(f"{of_row(51)}.ariaCurrent") == "true"
        await page.press("Enter")
        await in_sight(page, 71)
        assert await page.text("#found") == "2 of 40 lines"
        # A match may lie over parts of different style.
        marks = "[...document.querySelectorAll('[aria-current] mark')].map((mark) => mark.innerText).join('+')"
        assert await page.evaluate(marks) == "N+eedle"
        await page.press("Enter", modifiers=SHIFT)
        await page.press("Enter", modifiers=SHIFT)
        await in_sight(page, 1971)
        assert await page.text("#found") == "40 of 40 lines"

        await page.click("#case")
        await page.wait("document.getElementById('found').innerText.endsWith('20 lines')")
        log.write(b"another needle\n")
        await page.wait("document.getElementById('found').innerText.endsWith('21 lines')")

        await page.press("/", *"(no[thing*")
        await page.wait("document.getElementById('found').innerText === 'not found'")
        await page.press("Escape")
        assert await page.evaluate("[document.activeElement.id, document.querySelectorAll('mark').length]") == [
            "log",
            0,
        ]


async def test_a_match_that_comes_late_leads_nobody_away(page: Page) -> None:
    async with viewing(page, b"hay\n" * 500) as (log, _):
        await in_sight(page, 500)
        await page.press("/", *"needle")
        await page.wait("document.getElementById('found').innerText === 'not found'")
        log.write(b"needle\n" + b"hay\n" * 500)
        await page.wait("document.getElementById('found').innerText === '1 line'")
        await in_sight(page, 1001)
        assert await page.evaluate("document.getElementById('follow').ariaPressed") == "true"
        await page.press("Enter")
        await in_sight(page, 501)


PROBLEMS = [
    "[taskcluster:error] exit code 1",
    "main.c:3:1: error: expected ';'",
    "ValueError: no",
    "2026-01-31 ERROR worker failed",
    "FATAL: gone",
    "tests/test_it.py::test_it FAILED",
    "TEST-UNEXPECTED-FAIL | test.js",
    "--- FAIL: TestIt (0.00s)",
    "Traceback (most recent call last):",
    "thread 'main' panicked at src/main.rs:3",
    "panic: runtime",
    "Segmentation fault (core dumped)",
]
HARMLESS = [
    "[taskcluster 2026-01-31T00:00:00.000Z] Executing command 0: grep FAILED",
    "0 errors",
    "ERRORS=0",
    "FAILOVER",
    "failed over",
    "no failure",
    "terrors",
    "[taskcluster:warn] x",
]


async def test_from_error_to_error(page: Page) -> None:
    text = [line for problem in PROBLEMS for line in (problem, *HARMLESS * 20)]
    async with viewing(page, "\n".join(text).encode() + b"\n") as (log, _):
        await page.wait(f"document.getElementById('problems').innerText === '{len(PROBLEMS)} errors'")
        await page.press("Home")
        await in_sight(page, 1)
        visited = []
        for _ in range(len(PROBLEMS) + 1):
            await page.press("e")
            visited.append(await page.wait("document.querySelector('[aria-current] .text').innerText"))
        assert visited == [*PROBLEMS, PROBLEMS[0]]
        await page.press("E")
        assert await page.evaluate("document.querySelector('[aria-current] .text').innerText") == PROBLEMS[-1]
        assert await page.evaluate("document.querySelector('[aria-current]').classList.contains('problem')")
        log.write(b"error: one more\n")
        await page.wait(f"document.getElementById('problems').innerText === '{len(PROBLEMS) + 1} errors'")
        # Who looks at an error at the end is not carried on by what comes after it.
        await page.press("e")
        last = len(text) + 1
        await in_sight(page, last)
        log.write(b"more\n" * 1000)
        await lines(page, last + 1000)
        await in_sight(page, last)


async def test_times_of_lines(page: Page) -> None:
    async with viewing(page) as (log, _):
        log.write(b"one\ntwo\n", time=1_769_817_600_000)
        log.write(b"three\n", time=1_769_817_601_500)
        await lines(page, 3)
        await page.press("t")
        await page.wait(f"{of_row(3)}.querySelector('time').innerText === '00:00:01.500'")
        await page.evaluate(f"getSelection().selectAllChildren({of_row(2)}.querySelector('.text'))")
        log.write(b"four\n", time=1_769_817_602_001)
        await page.wait(f"{of_row(4)}?.querySelector('time').innerText === '00:00:02.001'")
        assert await page.evaluate("getSelection().toString()") == "two"
        times = "[...document.querySelectorAll('.row time')].map((time) => time.dateTime)"
        assert await page.evaluate(times) == [
            "2026-01-31T00:00:00.000Z",
            "2026-01-31T00:00:00.000Z",
            "2026-01-31T00:00:01.500Z",
            "2026-01-31T00:00:02.001Z",
        ]
        log.end()
        await status(page, "ended")
        assert not await page.evaluate("document.getElementById('times').disabled")


async def test_what_somebody_has_chosen_is_kept(page: Page) -> None:
    async with viewing(page, b"x" * 2000 + b"\n") as (log, _):
        await lines(page, 1)
        await page.press("w")
        await page.wait(f"{of_row(1)}.offsetHeight > 100")
        await page.press("?")
        await page.click("#keys")
        await page.press("Escape")
        await page.goto(f"{log.url}log/view?again")
        await page.wait(f"{of_row(1)}?.offsetHeight > 100")
        await page.press("w")
        assert await page.evaluate("document.getElementById('wrap').ariaPressed") == "true"


async def test_a_log_that_ended_long_ago_knows_no_times(page: Page) -> None:
    async with viewing(page, b"x\n", artifact=True) as (log, _):
        log.end()
        log.detach()
        await page.goto(f"{log.url}log/view?again")
        await status(page, "ended")
        await page.wait("document.getElementById('times').disabled")


async def test_colours_can_be_read_by_day_and_night(page: Page) -> None:
    """Contrast after WCAG 2: 4.5 : 1 or more, for each named colour and each text of the page."""
    codes = [*range(30, 38), *range(90, 98)]
    text = "".join(f"\x1b[{code}mtext\x1b[0m" for code in codes)
    grounds = "".join(f"\x1b[{code + 10}mtext\x1b[0m" for code in codes)
    pairs = "".join(f"\x1b[{30 if light else 97};{code}mtext\x1b[0m" for code in range(41, 47) for light in (0, 1))
    content = f"{text}\n{grounds}\n{pairs}\n\x1b[7minverse\x1b[0m\n\x1b[31;44merror: x\n"
    async with viewing(page, content.encode()) as (log, _):
        log.end()
        await status(page, "ended")
        await page.press("/", *"error: x")
        await page.wait("document.querySelector('mark')")
        for dark in (False, True):
            await page.look(dark=dark)
            worst = await worst_contrast(page)
            assert worst[0] >= 4.5, worst


async def test_by_keyboard_alone_and_by_ear(page: Page) -> None:
    async with viewing(page, b"one\nerror: two\nthree\n") as (log, _):
        log.end()
        await status(page, "ended")
        # From the log, which has the focus, once around: nothing holds the focus, and all can be seen where it is.
        names = []
        for _ in range(15):
            await page.press("Tab")
            names.append(
                await page.evaluate("""(() => {
                const element = document.activeElement;
                const seen = element === document.body || element.matches(":focus-visible");
                return seen ? element.ariaLabel ?? element.innerText : `${element.id} cannot be seen`;
            })()""")
            )
        wanted = {"Skip to the log", "Search the log", "Match case", "Next error", "Line", "Wrap", "Log"}
        assert wanted <= set(names)
        assert len(set(names)) >= 12
        assert not any(name.endswith("cannot be seen") for name in names)
        await page.evaluate("document.querySelector('.skip').focus()")
        await page.press("Enter")
        await page.wait("document.activeElement.id === 'log'")

        heard = await page.accessible()
        roles = [(role, name) for role, name, _ in heard]
        for expected in [
            ("heading", "The log of a test"),
            ("status", ""),
            ("search", "In the log"),
            ("searchbox", "Search the log"),
            ("button", "Match case"),
            ("group", "Errors"),
            ("textbox", "Line"),
            ("link", "Raw"),
            ("main", ""),
            ("region", "Log"),
            ("list", "Lines"),
            ("link", "Line 2"),
        ]:
            assert expected in roles, f"{expected} is not among {roles}"
        assert [role for role, _ in roles].count("listitem") == 3
        places = "[...document.querySelectorAll('.row')].map((row) => `${row.ariaPosInSet} of ${row.ariaSetSize}`)"
        assert await page.evaluate(places) == ["1 of 3", "2 of 3", "3 of 3"]
        assert all(name for role, name in roles if role in {"button", "link", "searchbox", "textbox", "checkbox"})

        await page.press("?")
        heard = await page.accessible()
        assert ("dialog", "Keyboard shortcuts") in [(role, name) for role, name, _ in heard]
        await page.press("Escape")
        assert await page.evaluate("document.activeElement.id") == "log"
        await page.press("e")
        assert await page.wait("document.querySelector('[aria-current] .text').innerText") == "error: two"
        assert await page.evaluate("document.getElementById('told').innerText") == "Line 2: error: two"
        await page.press("l", "3", "Enter")
        await page.wait("document.getElementById('told').innerText === 'Line 3: three'")
        await page.press("/", *"one")
        await page.wait("document.getElementById('told').innerText === 'Line 1: one'")
        # What is said without the keyboard going there: the state of the log, how much is found, and the line.
        assert [properties["live"] for role, _, properties in await page.accessible() if role == "status"] == [
            "polite"
        ] * 3


async def test_a_narrow_page_needs_no_scrolling_sideways_but_for_the_log(page: Page) -> None:
    await page.look(width=320, height=600)
    async with viewing(page, json.dumps({"x": "y" * 500}).encode() + b"\n"):
        await lines(page, 1)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320
        assert await page.evaluate("document.getElementById('log').clientHeight") > 300
