"""Drives Chromium by its DevTools protocol: a page, and what somebody in front of it can do and see."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
import trio_websocket

PROGRAM = "chromium"  # Debian's package
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
]
MAX_MESSAGE = 64 * 1024 * 1024  # bytes
LIMIT = 25.0  # seconds until a page shows what is waited for

# What keys are called by their events, with the key code and the text that pressing them types.
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowUp": (38, ""),
    "ArrowDown": (40, ""),
    "PageUp": (33, ""),
    "PageDown": (34, ""),
    " ": (32, " "),
}
SHIFT = 8

Json = dict[str, Any]


class BrowserError(Exception):
    """The browser refused a command, or a script failed."""


@contextmanager
def run_chromium() -> Generator[str, None, None]:
    """Chromium with a profile of its own, for as long as the block runs; yields the URL that commands go to."""
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        argv = [PROGRAM, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            try:
                assert process.stderr is not None
                said = ""
                while not (match := re.search(r"DevTools listening on (ws://\S+)", said)):
                    line = process.stderr.readline()
                    assert line, f"{PROGRAM} ended: {said}"
                    said += line
                # What it says further on is read by nobody, and it would wait where that did not fit into the pipe.
                process.stderr.close()
                yield match[1]
            finally:
                process.kill()


class Connection:
    """Commands and their answers, and the events that come between them."""

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self._socket = socket
        self._last = 0
        self._answers: dict[int, trio.MemorySendChannel[Json]] = {}
        self.pages: dict[str, Page] = {}
        self.downloads, self._downloaded = _channel()

    async def run(self) -> None:
        """Hand out what comes in, until the connection ends."""
        while True:
            message = json.loads(await self._socket.get_message())
            if "id" in message:
                self._answers.pop(message["id"]).send_nowait(message)
            elif message["method"] == "Browser.downloadProgress" and message["params"]["state"] == "completed":
                self.downloads.send_nowait(message)
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].noticed(message["method"], message["params"])

    async def downloaded(self) -> None:
        """Return when a download is complete."""
        await self._downloaded.receive()

    async def send(self, method: str, session: str | None = None, **params: Any) -> Json:
        """What the browser answers. Raises BrowserError."""
        self._last += 1
        message: Json = {"id": self._last, "method": method, "params": params}
        send, receive = _channel()
        self._answers[self._last] = send
        await self._socket.send_message(json.dumps(message | ({"sessionId": session} if session else {})))
        answer = await receive.receive()
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: Json = answer["result"]
        return result


class Page:
    """A page in a profile of its own. `complaints` are uncaught exceptions and breaches of its CSP."""

    def __init__(self, connection: Connection, session: str, context: str) -> None:
        self._connection = connection
        self._session = session
        self._context = context
        self.complaints: list[str] = []
        self._loaded = trio.Event()  # replaced whenever it is set

    def noticed(self, method: str, params: Json) -> None:
        """An event came."""
        match method:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Page.loadEventFired":
                self._loaded.set()
                self._loaded = trio.Event()
            case "Log.entryAdded" if params["entry"]["source"] == "security":
                self.complaints.append(params["entry"]["text"])

    async def send(self, method: str, **params: Any) -> Json:
        """A command of the protocol, to this page."""
        return await self._connection.send(method, self._session, **params)

    async def goto(self, url: str) -> None:
        """Go to a URL; returns when all is loaded."""
        loaded = self._loaded
        answer = await self.send("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        await loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises BrowserError where it throws."""
        answer = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true, also over navigations."""
        with trio.move_on_after(LIMIT):
            while True:
                loaded = self._loaded
                with suppress(BrowserError):  # nothing is loaded, or something else than a moment ago
                    value = await self.evaluate(f"({expression}) || null")
                    if value is not None:
                        return value
                await self._something(expression, loaded)
        shown = await self.evaluate("document.body.innerText")
        raise AssertionError(f"{expression} does not come true; the page says: {shown[:500]!r}")

    async def _something(self, expression: str, loaded: trio.Event) -> None:
        """Return when the expression has become true, or another document was loaded: one without scripts, perhaps."""
        look = f"""new Promise((resolve) => {{
            const look = () => {{ ({expression}) ? resolve() : setTimeout(look, 10); }};
            look();
        }})"""

        async def become_true() -> None:
            with suppress(BrowserError):
                await self.evaluate(look)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(become_true)
            await loaded.wait()
            nursery.cancel_scope.cancel()

    async def text(self, selector: str) -> str:
        """The text of the first element that the selector finds."""
        return str(await self.wait(f"document.querySelector({json.dumps(selector)})?.innerText"))

    async def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys, one after the other: characters, or names as in `KEYS`."""
        for key in keys:
            code, text = KEYS[key] if key in KEYS else (ord(key.upper()) if key.isalnum() else 0, key)
            event: Json = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            if key in KEYS:
                event["code"] = key
            await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            await self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    async def click(self, selector: str, modifiers: int = 0) -> None:
        """Click the middle of the first element that the selector finds."""
        box = await self.wait(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            if (!element || document.readyState !== "complete") return null;
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            return box.width && {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, modifiers=modifiers, **box
            )

    async def disable_scripts(self) -> None:
        """From now on the page's own scripts do not run."""
        await self.send("Emulation.setScriptExecutionDisabled", value=True)

    async def look(self, *, width: int = 1100, height: int = 700, dark: bool = False) -> None:
        """Give the page a size and a colour scheme."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = "dark" if dark else "light"
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self) -> bytes:
        """What can be seen, as a PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot"))["data"])

    async def accessible(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """What assistive technology is told: role, name and properties of each element that is not ignored."""
        nodes = (await self.send("Accessibility.getFullAXTree"))["nodes"]
        return [
            (
                node["role"]["value"],
                node.get("name", {}).get("value", ""),
                {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
            )
            for node in nodes
            if not node["ignored"]
        ]

    async def download(self, selector: str, folder: Path) -> bytes:
        """Click what offers a file, and return the file."""
        await self._connection.send(
            "Browser.setDownloadBehavior",
            behavior="allowAndName",
            downloadPath=str(folder),
            eventsEnabled=True,
            browserContextId=self._context,
        )
        await self.click(selector)
        await self._connection.downloaded()
        (file,) = await trio.Path(folder).iterdir()
        return await file.read_bytes()


@asynccontextmanager
async def open_page(endpoint: str) -> AsyncGenerator[Page, None]:
    """A new page with an empty profile, in the Chromium at `endpoint`."""
    async with (
        trio.open_nursery() as nursery,
        trio_websocket.open_websocket_url(endpoint, max_message_size=MAX_MESSAGE) as socket,
    ):
        connection = Connection(socket)
        nursery.start_soon(connection.run)
        context = (await connection.send("Target.createBrowserContext"))["browserContextId"]
        target = await connection.send("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await connection.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(connection, attached["sessionId"], context)
        connection.pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            await page.send(f"{domain}.enable")
        await page.look()
        yield page
        await connection.send("Target.disposeBrowserContext", browserContextId=context)
        nursery.cancel_scope.cancel()


def _channel() -> tuple[trio.MemorySendChannel[Json], trio.MemoryReceiveChannel[Json]]:
    return trio.open_memory_channel[Json](100)
