"""A Starlette app tied to its background work: it knows when the work dies, and why.

The lifespan links the app's Device with that of a watcher, which counts the
files of a directory. ``/`` serves the count; when the watcher has died,
``/health`` turns 503 and names the cause. At shutdown the watcher is asked to
stop, and has cleaned up before the app ends.

``uvicorn web_app:app`` watches the current directory. As a script it makes its
own requests, on either loop: ``python web_app.py [asyncio|trio]``

Prints:
    GET / 200 {"files":2}
    GET /health 200 {"watcher":"alive"}
    the directory is removed
    the watcher has cleaned up
    GET /health 503 {"watcher":"Failed(FileNotFoundError(2, 'No such file or directory'))"}
    the app has ended
    the app starts again, elsewhere
    GET / 200 {"files":0}
    GET /health 200 {"watcher":"alive"}
    the watcher has cleaned up
    the app has ended
"""

import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from backplane import Device, Disconnected, LinkMode


async def watch(app: Starlette) -> None:
    try:
        while True:
            app.state.files = len(list(app.state.directory.iterdir()))
            await anyio.sleep(0.01)
    finally:
        print("the watcher has cleaned up")


async def live(device: Device, app: Starlette) -> None:
    with suppress(Exception):  # the app is told, by the link
        await device.manage(watch, app)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.files, app.state.watcher = None, "alive"
    with Device("app") as app.state.device:
        async with anyio.create_task_group() as tasks:
            watcher = Device("watcher")
            app.state.device.link(watcher, LinkMode.MONITOR)
            tasks.start_soon(live, watcher, app)
            yield
            watcher.line().shutdown()
    print("the app has ended")


async def index(request: Request) -> JSONResponse:
    known = request.app.state.files
    return JSONResponse({"files": known}, 503 if known is None else 200)


async def health(request: Request) -> JSONResponse:
    state = request.app.state
    with suppress(anyio.WouldBlock):  # no news: the watcher is alive, or known to be dead
        message = state.device.receive_nowait()
        if isinstance(message, Disconnected):
            state.watcher = repr(message.fault)
    return JSONResponse({"watcher": state.watcher}, 200 if state.watcher == "alive" else 503)


app = Starlette(routes=[Route("/", index), Route("/health", health)], lifespan=lifespan)
app.state.directory = Path()


async def get(path: str) -> str:
    """Call the app as a server does."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    return f"GET {path} {sent[0]['status']} {sent[1]['body'].decode()}"


async def ask(path: str, status: int) -> None:
    """Ask the app until it answers with this status."""
    while f" {status} " not in (answer := await get(path)):  # noqa: ASYNC110 - no event to await
        await anyio.sleep(0.01)
    print(answer)


async def main(directory: Path) -> None:
    app.state.directory = directory
    async with lifespan(app):
        await ask("/", 200)
        await ask("/health", 200)
        shutil.rmtree(directory)
        print("the directory is removed")
        await ask("/health", 503)
    app.state.directory = directory.parent
    print("the app starts again, elsewhere")
    async with lifespan(app):
        await ask("/", 200)
        await ask("/health", 200)


if __name__ == "__main__":
    with TemporaryDirectory() as parent:
        directory = Path(parent, "watched")
        directory.mkdir()
        for name in "a", "b":
            (directory / name).touch()
        anyio.run(main, directory, backend=(sys.argv[1:] or ["asyncio"])[0])
