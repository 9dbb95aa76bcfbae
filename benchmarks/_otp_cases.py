"""What is done with servers: calls, casts, a ring, messages to itself, ping-pong, memory.

A ``Kit`` is one way to have servers. All kits go through the same functions here, so
that nobody's clock starts earlier, and nobody's messages count before they were handled.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import anyio
from _core_many import here
from _core_size import traced
from _harness import Case, Measure, On, settle, tasks

CASTS = 100_000
RING = 1_000
CLIENTS = 10
PAIRS = 100
IDLE = 10_000

call = Case("call", "a request to a server, and its answer; one client", rounds=15)
call_10 = Case("call.10", "the same, for each request of ten clients at once", rounds=15)
cast = Case(
    "cast", "100 000 messages that nobody answers, until the last is handled", "s", CASTS, rounds=5
)
ring = Case("ring.1000", "a token goes once around 1 000 servers", "s", RING, 20, rounds=15)
spawn = Case(
    "spawn.10000",
    "10 000 are started; once all live, each gets a message and ends of it; until none is left",
    "s",
    10_000,
    rounds=5,
)
memory = Case(
    "memory.server", "bytes of an idle server that has answered a call", "B", IDLE, 1000, rounds=3
)
memory_process = Case(
    "memory.process", "bytes of an idle process that has had a message", "B", IDLE, 1000, rounds=3
)
self_messages = Case(
    "self_messages", "100 000 messages of a server to itself, each sent by the one before", "s",
    100_000, rounds=5,
)  # fmt: skip
ping_pong = Case("ping_pong", "a round trip of a message between two", rounds=15)
ping_pong_100 = Case(
    "ping_pong.100", "10 000 round trips in all between 100 pairs at once", "s", 10_000, rounds=9
)
CASES = [
    call, call_10, cast, ring, spawn, memory, memory_process, self_messages, ping_pong,
    ping_pong_100,
]  # fmt: skip

Take: TypeAlias = Callable[[int], "Awaitable[None] | None"]
"""What a server does with a message that is not answered. It awaits that, if sending is awaited."""

Make: TypeAlias = Callable[[int], Take]
"""What the server with this number does."""


@dataclass(frozen=True, slots=True)
class Kit:
    """One way to have servers. They answer a request with what it holds."""

    name: str
    on: On
    servers: Callable[[Make, int], AbstractAsyncContextManager[list[Any]]]
    """A block with so many of them."""
    tell: Callable[[Any, int], Any]
    """Send a server a message that is not answered."""
    ask: Callable[[Any, int], Awaitable[object]] | None = None
    """Send a server a request, and wait for the answer."""
    waits: bool = False
    """Whether ``tell`` is to be awaited."""
    crowd: Callable[[list[Callable[[], Awaitable[None]]]], Awaitable[None]] | None = None
    """Run several clients at once, if tasks will not do."""
    threads: bool = False
    """Whether the servers have threads of their own."""

    def add(self, *cases: Case, note: str = "") -> None:
        """Register it with the cases."""
        for case in cases:
            case.by(self.name + note, self.on)(_measure(self, DRIVERS[case.name]))


def _measure(kit: Kit, driver: Callable[[Kit, int], Awaitable[float]]) -> Measure:
    return lambda n: driver(kit, n)


class Clock:
    """Runs from ``start`` until so many messages have been handled."""

    def __init__(self, messages: int, threads: bool = False) -> None:
        self._left = messages
        self._began = self.took = 0.0
        self._over = anyio.Event()
        self._over_in_thread = threading.Event() if threads else None

    def start(self) -> None:
        self._began = perf_counter()

    def arrive(self, _: int) -> None:
        """Tell that a message has been handled."""
        self._left -= 1
        if not self._left:
            self.took = perf_counter() - self._began
            (self._over_in_thread or self._over).set()

    async def wait(self) -> None:
        """Wait until the last has been handled."""
        if self._over_in_thread is not None:
            self._over_in_thread.wait()
        else:
            await self._over.wait()

    async def arrive_waited(self, message: int) -> None:
        """The same, for those who await it."""
        self.arrive(message)


def nothing(_: int) -> Take:
    return _drop


def _drop(_: int) -> None:
    pass


# -- calls -------------------------------------------------------------------------


async def drive_call(kit: Kit, n: int) -> float:
    ask = kit.ask
    assert ask is not None
    async with kit.servers(nothing, 1) as [server]:
        assert await ask(server, 3) == 3
        start = perf_counter()
        for i in range(n):
            await ask(server, i)
        return perf_counter() - start


async def drive_clients(kit: Kit, n: int) -> float:
    ask = kit.ask
    assert ask is not None
    each = max(-(-n // CLIENTS), 100)  # or what it takes to start the clients would count
    async with kit.servers(nothing, 1) as [server]:

        async def client() -> None:
            for i in range(each):
                await ask(server, i)

        await ask(server, 0)
        start = perf_counter()
        await (kit.crowd or crowd)([client] * CLIENTS)
        return (perf_counter() - start) * n / (each * CLIENTS)


async def crowd(clients: list[Callable[[], Awaitable[None]]]) -> None:
    async with tasks("trio" if here() == "trio" else "asyncio") as start:
        for client in clients:
            start(_run, client)


async def _run(client: Callable[[], Awaitable[None]]) -> None:
    await client()


# -- messages without an answer ------------------------------------------------------


async def drive_cast(kit: Kit, n: int) -> float:
    clock, tell = Clock(n, kit.threads), kit.tell
    arrive = clock.arrive_waited if kit.waits else clock.arrive
    async with kit.servers(lambda _: arrive, 1) as [server]:
        await settle_here()
        clock.start()
        if kit.waits:
            for i in range(n):
                await tell(server, i)
        else:
            for i in range(n):
                tell(server, i)
        await clock.wait()
    return clock.took


async def drive_passing(kit: Kit, chains: list[list[int]], hops: int) -> float:
    """Send a message along each chain of servers, again and again, ``hops`` times in all."""
    clock, tell = Clock(len(chains), kit.threads), kit.tell
    arrive = clock.arrive_waited if kit.waits else clock.arrive
    after = {i: chain[k - len(chain) + 1] for chain in chains for k, i in enumerate(chain)}
    servers: list[Any] = []

    def make(i: int) -> Take:
        following = after[i]

        def take(left: int) -> Awaitable[None] | None:
            if left:
                return tell(servers[following], left - 1)  # type: ignore[no-any-return]
            return arrive(0)

        return take

    async with kit.servers(make, len(after)) as got:
        servers += got
        await settle_here()
        clock.start()
        for chain in chains:
            sent = tell(servers[chain[0]], hops - 1)
            if kit.waits:
                await sent
        await clock.wait()
    return clock.took


async def drive_ring(kit: Kit, n: int) -> float:
    return await drive_passing(kit, [list(range(n))], n)


async def drive_self(kit: Kit, n: int) -> float:
    return await drive_passing(kit, [[0]], n)


async def drive_pair(kit: Kit, n: int) -> float:
    return await drive_passing(kit, [[0, 1]], 2 * n)


async def drive_pairs(kit: Kit, n: int) -> float:
    chains = [[2 * i, 2 * i + 1] for i in range(PAIRS)]
    return await drive_passing(kit, chains, 2 * n // PAIRS)


async def settle_here() -> None:
    """Let all that was started come so far that it waits."""
    await settle("trio" if here() == "trio" else "asyncio")


# -- memory ------------------------------------------------------------------------


async def drive_memory(kit: Kit, n: int) -> float:
    ask = kit.ask
    assert ask is not None
    with traced() as result:
        block = kit.servers(nothing, n)
        servers = await block.__aenter__()
        for server in servers:
            await ask(server, 0)
        gc.collect()
    await block.__aexit__(None, None, None)
    return result.grown


async def drive_memory_told(kit: Kit, n: int) -> float:
    with traced() as result:
        block = kit.servers(nothing, n)
        servers = await block.__aenter__()
        for server in servers:
            sent = kit.tell(server, 0)
            if kit.waits:
                await sent
        await settle_here()
        gc.collect()
    await block.__aexit__(None, None, None)
    return result.grown


DRIVERS = {
    call.name: drive_call,
    call_10.name: drive_clients,
    cast.name: drive_cast,
    ring.name: drive_ring,
    memory.name: drive_memory,
    memory_process.name: drive_memory_told,
    self_messages.name: drive_self,
    ping_pong.name: drive_pair,
    ping_pong_100.name: drive_pairs,
}
PASSING = [ring, self_messages, ping_pong, ping_pong_100]
