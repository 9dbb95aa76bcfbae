"""Servers and processes of backplane: each the first in its cases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from _otp_cases import (
    Kit,
    Make,
    Take,
    call,
    call_10,
    cast,
    memory,
    memory_process,
    ping_pong,
    ping_pong_100,
    ring,
    self_messages,
    settle_here,
    spawn,
)

from backplane import otp
from backplane.otp import GenServer, Pid, Scope, Stop, current_process, on_call, on_cast


class Server(GenServer):
    """Callbacks."""

    def init(self, take: Take) -> None:
        self.take = take

    def handle_call(self, message: int, _: object) -> int:
        return message

    def handle_cast(self, message: int) -> None:
        self.take(message)


class Typed(GenServer):
    """Methods."""

    def init(self, take: Take) -> None:
        self.take = take

    @on_call
    def echo(self, message: int) -> int:
        return message

    @on_cast
    def told(self, message: int) -> None:
        self.take(message)


@asynccontextmanager
async def with_callbacks(make: Make, n: int) -> AsyncIterator[list[Any]]:
    async with Scope():
        servers = []
        for i in range(n):
            ref = await otp.start(Server, make(i))
            servers.append(ref.pid)
        yield servers


@asynccontextmanager
async def with_methods(make: Make, n: int) -> AsyncIterator[list[Any]]:
    async with Scope():
        yield [await otp.start(Typed, make(i)) for i in range(n)]


async def receiving(take: Take) -> None:
    """A process."""
    me = current_process()
    while True:
        take(await me.receive())


@asynccontextmanager
async def processes(make: Make, n: int) -> AsyncIterator[list[Any]]:
    async with Scope() as scope:
        yield [scope.spawn(receiving, make(i)) for i in range(n)]


CALLBACKS = Kit("backplane GenServer", "any", with_callbacks, otp.cast, otp.call)
FOREVER = Kit(
    "backplane GenServer, timeout=None", "any", with_callbacks, otp.cast,
    lambda pid, message: otp.call(pid, message, None),
)  # fmt: skip
METHODS = Kit(
    "backplane GenServer, methods", "any", with_methods,
    lambda ref, message: ref.cast(Typed.told, message),
    lambda ref, message: ref.call(Typed.echo, message),
)  # fmt: skip
PROCESSES = Kit("backplane Process", "any", processes, Pid.send)

for kit in (CALLBACKS, METHODS, FOREVER):
    kit.add(call)
CALLBACKS.add(call_10, cast, ring, memory, self_messages)
PROCESSES.add(memory_process)
METHODS.add(call_10, cast, memory)
PROCESSES.add(cast, ring, self_messages)
for case in (ping_pong, ping_pong_100):
    PROCESSES.add(case)
    CALLBACKS.add(case)


# -- start, a message, the end -------------------------------------------------------


async def one_message() -> None:
    await current_process().receive()


@spawn.by("backplane Process")
async def spawn_processes(n: int) -> float:
    await settle_here()
    start = perf_counter()
    async with Scope() as scope:
        pids = [scope.spawn(one_message) for _ in range(n)]
        for pid in pids:
            pid.send("end")
        await all_gone(pids)
    return perf_counter() - start


async def all_gone(pids: list[Pid]) -> None:
    """Wait until the last has ended: leaving a scope would have them shut down first."""
    for pid in pids:
        if pid.alive:
            await pid.wait()


class Once(GenServer):
    def handle_cast(self, message: object) -> Stop:
        return Stop()


@spawn.by("backplane GenServer")
async def spawn_servers(n: int) -> float:
    await settle_here()
    start = perf_counter()
    async with Scope():
        pids = [(await otp.start(Once)).pid for _ in range(n)]
        for pid in pids:
            otp.cast(pid, "end")
        await all_gone(pids)
    return perf_counter() - start
