"""A node in a process of its own: it exports a port that keeps what it is told, and tells it."""

from __future__ import annotations

import sys
from typing import Any

import anyio

from backplane import Device
from backplane.bridge import Node
from backplane.bridge.nats import NatsBroker


class Port:
    def __init__(self) -> None:
        self.told: list[int] = []

    def tell(self, message: Any) -> None:
        number, _ = message.open()
        self.told.append(number)

    def call(self, request: Any) -> None:
        if request.open() == "told":
            request.reply(self.told)
        else:
            request.reply(request.open())


async def main(*arguments: str) -> None:
    url, cluster, name, secret, dead_after = arguments
    device = Device("service")
    async with (
        NatsBroker(url, cluster=cluster) as broker,
        Node(
            name, secret=bytes.fromhex(secret), heartbeat=0.3, dead_after=float(dead_after)
        ) as node,
    ):
        node.export("service", device, port=Port())
        await broker.listen(node)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
