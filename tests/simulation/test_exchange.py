"""The simulated network streams in both directions, and an application learns that its client has gone."""

from __future__ import annotations

import httpx
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from worker.ports import Ports
from worker.testing.simulation.exchange import Exchange

REQUEST = httpx.Request("PUT", "http://queue.invalid/a%2Fb?c=d", headers={"X-One": "1"})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back each piece as it comes."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"x-one", dict(scope["headers"])[b"x-one"])]}
    )
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def test_pieces_come_back_before_the_last_was_sent() -> None:
    heard: list[tuple[int, bytes]] = []
    exchange = Exchange(REQUEST, lambda status, body: heard.append((status, body)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.serve, echo, Ports())
        status, headers = await exchange.head.receive()
        assert (status, headers[0]) == (200, (b"x-one", b"1"))
        for piece in (b"one", b"two"):
            await exchange.body_in.send(piece)
            assert await exchange.answer.receive() == piece
        exchange.body_in.close()
        assert [piece async for piece in exchange.answer] == [b""]
    assert heard == [(200, b"onetwo")]


async def test_an_application_learns_that_its_client_has_gone() -> None:
    messages: list[str] = []

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        while messages[-1:] != ["http.disconnect"]:
            messages.append((await receive())["type"])

    exchange = Exchange(REQUEST, lambda status, body: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.serve, waits, Ports())
        await exchange.body_in.send(b"a")
        await trio.testing.wait_all_tasks_blocked()
        assert messages == ["http.request"]
        exchange.hang_up()
    assert messages == ["http.request", "http.disconnect"]


async def test_what_is_sent_to_a_client_that_has_gone_is_heard_all_the_same() -> None:
    heard: list[tuple[int, bytes]] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    exchange = Exchange(REQUEST, lambda status, body: heard.append((status, body)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.serve, late, Ports())
        await trio.testing.wait_all_tasks_blocked()
        exchange.hang_up()
    assert heard == [(200, b"done")]
