"""Nodes and clusters of backplane: each the first in its cases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import anyio
from _bridge_cases import Ends, Kind, Kit, fars
from _bridge_work import SECRET, Counter, question

from backplane import Device, Line, otp
from backplane.bridge import Node, call, wait_tell
from backplane.otp import GenServer, Registry, Scope, ServerRef, on_call
from backplane.otp.cluster import Cluster

LINES = "lines"
_numbers = count()


class Port:
    """Takes what is sent to a Device."""

    def __init__(self, lines: list[Line]) -> None:
        self._counter = Counter()
        self._lines = lines

    def tell(self, message: Any) -> None:
        self._counter.take(message.open())

    def call(self, request: Any) -> None:
        asked = request.open()
        request.reply(self._lines if asked == LINES else self._counter.answer(asked))


class Server(GenServer):
    """Callbacks, and a typed method."""

    def handle_call(self, message: dict[str, Any], _: object) -> int:
        return int(message["n"]) + 1

    @on_call
    def add(self, op: str, key: str, n: int) -> int:
        return n + 1


async def listen(node: Node, directory: str) -> dict[str, str]:
    return {
        "tcp": await node.listen("tcp://127.0.0.1:0"),
        "unix": await node.listen(f"unix://{directory}/s"),
    }


async def serve(ready: Callable[[object], None], directory: str) -> None:
    """The other process, with a Device, and a thousand more to be linked with."""
    devices = [Device(f"device {i}") for i in range(1000)]
    async with Node("far", secret=SECRET) as node:
        node.export("device", devices[0], port=Port([each.line() for each in devices]))
        ready(await listen(node, directory))
        await anyio.sleep_forever()


async def serve_cluster(ready: Callable[[object], None], directory: str) -> None:
    """The same with a server."""
    names = Registry()
    async with AsyncExitStack() as stack:
        stack.enter_context(names)
        node = await stack.enter_async_context(Node("far", secret=SECRET))
        await stack.enter_async_context(Cluster(node, registry=names))
        await stack.enter_async_context(Scope())
        await otp.start(Server, name="server")
        ready(await listen(node, directory))
        await anyio.sleep_forever()


@asynccontextmanager
async def device(address: str) -> AsyncIterator[Line]:
    """A Line to the Device in the other process."""
    async with Node(f"near-{next(_numbers)}", secret=SECRET) as node:
        peer = await node.connect(address)
        yield await peer.find("device")


@asynccontextmanager
async def near(kind: Kind) -> AsyncIterator[Ends]:
    async with device(fars.get("_bridge_ours:serve")[kind]) as line:

        async def tell(count: int) -> None:
            for number in range(count):
                await wait_tell(line, question(number))

        async def told() -> int:
            return int(await call(line, None))

        async def ask(number: int) -> int:
            return int(await call(line, question(number)))

        yield Ends(ask, tell, told)


@asynccontextmanager
async def server(kind: Kind) -> AsyncIterator[otp.Pid]:
    addresses = fars.get("_bridge_ours:serve_cluster")
    async with Node(f"near-{next(_numbers)}", secret=SECRET) as node, Cluster(node) as cluster:
        await node.connect(addresses[kind])
        yield await cluster.await_name("server", timeout=10)


@asynccontextmanager
async def near_server(kind: Kind) -> AsyncIterator[Ends]:
    async with server(kind) as pid:

        async def ask(number: int) -> int:
            return int(await otp.call(pid, question(number)))

        yield Ends(ask)


@asynccontextmanager
async def near_methods(kind: Kind) -> AsyncIterator[Ends]:
    async with server(kind) as pid:
        ref = ServerRef(pid, Server)

        async def ask(number: int) -> int:
            return await ref.call(Server.add, **question(number))

        yield Ends(ask)


Kit("backplane", "any", near).add()
Kit("backplane GenServer", "any", near_server).add_servers()
Kit("backplane GenServer, methods", "any", near_methods).add_servers()
Kit("backplane, a Device and a port", "any", near).add_servers()
