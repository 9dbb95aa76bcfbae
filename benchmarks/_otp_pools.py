"""The actors that live in threads, or in nobody's event loop, or in pools. As ``_otp_actors``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib import import_module
from threading import Thread
from time import perf_counter
from typing import Any

import anyio.lowlevel
from _otp_cases import Kit, Make, Take, call_10, self_messages, spawn
from _otp_libraries import COMMON, PYKKA, THESPIAN, XOSCAR, if_here

# -- pykka: a thread for each. A program that waits for an answer stops its event loop ------


def pykka_class() -> Any:
    library = import_module("pykka")

    def init(self: Any, take: Take) -> None:
        library.ThreadingActor.__init__(self)
        self.take = take

    def receive(self: Any, message: int) -> int:
        if message >= 0:
            self.take(message)
        return message

    methods = {"__init__": init, "on_receive": receive, "use_daemon_thread": True}
    return type("Server", (library.ThreadingActor,), methods)


@asynccontextmanager
async def pykka(make: Make, n: int) -> AsyncIterator[list[Any]]:
    server = pykka_class()
    refs = [server.start(make(i)) for i in range(n)]
    yield refs
    for ref in refs:
        ref.stop()


async def pykka_ask(ref: Any, message: int) -> int:
    return -1 - int(ref.ask(-1 - message))


async def pykka_spawn(n: int) -> float:
    library = import_module("pykka")

    def receive(self: Any, message: str) -> None:
        self.stop()

    once: Any = type("Once", (library.ThreadingActor,), {"on_receive": receive})
    start = perf_counter()
    for _ in range(n):
        once.start().tell("end")
    while library.ActorRegistry.get_all():
        await anyio.lowlevel.checkpoint()
    return perf_counter() - start


def pykka_tell(ref: Any, message: int) -> None:
    ref.tell(message)


async def pykka_crowd(clients: list[Callable[[], Awaitable[None]]]) -> None:
    """A thread for each: they wait for nothing but answers, for which pykka stops the thread."""
    threads = [Thread(target=_run_through, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run_through(client: Callable[[], Awaitable[None]]) -> None:
    for _ in client().__await__():
        raise AssertionError("it waits for what needs an event loop")


@if_here(PYKKA)
def _(library: Any) -> None:
    kit = Kit(PYKKA.name, PYKKA.on, pykka, pykka_tell, pykka_ask, crowd=pykka_crowd, threads=True)
    kit.add(*COMMON, self_messages)
    PYKKA.add(spawn, pykka_spawn, ", one after another")


# -- thespian: without other processes, all runs within the call that sends ------------------


TAKES: dict[int, Take] = {}
"""What the actors do, by their numbers: they are made elsewhere, and told the numbers."""


@cache
def thespian_class() -> Any:
    library = import_module("thespian.actors")

    def receive(self: Any, message: object, sender: object) -> None:
        if isinstance(message, str):
            self.take = TAKES[int(message)]
        elif isinstance(message, int) and message >= 0:
            INSIDE.append(self)
            self.take(message)
            INSIDE.pop()
        elif isinstance(message, int):
            self.send(sender, message)

    return type("Server", (library.Actor,), {"receiveMessage": receive, "__module__": __name__})


INSIDE: list[Any] = []
"""The system, and the actor that runs: the one that sends."""


@asynccontextmanager
async def thespian(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("thespian.actors")
    system = library.ActorSystem("simpleSystemBase", logDefs={"version": 1})
    INSIDE[:] = [system]
    servers = []
    for i in range(n):
        TAKES[i] = make(i)
        servers.append(system.createActor(thespian_class()))
        system.tell(servers[-1], str(i))
    yield servers
    system.shutdown()


def thespian_tell(address: object, message: int) -> None:
    sender = INSIDE[-1]
    (sender.tell if len(INSIDE) == 1 else sender.send)(address, message)


async def thespian_ask(address: object, message: int) -> int:
    return -1 - int(INSIDE[0].ask(address, -1 - message))


@if_here(THESPIAN, "thespian.actors")
def _(library: Any) -> None:
    kit = Kit(
        f"{THESPIAN.name}, all within the call", THESPIAN.on, thespian, thespian_tell, thespian_ask
    )
    kit.add(*(case for case in COMMON if case is not call_10), self_messages)


# -- xoscar: actors in a pool, here that of one process --------------------------------------


@cache
def xoscar_class() -> Any:
    library = import_module("xoscar")

    def init(self: Any, number: int) -> None:
        self.do = TAKES[number]

    def echo(self: object, message: int) -> int:
        return message

    async def told(self: Any, message: int) -> None:
        if (sending := self.do(message)) is not None:
            await sending

    methods = {"__init__": init, "echo": echo, "told": told, "__module__": __name__}
    return type("Server", (library.Actor,), methods)


@asynccontextmanager
async def xoscar(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("xoscar")
    TAKES.update((i, make(i)) for i in range(n))
    async with await library.create_actor_pool("127.0.0.1:0", n_process=0) as pool:
        address, server = pool.external_address, xoscar_class()
        yield [await library.create_actor(server, i, address=address) for i in range(n)]


def xoscar_tell(ref: Any, message: int) -> Any:
    return ref.told.tell(message)


def xoscar_ask(ref: Any, message: int) -> Any:
    return ref.echo(message)


@if_here(XOSCAR)
def _(library: Any) -> None:
    kit = Kit(XOSCAR.name, XOSCAR.on, xoscar, xoscar_tell, xoscar_ask, True)
    kit.add(*COMMON, self_messages)
