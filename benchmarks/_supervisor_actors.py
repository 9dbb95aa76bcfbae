"""The peers whose children are actors: they are given messages, and crash over one.

As ``_supervisor_peers``, which says more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

from _supervisor_libraries import CASTY, EVERYTHING, LAPINBEAM
from _supervisor_many import memory, weigh
from _supervisor_parts import GROUP, MANY, CrashError, Crashes, Crew, Group
from _supervisor_restart import BEFORE, big_window, group, restart

# -- lapinbeam: it waits before each restart, 0.1 s or more, whatever it is told ----------


def lapinbeam_actors(start: Callable[[int], object], size: int) -> list[Any]:
    """As many classes of actors: one has one name, under which only one actor can live."""
    actor = import_module("lapinbeam").actor

    def init(self: object, i: int) -> None:
        start(i)

    async def receive(self: object, message: object) -> None:
        raise CrashError

    methods = {"__init__": init, "receive": receive}
    return [actor(name=str(i))(type("Child", (), methods)) for i in range(size)]


@asynccontextmanager
async def lapinbeam(actors: list[Any], strategy: str = "one_for_one") -> AsyncIterator[list[Any]]:
    library = import_module("lapinbeam")
    async with library.Node("bench@127.0.0.1:0", 0) as node:
        supervisor = library.Supervisor(strategy, node, max_restarts=MANY)
        yield [supervisor.spawn(actor, i) for i, actor in enumerate(actors)]
        await supervisor.shutdown()


async def lapinbeam_restart(n: int) -> float:
    crashes = Crashes(n)
    async with lapinbeam(lapinbeam_actors(lambda _: crashes.step(), 1)):
        await crashes.stays.wait()
    return crashes.took


async def lapinbeam_group(n: int) -> float:
    ten = Group(n)
    sending: set[asyncio.Future[None]] = set()

    def start(_: int) -> None:
        if ten.arrive():
            sending.add(asyncio.ensure_future(refs[ten.victim].send("crash")))

    async with lapinbeam(lapinbeam_actors(start, GROUP), "one_for_all") as refs:
        await ten.stays.wait()
    return ten.took


async def lapinbeam_crew(crew: Crew, n: int) -> None:
    actors = lapinbeam_actors(lambda _: crew.arrive(), n)
    crew.begin()
    async with lapinbeam(actors):
        await crew.wait()
    crew.gone()


async def lapinbeam_memory(n: int) -> float:
    actors = lapinbeam_actors(lambda _: None, n)
    return await weigh(lambda stack: stack.enter_async_context(lapinbeam(actors)), n)


LAPINBEAM.add(restart, lapinbeam_restart, ", which waits first")
LAPINBEAM.add(group, lapinbeam_group, ", which waits first")
LAPINBEAM.add_crew(lapinbeam_crew, ", the class of each being there")
LAPINBEAM.add(memory, lapinbeam_memory, ", the class of each being there")


# -- casty: virtual actors. A body that fails is run again, for ever, after a backoff ------


@asynccontextmanager
async def casty(start: Callable[[], object], size: int) -> AsyncIterator[None]:
    library = import_module("casty")

    async def body(ctx: Any) -> None:
        start()
        async for _ in ctx.inbox:
            pass

    body.__annotations__["ctx"] = library.Context[int, str]
    child = library.actor(initial=0)(body)
    backoff = library.Backoff(timedelta(0), timedelta(0))
    async with library.ActorSystem(backoff=backoff) as system:
        for i in range(size):
            system.ref(child, str(i)).tell("start")
        yield


async def casty_restart(n: int) -> float:
    crashes = Crashes(n)
    async with casty(crashes.step, 1):
        await crashes.stays.wait()
    return crashes.took


async def casty_crew(crew: Crew, n: int) -> None:
    async with casty(crew.arrive, n):
        await crew.wait()
    crew.gone()


CASTY.add(restart, casty_restart)
CASTY.add_crew(casty_crew)


# -- everything-is-an-actor: a restart puts a new instance into the same task --------------


@asynccontextmanager
async def everything(
    start: Callable[[list[Any]], Awaitable[object]], size: int, strategy: str, messages: int = 0
) -> AsyncIterator[None]:
    """Supervise ``size`` actors, which fail when they get any message; the first has some."""
    library = import_module("actor_for_agents")
    refs: list[Any] = []

    async def begin(self: object) -> None:
        await start(refs)

    async def receive(self: object, message: object) -> None:
        raise CrashError

    async def parent(self: Any) -> None:
        for i in range(size):  # one by one: the last of them looks for another when it starts
            refs[i:] = [await self.context.spawn(child, str(i), mailbox_size=messages + 1)]
        for _ in range(messages):
            await refs[0].tell("crash")

    async def unused(self: object, message: object) -> None:
        pass

    def supervise(self: object) -> object:
        return getattr(library, strategy)(max_restarts=MANY, within_seconds=3600)

    actor, system = library.Actor, library.ActorSystem("bench")
    child = type("Child", (actor,), {"on_receive": receive, "on_started": begin})
    methods = {"on_receive": unused, "on_started": parent, "supervisor_strategy": supervise}
    await system.spawn(type("Parent", (actor,), methods), "parent")
    yield
    await system.shutdown()


async def everything_restart(n: int, before: int = 0) -> float:
    crashes = Crashes(n, before)

    async def start(_: list[Any]) -> None:
        try:
            crashes.step()
        except CrashError:
            pass  # the next message will do it

    async with everything(start, 1, "OneForOneStrategy", n + before):
        await crashes.stays.wait()
    return crashes.took


async def everything_group(n: int) -> float:
    ten = Group(n)

    async def start(refs: list[Any]) -> None:
        if ten.arrive():
            await refs[ten.victim].tell("crash")

    async with everything(start, GROUP, "AllForOneStrategy"):
        await ten.stays.wait()
    return ten.took


async def everything_crew(crew: Crew, n: int) -> None:
    async def start(_: list[Any]) -> None:
        crew.arrive()

    async with everything(start, n, "OneForOneStrategy"):
        await crew.wait()
    crew.gone()


async def everything_memory(n: int) -> float:
    crew = Crew(n)

    async def start(_: list[Any]) -> None:
        crew.arrive()

    def enter(stack: AsyncExitStack) -> Awaitable[object]:
        return stack.enter_async_context(everything(start, n, "OneForOneStrategy"))

    return await weigh(enter, n)


EVERYTHING.add(restart, everything_restart, ", in the same task")
EVERYTHING.add(big_window, lambda n: everything_restart(n, BEFORE * n), ", in the same task")
EVERYTHING.add(group, everything_group, ", in the same tasks")
EVERYTHING.add_crew(everything_crew)
EVERYTHING.add(memory, everything_memory)
