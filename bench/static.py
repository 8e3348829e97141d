"""Servers that stand beside the worker: nginx with a file, and hypercorn with an application that only sends one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from shutil import which

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.types import Receive, Scope, Send

from bench.processes import BenchmarkFailed, ended

CHUNK = 64 * 1024
START_LIMIT = 10.0  # seconds

PROGRAM = which("nginx", path="/usr/sbin:/usr/bin")

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; default_type text/plain;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@asynccontextmanager
async def open_nginx(folder: Path, root: Path) -> AsyncGenerator[tuple[int, str], None]:
    """Its process id and the URL of the files in `root`. It must be installed: `PROGRAM`."""
    assert PROGRAM is not None
    port = await _free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, root=root, port=port))
    process = await trio.lowlevel.open_process(
        [PROGRAM, "-p", str(folder), "-c", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    async with ended(process):
        await _listening(port)
        yield process.pid, f"http://127.0.0.1:{port}"


@asynccontextmanager
async def open_bare(path: Path) -> AsyncGenerator[tuple[int, str], None]:
    """Its process id and a URL, where hypercorn alone sends the file at `path`, which is in memory."""
    port = await _free_port()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.static", str(path), str(port)], stdin=subprocess.DEVNULL
    )
    async with ended(process):
        await _listening(port)
        yield process.pid, f"http://127.0.0.1:{port}/"


async def _free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


async def _listening(port: int) -> None:
    with trio.move_on_after(START_LIMIT):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                await trio.sleep(0.05)  # neither server says when it is ready
            else:
                return
    raise BenchmarkFailed(f"nothing listens on port {port} after {START_LIMIT:g} s")


async def _send_file(content: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (event := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{event}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for start in range(0, len(content), CHUNK):
        await send({"type": "http.response.body", "body": content[start : start + CHUNK], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def main(path: str, port: str) -> None:
    """Serve the file until TERM."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.errorlog = None
    trio.run(partial(serve, partial(_send_file, Path(path).read_bytes()), config))


if __name__ == "__main__":
    main(*sys.argv[1:])
