"""A node in an interpreter of its own, with a server and members of a group on it.

Writes where it listens, and lives until its standard input is closed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import anyio

from backplane.bridge import Node
from backplane.otp import (
    NO_REPLY,
    GenServer,
    Groups,
    NoReply,
    Pid,
    Registry,
    Scope,
    current_process,
    on_call,
    start,
)
from backplane.otp.cluster import Cluster

SECRET = b"what the two interpreters share"


@dataclasses.dataclass
class Total:
    """How much there is, and who has asked."""

    amount: int
    asked_by: Pid


class Account(GenServer):
    """Adds up, and says in which interpreter."""

    def init(self) -> None:
        self.total = 0

    @on_call
    def add(self, amount: int, who: Pid) -> Total:
        self.total += amount
        who.send(["added", amount])
        return Total(self.total, who)

    @on_call
    def where(self) -> int:
        return os.getpid()

    @on_call
    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    @on_call
    def say_nothing(self) -> NoReply:
        return NO_REPLY

    @on_call
    def crash(self) -> None:
        raise ValueError("on purpose")


async def member() -> None:
    await current_process().receive()
    os._exit(3)


async def serve(address: str) -> None:
    names: Registry[str, Any] = Registry()
    groups = Groups()
    async with (
        Node("child", secret=SECRET) as node,
        Cluster(node, types=[Total], registry=names, groups=groups),
        Scope() as scope,
    ):
        ref = await start(Account, scope=scope)
        names.register("account", None, ref.pid)
        for _ in range(10):
            groups.join("members", scope.spawn(member))
        sys.stdout.write(f"{await node.listen(address)}\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(serve, sys.argv[1], backend=sys.argv[2])
