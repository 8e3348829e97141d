"""A network that takes its time: `python -m bench.delay --port TARGET --delay SECONDS`.

A proxy for TCP on the loopback interface. What goes through it arrives `delay` seconds later, in each direction, and a
new connection takes as long as one that is made over such a network: there and back.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import click

CHUNK = 65536


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, opened: float, ahead: int = 64
) -> None:
    """Everything from `reader` to `writer`, `ahead` chunks of it on their way at most."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(ahead)

    async def deliver() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(deliver())
        data = b"-"
        while data:
            data = await reader.read(CHUNK)
            await queue.put((max(loop.time(), opened) + delay, data))


async def serve(target: int, delay: float) -> None:
    """Serve until cancelled; the first line on stdout is the port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = asyncio.get_running_loop().time() + 2 * delay
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
        try:
            with suppress(OSError, ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_carry(reader, there_writer, delay, opened))
                    group.create_task(_carry(there_reader, writer, delay, opened))
        finally:
            writer.close()
            there_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@click.command()
@click.option("--port", type=int, required=True, help="Where what comes is sent on to, on 127.0.0.1.")
@click.option("--delay", type=float, required=True, help="Seconds, each way.")
def main(port: int, delay: float) -> None:
    """Serve a slow network."""
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(port, delay))


if __name__ == "__main__":
    main()
