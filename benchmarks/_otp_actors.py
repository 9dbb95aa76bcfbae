"""The peers with actors. As ``_otp_peers``, and ``_supervisor_peers``, which says more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import make_dataclass
from functools import cache
from importlib import import_module
from time import perf_counter
from typing import Any

from _otp_cases import CASTS, Kit, Make, Take, memory, self_messages, spawn
from _otp_libraries import COMMON, if_here
from _supervisor_libraries import CASTY, EVERYTHING, LAPINBEAM

# -- lapinbeam: a class has one name, under which only one actor can live ----------------


def lapinbeam_class(name: str, take: Take) -> Any:
    library = import_module("lapinbeam")

    async def receive(self: object, message: int) -> None:
        meta = library.current_message()
        if meta.reply_to is not None:
            await meta.reply(message)
        elif (sending := take(message)) is not None:
            await sending

    return library.actor(name=name)(type("Server", (), {"receive": receive}))


@asynccontextmanager
async def lapinbeam(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("lapinbeam")
    async with library.Node("bench@127.0.0.1:0", 0) as node:
        supervisor = library.Supervisor("one_for_one", node)
        yield [supervisor.spawn(lapinbeam_class(str(i), make(i))) for i in range(n)]
        await supervisor.shutdown()


@if_here(LAPINBEAM)
def _(library: Any) -> None:
    kit = Kit(
        LAPINBEAM.name, LAPINBEAM.on, lapinbeam, library.ActorRef.send, library.ActorRef.ask, True
    )
    kit.add(*COMMON, self_messages)


# -- casty: virtual actors; messages are serialized. None is started, and none ends ---------


@cache
def casty_messages() -> tuple[Any, Any]:
    library = import_module("casty")
    fields = [("value", int)]
    here = {"__module__": __name__}  # before Python 3.12 they would think that they are of `types`
    question = make_dataclass(
        "Question", fields, bases=(library.Askable[int],), frozen=True, namespace=here
    )
    return question, make_dataclass("Told", fields, frozen=True, namespace=here)


@asynccontextmanager
async def casty(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("casty")
    question, told = casty_messages()

    async def body(ctx: Any) -> None:
        take = make(int(ctx.key))
        async for message in ctx.inbox:
            if type(message) is told:
                take(message.value)
            else:
                message.reply_to.tell(message.value)

    body.__annotations__["ctx"] = library.Context[int, question | told]
    server = library.actor(initial=0)(body)
    async with library.ActorSystem() as system:
        yield [system.ref(server, str(i)) for i in range(n)]


def casty_tell(ref: Any, message: int) -> None:
    ref.tell(casty_messages()[1](message))


async def casty_ask(ref: Any, message: int) -> Any:
    return await ref.ask(casty_messages()[0](message))


@if_here(CASTY)
def _(library: Any) -> None:
    Kit(CASTY.name, CASTY.on, casty, casty_tell, casty_ask).add(*COMMON, self_messages)


# -- everything-is-an-actor: its mailboxes hold 256 messages, unless they are told --------


def everything_class(make: Make, numbers: list[int]) -> Any:
    library = import_module("actor_for_agents")

    async def started(self: Any) -> None:
        self.take = make(numbers.pop())

    async def receive(self: Any, message: int) -> int:
        if message >= 0 and (sending := self.take(message)) is not None:
            await sending
        return message

    methods = {"on_started": started, "on_receive": receive}
    return type("Server", (library.Actor,), methods)


@asynccontextmanager
async def everything(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("actor_for_agents")
    server = everything_class(make, list(reversed(range(n))))
    system = library.ActorSystem("bench")
    size = CASTS + 1 if n == 1 else 256
    yield [await system.spawn(server, str(i), mailbox_size=size) for i in range(n)]
    await system.shutdown()


async def everything_ask(ref: Any, message: int) -> int:
    return -1 - int(await ref.ask(-1 - message))


async def everything_spawn(n: int) -> float:
    library = import_module("actor_for_agents")

    async def receive(self: Any, message: str) -> None:
        self.context.self_ref.stop()

    once = type("Once", (library.Actor,), {"on_receive": receive})
    system = library.ActorSystem("bench")
    start = perf_counter()
    refs = [await system.spawn(once, str(i)) for i in range(n)]
    for ref in refs:
        await ref.tell("end")
    for ref in refs:
        await ref.join()
    took = perf_counter() - start
    await system.shutdown()
    return took


@if_here(EVERYTHING)
def _(library: Any) -> None:
    kit = Kit(
        EVERYTHING.name, EVERYTHING.on, everything, library.ActorRef.tell, everything_ask, True
    )
    kit.add(*COMMON, self_messages, memory)
    EVERYTHING.add(spawn, everything_spawn)
