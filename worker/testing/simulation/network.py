"""The network between the workers and the queue: it streams in both directions, and fails in every way that we know.

A client sees httpx's errors, as from real connections. What reached the queue is done there, whoever waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import httpx
import trio
from starlette.types import ASGIApp

from worker.ports import Ports
from worker.testing.simulation import limits
from worker.testing.simulation.exchange import Exchange, Headers
from worker.testing.simulation.fates import EARLY, NONSENSE, Fate, dated, draw
from worker.testing.simulation.history import describe

if TYPE_CHECKING:
    from worker.testing.simulation.ports import SimulatedPorts
    from worker.testing.simulation.world import World


@dataclass(frozen=True)
class Sent:
    """A request as the witness sees it. `body` is empty for transfers."""

    who: str
    method: str
    path: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Network:
    """Carries requests to `app`. What runs at the queue's side runs in `nursery`, and outlives the clients."""

    def __init__(self, world: World, app: ASGIApp, clock: Ports, nursery: trio.Nursery) -> None:
        self._world = world
        self._app = app
        self._clock = clock
        self._nursery = nursery
        self._open: dict[Exchange, str] = {}
        self._cut: set[str] = set()
        self.dated: dict[str, float] = {}  # since when somebody knows the queue's clock
        self._haunted: set[object] = set()  # what began among faults and is still under way
        self._cleared = trio.Event()
        self.outage = ""  # how the queue cannot be reached: refused, silent, 503; empty: it can

    def transport(self, ports: SimulatedPorts) -> httpx.AsyncBaseTransport:
        """The way of one participant."""
        return Transport(self, ports)

    def cut(self, who: str) -> None:
        """The machine of `who` is dead: nobody hears of its requests any more."""
        self._cut.add(who)
        for exchange, owner in list(self._open.items()):
            if owner == who:
                exchange.hang_up()

    async def wait_clear(self) -> None:
        """Return when nothing is under way any more that a fault may still befall."""
        while self._haunted:
            self._cleared = trio.Event()
            await self._cleared.wait()

    def _fate(self, sent: Sent, *, faulty: bool) -> Fate:
        chaos = self._world.chaos
        if not faulty or chaos.calm:
            return Fate()
        if self.outage:
            chaos.counted("request in an outage")
            return Fate(f"outage {self.outage}")
        return draw(chaos, to_storage=sent.path.startswith("/blobs/"))

    def _befalls(self, fate: Fate, *faults: str) -> bool:
        """Whether one of these is a request's fate; it is counted, since it happens now."""
        if fate.fault not in faults:
            return False
        if not fate.fault.startswith("outage"):
            self._world.chaos.counted(fate.fault)
        return True

    async def exchange(self, ports: SimulatedPorts, request: httpx.Request) -> httpx.Response:
        """Send a request and wait for the head of its answer. Raises httpx's errors."""
        api = request.url.path.startswith("/api/")
        body = request.content if api else b""
        sent = Sent(ports.who, request.method, request.url.path, body)
        if ports.who in self._cut:
            raise httpx.ConnectError("the machine is dead", request=request)
        fate = self._fate(sent, faulty=ports.faulty)
        if ports.faulty:
            self._world.history.note(ports.who, f"{sent}{_short(body)}{_told(fate)}")
        self._world.witness.sent(sent)
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        if (early := await self._refused(fate, timeouts, request)) is not None:
            return early
        exchange = Exchange(request, lambda status, answer: self._world.witness.answered(sent, status, answer))
        self._open[exchange] = ports.who
        if ports.faulty and not self._world.chaos.calm:
            self._haunted.add(exchange)
        if not self._befalls(fate, "request dropped", "outage silent"):
            self._nursery.start_soon(self._deliver, exchange, fate.there)
        if fate.twice is not None and api:
            self._nursery.start_soon(self._deliver_again, request, sent, fate.there + fate.twice)
        try:
            return await self._converse(exchange, fate, sent, timeouts, request)
        except BaseException as error:
            self._close(exchange)
            if ports.faulty and isinstance(error, Exception):
                self._world.history.note(ports.who, f"{sent} -> {describe(error)}")
            raise

    async def _refused(
        self, fate: Fate, timeouts: dict[str, float | None], request: httpx.Request
    ) -> httpx.Response | None:
        """What is answered or raised before the request reaches the queue, if anything is."""
        if self._befalls(fate, "connect refused", "outage refused"):
            await trio.sleep(fate.there)
            raise httpx.ConnectError("connection refused", request=request)
        if not self._befalls(fate, *EARLY):
            return None
        early = EARLY[fate.fault]
        await trio.sleep(fate.there + fate.back)
        headers = {"Retry-After": "3"} if early == 429 else {}
        return httpx.Response(early, headers=headers, stream=httpx.ByteStream(b"no"), request=request)

    async def _deliver(self, exchange: Exchange, after: float) -> None:
        await trio.sleep(after)
        try:
            await exchange.serve(self._app, self._clock)
        except Exception as error:  # noqa: BLE001 - the queue's own fault, which must not end the world
            self._world.history.fail("the queue answers", f"{exchange.scope['path']}: {describe(error)}")

    async def _deliver_again(self, request: httpx.Request, sent: Sent, after: float) -> None:
        """The same request once more, to whose answer nobody listens."""
        self._haunted.add(request)
        try:
            await trio.sleep(after)
            if sent.who not in self._cut:
                await self._ask_again(request, sent)
        finally:
            self._no_longer_haunted(request)

    async def _ask_again(self, request: httpx.Request, sent: Sent) -> None:
        self._world.chaos.counted("duplicate")
        self._world.history.note("network", f"once more: {sent}")
        again = Exchange(request, lambda status, answer: self._world.witness.answered(sent, status, answer))
        again.body_in.send_nowait(request.content)
        again.body_in.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, again, 0)
            with trio.move_on_after(60):
                async with again.head, again.answer:
                    async for _ in again.answer:
                        pass
            again.hang_up()

    async def _converse(
        self,
        exchange: Exchange,
        fate: Fate,
        sent: Sent,
        timeouts: dict[str, float | None],
        request: httpx.Request,
    ) -> httpx.Response:
        await self._send_body(exchange, fate, timeouts, request)
        status, headers = 0, Headers()
        with trio.move_on_after(timeouts.get("read") or inf) as in_time:
            if self._befalls(fate, "storage stalls"):
                await trio.sleep_forever()
            try:
                status, headers = await exchange.head.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                raise httpx.RemoteProtocolError("disconnected without an answer", request=request) from None
            await trio.sleep(fate.back)
            if self._befalls(fate, "response lost"):
                await trio.sleep_forever()
        if in_time.cancelled_caught:
            raise httpx.ReadTimeout("no answer in time", request=request)
        stream = _Answer(self, exchange, fate, sent, status, timeouts)
        if self._befalls(fate, "error after commit", "nonsense answer"):
            await stream.aclose()
            nonsense = fate.fault == "nonsense answer"
            content = self._world.chaos.one(NONSENSE) if nonsense else b"bad gateway"
            return httpx.Response(200 if nonsense else 502, stream=httpx.ByteStream(content), request=request)
        if self._befalls(fate, "reset after commit"):
            raise httpx.ReadError("connection reset", request=request)
        if fate.date == "date is hours off" and sent.who not in self.dated:
            fate.date = ""  # The first answer is believed: nobody can know better.
        if fate.date:
            self._world.chaos.counted(fate.date)
        headers = dated(headers, fate.date, self._world.chaos)
        return httpx.Response(status, headers=headers, stream=stream, request=request)

    async def _send_body(
        self, exchange: Exchange, fate: Fate, timeouts: dict[str, float | None], request: httpx.Request
    ) -> None:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for chunk in request.stream:
            half = len(chunk) // 2
            for piece in (chunk[:half], chunk[half:]):
                with trio.move_on_after(timeouts.get("write") or inf) as in_time:
                    try:
                        await exchange.body_in.send(piece)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return  # answered before all of it came, or the machine is dead
                if in_time.cancelled_caught:
                    raise httpx.WriteTimeout("nobody takes the body", request=request)
                if piece and self._befalls(fate, "reset in request body"):
                    raise httpx.WriteError("connection reset", request=request)
        exchange.body_in.close()

    def _close(self, exchange: Exchange) -> None:
        exchange.hang_up()
        self._open.pop(exchange, None)
        self._no_longer_haunted(exchange)

    def _no_longer_haunted(self, what: object) -> None:
        self._haunted.discard(what)
        if not self._haunted:
            self._cleared.set()

    def arrived(self, exchange: Exchange, sent: Sent, fate: Fate, status: int, body: bytes) -> None:
        """The client has all of an answer."""
        if fate.date in {"", "date is off"} and fate.there + fate.back < limits.TELLING:
            self.dated.setdefault(sent.who, self._world.time())
        self._world.witness.arrived(sent, status, body)
        self._close(exchange)

    def truncated(self, sent: Sent, status: int) -> None:
        """The client has an answer whose body is cut short, and no way to know."""
        self._world.witness.head_arrived(sent, status)


class Transport(httpx.AsyncBaseTransport):
    """What httpx uses in place of sockets."""

    def __init__(self, network: Network, ports: SimulatedPorts) -> None:
        self._network = network
        self._ports = ports

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, get the head of its answer."""
        return await self._network.exchange(self._ports, request)


class _Answer(httpx.AsyncByteStream):
    """The body of an answer as it comes, if it comes."""

    def __init__(
        self,
        network: Network,
        exchange: Exchange,
        fate: Fate,
        sent: Sent,
        status: int,
        timeouts: dict[str, float | None],
    ) -> None:
        self._network = network
        self._exchange = exchange
        self._fate = fate
        self._sent = sent
        self._status = status
        self._timeouts = timeouts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        body = bytearray()
        while True:
            piece: bytes | None = None
            with trio.move_on_after(self._timeouts.get("read") or inf) as in_time:
                try:
                    piece = await self._exchange.answer.receive()
                except trio.EndOfChannel:
                    break
                except trio.ClosedResourceError:
                    raise httpx.ReadError("connection reset") from None
            if in_time.cancelled_caught or piece is None:
                raise httpx.ReadTimeout("the answer does not go on")
            if self._network._befalls(self._fate, "reset in response body", "truncated answer"):
                yield piece[: len(piece) // 2]
                self._network._close(self._exchange)
                if self._fate.fault == "reset in response body":
                    raise httpx.ReadError("connection reset")
                # As far as anybody can see that was all of it.
                self._network.truncated(self._sent, self._status)
                return
            body += piece
            yield piece
        self._network.arrived(self._exchange, self._sent, self._fate, self._status, bytes(body))

    async def aclose(self) -> None:
        """Whoever does not want the rest hangs up."""
        self._network._close(self._exchange)


def _short(body: bytes) -> str:
    return f" {body[:80].decode(errors='backslashreplace')}" if body else ""


def _told(fate: Fate) -> str:
    parts: list[Any] = [f" !{fate.fault}"] if fate.fault else []
    if fate.there > 0.1 or fate.back > 0.1:
        parts.append(f" !latency {fate.there:.1f}+{fate.back:.1f}")
    if fate.twice is not None:
        parts.append(" !twice")
    return "".join(parts)
