"""Ten thousand children that do nothing: how long they take to start and stop, what they weigh."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import trio
from _core_many import forever, here
from _core_size import traced
from _erlang import vm
from _harness import Case, Measure, On, settle
from _supervisor_parts import Crew

from backplane.supervisor import ChildSpec, DynamicSupervisor, Supervisor

SIZE = 10_000

start = Case(
    "start.10000", "from nothing until the last of 10 000 idle children runs", size=SIZE, rounds=9
)
start_stop = Case(
    "start_stop.10000", "the same, and stop them all, until none is left", size=SIZE, rounds=9
)
memory = Case(
    "memory",
    "bytes of a supervised idle child, above those of a bare idle task",
    "B",
    SIZE,
    1000,
    rounds=3,
)
CASES = [start, start_stop, memory]

Run = Callable[[Crew, int], Awaitable[None]]


def by(name: str, on: On = "any") -> Callable[[Run], Run]:
    """Register what starts and stops a crew with both cases."""

    def measure_with(run: Run, with_stop: bool) -> Measure:
        async def measure(n: int) -> float:
            crew = Crew(n)
            await run(crew, n)
            return crew.started + crew.stopped * with_stop

        return measure

    def register(run: Run) -> Run:
        start.by(name, on)(measure_with(run, False))
        start_stop.by(name, on)(measure_with(run, True))
        return run

    return register


# -- start and stop ----------------------------------------------------------------


@by("backplane Supervisor")
async def crew_static(crew: Crew, n: int) -> None:
    specs = [ChildSpec(str(i), crew.child) for i in range(n)]
    async with Supervisor(specs):
        await crew.wait()
    crew.gone()


@by("backplane Supervisor, its ChildSpecs being there")
async def crew_specs_made(crew: Crew, n: int) -> None:
    specs = [ChildSpec(str(i), crew.child) for i in range(n)]
    crew.begin()
    async with Supervisor(specs):
        await crew.wait()
    crew.gone()


@by("backplane DynamicSupervisor, one start_child after another")
async def crew_dynamic(crew: Crew, n: int) -> None:
    async with DynamicSupervisor() as supervisor:
        for _ in range(n):
            await supervisor.start_child(crew.child)
        await crew.wait()
    crew.gone()


@by("asyncio tasks, cancel, gather", on="asyncio")
async def crew_tasks(crew: Crew, n: int) -> None:
    tasks = [asyncio.create_task(crew.child()) for _ in range(n)]
    await crew.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    crew.gone()


@by("asyncio TaskGroup, cancel", on="asyncio")
async def crew_task_group(crew: Crew, n: int) -> None:
    async with asyncio.TaskGroup() as tg:
        tasks = [tg.create_task(crew.child()) for _ in range(n)]
        await crew.wait()
        for task in tasks:
            task.cancel()
    crew.gone()


@by("trio nursery, cancel", on="trio")
async def crew_nursery(crew: Crew, n: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(crew.child)
        await crew.wait()
        nursery.cancel_scope.cancel()
    crew.gone()


@by("anyio task group, cancel")
async def crew_anyio(crew: Crew, n: int) -> None:
    async with anyio.create_task_group() as tg:
        for _ in range(n):
            tg.start_soon(crew.child)
        await crew.wait()
        tg.cancel_scope.cancel()
    crew.gone()


start.by("Erlang simple_one_for_one", on="erlang")(vm.ask("start_children"))
start_stop.by("Erlang simple_one_for_one", on="erlang")(vm.ask("start_stop_children"))


# -- memory ------------------------------------------------------------------------


async def weigh(enter: Callable[[AsyncExitStack], Awaitable[object]], n: int) -> float:
    """The bytes of n idle children that ``enter`` starts, above those of n bare tasks."""
    return await _weigh(enter) - await _weigh(lambda stack: _enter_tasks(stack, n))


async def _weigh(enter: Callable[[AsyncExitStack], Awaitable[object]]) -> float:
    async with AsyncExitStack() as stack:
        with traced() as result:
            await enter(stack)
            await settle(here())
            gc.collect()
    return result.grown


async def _enter_tasks(stack: AsyncExitStack, n: int) -> None:
    if here() == "trio":
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        for _ in range(n):
            nursery.start_soon(forever)
        return
    tasks = [asyncio.create_task(forever()) for _ in range(n)]

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)


@memory.by("backplane Supervisor")
async def memory_static(n: int) -> float:
    def enter(stack: AsyncExitStack) -> Awaitable[object]:
        return stack.enter_async_context(Supervisor([ChildSpec(str(i), forever) for i in range(n)]))

    return await weigh(enter, n)


@memory.by("backplane DynamicSupervisor")
async def memory_dynamic(n: int) -> float:
    async def enter(stack: AsyncExitStack) -> None:
        supervisor = await stack.enter_async_context(DynamicSupervisor())
        for _ in range(n):
            await supervisor.start_child(forever)

    return await weigh(enter, n)


@memory.by("asyncio TaskGroup", on="asyncio")
async def memory_task_group(n: int) -> float:
    async def enter(stack: AsyncExitStack) -> None:
        tg = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [tg.create_task(forever()) for _ in range(n)]
        stack.callback(lambda: [task.cancel() for task in tasks])

    return await weigh(enter, n)


@memory.by("anyio task group")
async def memory_anyio(n: int) -> float:
    async def enter(stack: AsyncExitStack) -> None:
        tg = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tg.cancel_scope.cancel)
        for _ in range(n):
            tg.start_soon(forever)

    return await weigh(enter, n)


memory.by("Erlang simple_one_for_one, above a process", on="erlang")(
    vm.ask("supervised_memory", scale=1)
)
