"""Who gets a place among the connections, and who makes room. Virtual time."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.serving.places import GRACE, Places


class Connections:
    """Keeps connections open until they are told to end."""

    def __init__(self, number: int, nursery: trio.Nursery) -> None:
        self._places = Places(number)
        self._nursery = nursery
        self.open: dict[str, trio.Event] = {}
        self.ended: list[str] = []
        self.set_busy: dict[str, Callable[[bool], None]] = {}

    async def connect(self, name: str, *, busy: bool = False) -> None:
        """Return when the connection has its place."""
        place = await self._places.take()

        async def hold() -> None:
            with place.held():
                place.set_busy(busy)
                self.open[name] = trio.Event()
                await self.open[name].wait()
            del self.open[name]
            self.ended.append(name)

        self._nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        self.set_busy[name] = place.set_busy

    def close(self, name: str) -> None:
        """End a connection as its peer would."""
        self.open[name].set()


async def test_while_there_are_places_nobody_makes_room(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connections = Connections(3, nursery)
        for name in "abc":
            await connections.connect(name)
        await trio.sleep(100)
        assert connections.open.keys() == {"a", "b", "c"}
        nursery.cancel_scope.cancel()


async def test_those_that_are_idle_make_room_for_a_new_one(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connections = Connections(3, nursery)
        await connections.connect("busy", busy=True)
        await connections.connect("idle")
        await trio.sleep(GRACE / 2)
        await connections.connect("young")
        began = trio.current_time()
        await connections.connect("new")
        assert trio.current_time() - began == GRACE / 2
        assert connections.ended == ["idle"]
        nursery.cancel_scope.cancel()


async def test_one_that_becomes_idle_while_others_wait_makes_room(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connections = Connections(1, nursery)
        await connections.connect("first", busy=True)
        first_is = connections.set_busy["first"]
        nursery.start_soon(connections.connect, "second")
        await trio.sleep(100)
        assert connections.open.keys() == {"first"}
        first_is(False)
        await trio.sleep(GRACE / 2)
        first_is(True)
        await trio.sleep(GRACE)
        assert connections.open.keys() == {"first"}
        first_is(False)
        await trio.sleep(2 * GRACE)
        assert connections.open.keys() == {"second"}
        nursery.cancel_scope.cancel()


async def test_one_that_ends_on_its_own_leaves_its_place(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connections = Connections(1, nursery)
        await connections.connect("first", busy=True)
        nursery.start_soon(connections.connect, "second")
        await wait_all_tasks_blocked()
        connections.close("first")
        await wait_all_tasks_blocked()
        assert connections.open.keys() == {"second"}
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_many_idle_ones_are_gone_in_one_go(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connections = Connections(100, nursery)
        for name in range(100):
            await connections.connect(str(name))
        await trio.sleep(GRACE)
        began = trio.current_time()
        for name in range(100, 200):
            await connections.connect(str(name))
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()
