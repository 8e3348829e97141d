"""The pure parts of the log viewer, called in the browser."""

from __future__ import annotations

import json
from typing import Any

from chromium import Page
from viewing import viewing


async def call(page: Page, module: str, expression: str) -> Any:
    """The value of an expression in which `m` is a module of the viewer."""
    async with viewing(page):
        return await page.evaluate(f"import('./view/{module}').then(async (m) => ({expression}))")


# What a line is taken apart into: each part's text, and what differs from plain.
STYLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [("plain", {})],
    "\x1b[31mred\x1b[0m not": [("red", {"fg": 1}), (" not", {})],
    "\x1b[1;4;92mthree\x1b[22;24;39m": [("three", {"bold": True, "underline": True, "fg": 10})],
    "\x1b[2;3;7;9mx\x1b[mrest": [("x", {"dim": True, "italic": True, "inverse": True, "strike": True}), ("rest", {})],
    "\x1b[100;97mx": [("x", {"bg": 8, "fg": 15})],
    "\x1b[38;5;208mx\x1b[48;2;1;2;255my": [("x", {"fg": 208}), ("y", {"fg": 208, "bg": "#0102ff"})],
    "\x1b[38:2::1:2:3mx\x1b[48:5:7my": [("x", {"fg": "#010203"}), ("y", {"fg": "#010203", "bg": 7})],
    "\x1b[38:2:1:2:3;1mx": [("x", {"fg": "#010203", "bold": True})],
    "\x1b[38;5;1;3mx": [("x", {"fg": 1, "italic": True})],
    # What is no style, or none that there is, is dropped and changes nothing.
    "\x1b[38;5;300mx\x1b[38;2;1;2my\x1b[99;5;8;6mz": [("xyz", {})],
    "a\x1b[2Kb\x1b[10;20Hc\x1b[?25ld\x1b(Be\x1b7f\x1b=g": [("abcdefg", {})],
    "\x1b]0;a title\x07x\x1b]8;;https://e/\x1b\\link\x1b]8;;\x1b\\": [("xlink", {})],
    "\x1bPq#0;2;0\x1b\\x\x1b_apc\x1b\\y": [("xy", {})],
    # One that never ends hides nothing but itself.
    "\x1b]0;a title without an end": [("0;a title without an end", {})],
    "a\x1b[12": [("a12", {})],
    "a\x1b": [("a", {})],
    "bell\x07 back\x08 del\x7f c1\x9b31m\ttab": [("bell back del c131m\ttab", {})],
}


async def test_escape_sequences_become_styles_or_nothing(page: Page) -> None:
    found = await call(
        page,
        "ansi.js",
        f"""{json.dumps(list(STYLES))}.map((line) => m.parse(line).map(({{text, style}}) => [text,
            Object.fromEntries(Object.entries(style).filter(([key, value]) => value !== m.PLAIN[key]))]))""",
    )
    assert [[tuple(part) for part in parts] for parts in found] == list(STYLES.values())


async def test_plain_text_is_what_the_parts_say_together(page: Page) -> None:
    found = await call(page, "ansi.js", f"{json.dumps(list(STYLES))}.map(m.strip)")
    assert found == ["".join(text for text, _ in parts) for parts in STYLES.values()]


async def test_the_palette_of_256(page: Page) -> None:
    found = await call(page, "ansi.js", "[16, 21, 46, 196, 231, 232, 255].map(m.paletteColour)")
    assert found == ["#000000", "#0000ff", "#00ff00", "#ff0000", "#ffffff", "#080808", "#eeeeee"]


LINKS = {
    "#L1": [0, 0],
    "#L10-L20": [9, 19],
    "#L20-L10": [9, 19],
    "12": [11, 11],
    " 10-20 ": [9, 19],
    "#L0": None,
    "#L-3": None,
    "": None,
    "#log": None,
    "#L1x": None,
}


async def test_links_to_lines(page: Page) -> None:
    found = await call(
        page,
        "links.js",
        f"{json.dumps(list(LINKS))}.map(m.parseLines).map((l) => l && [l.first, l.last, m.fragment(l)])",
    )
    assert [lines and lines[:2] for lines in found] == list(LINKS.values())
    assert [lines[2] for lines in found if lines] == ["#L1", "#L10-L20", "#L10-L20", "#L12", "#L10-L20"]


async def test_a_store_knows_its_lines_however_its_bytes_come(page: Page) -> None:
    """Over the borders of its blocks of 1 MiB, by pieces of any size, and up to its limit."""
    found = await call(
        page,
        "store.js",
        """(() => {
            const line = "0123456789abcdef".repeat(70_000); // more than one block
            const bytes = new TextEncoder().encode(`first\\n\\n${line}\\n${line}\\nno end`);
            const results = [1_000_003, 65_536, 7 << 20].map((size) => {
                const store = new m.Store(Infinity);
                for (let at = 0; at < bytes.length; at += size) store.append(bytes.subarray(at, at + size));
                const text = (n) => new TextDecoder().decode(store.bytes(store.start(n), store.stop(n)));
                const texts = Array.from({length: store.lines}, (_, n) => text(n));
                return [store.lines, store.complete, texts.join("\\n") === new TextDecoder().decode(bytes)];
            });
            const small = new m.Store(10);
            small.append(bytes.subarray(0, 100));
            const few = new m.Store(Infinity, 3);
            few.append(bytes.subarray(0, 3 << 20));
            few.append(bytes);
            return [...results, [small.size, small.full, small.lines], [few.size, few.full, few.lines]];
        })()""",
    )
    assert found == [[5, 4, True]] * 3 + [[10, True, 3], [2 << 20, True, 4]]


async def test_a_colour_goes_on_over_lines_as_far_as_it_is_set(page: Page) -> None:
    """By whatever order lines are asked for: the styles of some lines are kept, of others worked out."""
    found = await call(
        page,
        "styles.js",
        """import("./view/store.js").then(({ Store }) => {
            const store = new Store(Infinity);
            const styles = new m.Styles(store);
            const colours = Array.from({length: 3000}, (_, n) => n % 7 ? "" : `\\x1b[${n % 21 ? 31 : 0}m`);
            for (const [n, colour] of colours.entries()) {
                store.append(new TextEncoder().encode(`${colour}line ${n} ${"x".repeat(n % 500)}\\n`));
                styles.update();
            }
            const expected = (n) => (n === 0 || Math.ceil(n / 7) * 7 % 21 === 7 ? null : 1);
            const asked = [2999, 0, 1, 7, 8, 255, 256, 257, 2000, 1500, 1501, 3000];
            return asked.filter((n) => styles.at(n).fg !== expected(n));
        })""",
    )
    assert found == []


OVERWRITTEN = {"a\rb": "b", "a\r\r": "a", "": "", "\r\r": "", "10%\r20%\r": "20%", "\rx": "x", "\r" * 99 + "x": "x"}


async def test_what_is_searched_of_overwritten_lines_is_what_is_shown(page: Page) -> None:
    found = await call(
        page,
        "text.js",
        f"""import("./view/store.js").then(({{ Store }}) => {{
            const store = new Store(Infinity);
            store.append(new TextEncoder().encode({json.dumps(list(OVERWRITTEN))}.join("\\n") + "\\n"));
            const shown = Array.from({{length: store.lines}}, (_, line) => m.shown(store, line).text);
            return [shown, m.slice(store, 0).text.split("\\n")];
        }})""",
    )
    assert found == [list(OVERWRITTEN.values())] * 2
