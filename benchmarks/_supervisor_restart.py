"""Restarts: of one child, of a group of ten, and of one that has been restarted often before.

What is written by hand logs each crash, as the supervisors do. Logging is off
for all of them: see ``bench_supervisor.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import trio
from _erlang import vm
from _harness import Case
from _supervisor_parts import GROUP, MANY, Crashes, Group

from backplane.supervisor import ChildSpec, Strategy, Supervisor

logger = logging.getLogger("supervisor by hand")

restart = Case(
    "restart", "one_for_one: from the crash of a child, which raises at once, to its next run"
)
big_window = Case(
    "restart.big_window",
    "the same with 20 000 restarts in the window already",
    size=1000,
    quick_size=10,
    rounds=5,
)
group = Case("one_for_all.10", "from the crash of one child of ten until all ten run again")
CASES = [restart, big_window, group]

Child = Callable[[], Coroutine[object, object, None]]
BEFORE = 20
"""So many times the size of ``restart.big_window`` are in the window before the clock starts."""


@asynccontextmanager
async def background(fn: Child) -> AsyncIterator[None]:
    """Run something beside the block, until its end."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(fn)
        yield
        tg.cancel_scope.cancel()


async def kept(keep: Callable[[Child], Coroutine[object, object, None]], n: int) -> float:
    """The seconds that a loop written by hand takes for n restarts."""
    crashes = Crashes(n)
    async with background(lambda: keep(crashes.child)):
        await crashes.stays.wait()
    return crashes.took


# -- one child ---------------------------------------------------------------------


@restart.by("backplane")
async def restart_backplane(n: int) -> float:
    crashes = Crashes(n)
    async with Supervisor([crashes.child], max_restarts=MANY):
        await crashes.stays.wait()
    return crashes.took


@restart.by("backplane, nobody listens to events")
async def restart_unheard(n: int) -> float:
    crashes = Crashes(n)
    async with Supervisor([crashes.child], max_restarts=MANY, subscribers=()):
        await crashes.stays.wait()
    return crashes.took


@restart.by("asyncio by hand, a task for each run", on="asyncio")
async def restart_new_task(n: int) -> float:
    async def keep(fn: Child) -> None:
        while True:
            try:
                await asyncio.create_task(fn())
            except Exception:
                logger.exception("restarting")

    return await kept(keep, n)


@restart.by("asyncio by hand, a TaskGroup for each run", on="asyncio")
async def restart_task_group(n: int) -> float:
    async def keep(fn: Child) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tg:
                    tg.create_task(fn())
            except* Exception:
                logger.exception("restarting")

    return await kept(keep, n)


@restart.by("trio by hand, a nursery for each run", on="trio")
async def restart_nursery(n: int) -> float:
    async def keep(fn: Child) -> None:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fn)
            except* Exception:
                logger.exception("restarting")

    return await kept(keep, n)


@restart.by("anyio by hand, a task group for each run")
async def restart_anyio(n: int) -> float:
    async def keep(fn: Child) -> None:
        while True:
            try:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(fn)
            except* Exception:
                logger.exception("restarting")

    return await kept(keep, n)


@restart.by("by hand, all runs in one task")
async def restart_same_task(n: int) -> float:
    async def keep(fn: Child) -> None:
        while True:
            try:
                await fn()
            except Exception:
                logger.exception("restarting")

    return await kept(keep, n)


restart.by("Erlang, a gen_server that stops at once", on="erlang")(vm.ask("restart"))


# -- one child, many restarts before -----------------------------------------------


@big_window.by("backplane")
async def window_full(n: int) -> float:
    crashes = Crashes(n, before=BEFORE * n)
    async with Supervisor([crashes.child], max_restarts=MANY, max_seconds=3600):
        await crashes.stays.wait()
    return crashes.took


@big_window.by("backplane, nothing in the window")
async def window_empty(n: int) -> float:
    crashes = Crashes(n)
    async with Supervisor([crashes.child], max_restarts=MANY, max_seconds=3600):
        await crashes.stays.wait()
    return crashes.took


@big_window.by("by hand, all runs in one task; a list of times is filtered")
async def window_list(n: int) -> float:
    async def keep(fn: Child) -> None:
        times = [monotonic()] * (BEFORE * n)
        while True:
            try:
                await fn()
            except Exception:
                logger.exception("restarting")
            now = monotonic()
            times = [time for time in times if now - time < 3600]
            times.append(now)
            if len(times) > MANY:
                return

    return await kept(keep, n)


big_window.by("Erlang, a gen_server that stops at once", on="erlang")(vm.ask("big_window"))


# -- a group -----------------------------------------------------------------------


@group.by("backplane")
async def group_backplane(n: int) -> float:
    ten = Group(n)
    specs = [ChildSpec(str(i), ten.child, (i,)) for i in range(GROUP)]
    async with Supervisor(specs, strategy=Strategy.ONE_FOR_ALL, max_restarts=MANY):
        await ten.stays.wait()
    return ten.took


@group.by("asyncio by hand: wait for the first, cancel, gather", on="asyncio")
async def group_wait(n: int) -> float:
    ten = Group(n)

    async def keep() -> None:
        while True:
            tasks = [asyncio.create_task(ten.child(i)) for i in range(GROUP)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                logger.error("restarting")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async with background(keep):
        await ten.stays.wait()
    return ten.took


@group.by("asyncio by hand: a TaskGroup for each run", on="asyncio")
async def group_task_group(n: int) -> float:
    ten = Group(n)

    async def keep() -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tg:
                    for i in range(GROUP):
                        tg.create_task(ten.child(i))
            except* Exception:
                logger.exception("restarting")

    async with background(keep):
        await ten.stays.wait()
    return ten.took


@group.by("trio by hand: a nursery for each run", on="trio")
async def group_nursery(n: int) -> float:
    ten = Group(n)

    async def keep() -> None:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    for i in range(GROUP):
                        nursery.start_soon(ten.child, i)
            except* Exception:
                logger.exception("restarting")

    async with background(keep):
        await ten.stays.wait()
    return ten.took


@group.by("anyio by hand: a task group for each run")
async def group_anyio(n: int) -> float:
    ten = Group(n)

    async def keep() -> None:
        while True:
            try:
                async with anyio.create_task_group() as tg:
                    for i in range(GROUP):
                        tg.start_soon(ten.child, i)
            except* Exception:
                logger.exception("restarting")

    async with background(keep):
        await ten.stays.wait()
    return ten.took


group.by("Erlang, ten gen_servers", on="erlang")(vm.ask("one_for_all"))
