"""Ten thousand at once: a cascade through a chain, and one end that all hear.

Tasks are started before the clock and cleaned up after it. The clock stops when
the last one has done what it does at its end, and the starter knows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from itertools import pairwise
from time import perf_counter

import anyio
import trio
from _erlang import vm
from _harness import Case, On, settle, tasks

from backplane import CascadeCrash, Device, Killed, LinkMode

SIZE = 10_000

cascade = Case(
    "cascade",
    "a chain of managed Devices, each in its own task and linked to the one before: "
    "kill the head, until the last has ended",
    size=SIZE,
    rounds=11,
)
star = Case(
    "star.plain", "one Device ends, 10 000 Devices hear and receive_nowait", size=SIZE, rounds=11
)
star_managed = Case(
    "star.managed",
    "one Device ends, the work of 10 000 managed Devices stops",
    size=SIZE,
    rounds=11,
)
CASES = [cascade, star, star_managed]


# -- the chain ---------------------------------------------------------------------


async def managed(device: Device) -> None:
    try:
        await device.manage(forever)
    except CascadeCrash:
        pass


async def forever() -> None:
    """Sleep as cheaply as the loop can. (`anyio.sleep_forever` sets a timer on asyncio.)"""
    if in_trio():
        await trio.sleep_forever()
    else:
        await asyncio.get_running_loop().create_future()


def in_trio() -> bool:
    return here() == "trio"


def here() -> On:
    return "trio" if trio.lowlevel.in_trio_run() else "asyncio"


@cascade.by("backplane")
async def cascade_backplane(n: int) -> float:
    watcher, head = Device(), Device()
    async with tasks(here()) as spawn:
        before = head
        for _ in range(n):
            device = Device()
            device.link(before, LinkMode.MONITOR)
            spawn(managed, device)
            before = device
        watcher.link(before, LinkMode.MONITOR)
        await settle(here())
        start = perf_counter()
        head.disconnect(Killed())
        await watcher.receive()
        return perf_counter() - start


@cascade.by("asyncio, a done callback cancels the next Task", on="asyncio")
async def cascade_done_callback(n: int) -> float:
    async def node(_: object) -> None:
        await forever()

    def cancel(task: asyncio.Task[None], _: object) -> None:
        task.cancel()

    chain = [asyncio.create_task(node(None)) for _ in range(n + 1)]
    last = asyncio.get_running_loop().create_future()
    for before, after in pairwise(chain):
        before.add_done_callback(partial(cancel, after))
    chain[-1].add_done_callback(last.set_result)
    await settle("asyncio")
    start = perf_counter()
    chain[0].cancel()
    await last
    return perf_counter() - start


@cascade.by("asyncio, each Task awaits the one before", on="asyncio")
async def cascade_await_task(n: int) -> float:
    async def node(before: asyncio.Future[None]) -> None:
        await before

    head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    before = head
    for _ in range(n):
        before = asyncio.create_task(node(before))
    await settle("asyncio")
    start = perf_counter()
    head.set_exception(RuntimeError("boom"))
    try:
        await before
    except RuntimeError:
        pass
    return perf_counter() - start


@cascade.by("asyncio, each Task waits for the Event before", on="asyncio")
async def cascade_event(n: int) -> float:
    async def node(pair: tuple[asyncio.Event, asyncio.Event]) -> None:
        await pair[0].wait()
        pair[1].set()

    events = [asyncio.Event() for _ in range(n + 1)]
    async with tasks("asyncio") as spawn:
        for pair in pairwise(events):
            spawn(node, pair)
        await settle("asyncio")
        start = perf_counter()
        events[0].set()
        await events[-1].wait()
        return perf_counter() - start


@cascade.by("anyio, each task in a CancelScope cancels the next")
async def cascade_anyio_scope(n: int) -> float:
    scopes = [anyio.CancelScope() for _ in range(n)]
    last = anyio.Event()

    async def node(i: int) -> None:
        with scopes[i]:
            await forever()
        if i + 1 < n:
            scopes[i + 1].cancel()
        else:
            last.set()

    async with tasks(here()) as spawn:
        for i in range(n):
            spawn(node, i)
        await settle(here())
        start = perf_counter()
        scopes[0].cancel()
        await last.wait()
        return perf_counter() - start


@cascade.by("anyio, each task waits for the memory object stream before")
async def cascade_anyio_stream(n: int) -> float:
    streams = [anyio.create_memory_object_stream[None](0) for _ in range(n + 1)]

    async def node(i: int) -> None:
        with streams[i][1] as receiving, streams[i + 1][0]:
            try:
                await receiving.receive()
            except anyio.EndOfStream:
                pass

    async with tasks(here()) as spawn:
        for i in range(n):
            spawn(node, i)
        await settle(here())
        start = perf_counter()
        streams[0][0].close()
        with streams[-1][1] as last:
            try:
                await last.receive()
            except anyio.EndOfStream:
                pass
        return perf_counter() - start


@cascade.by("trio, each task in a CancelScope cancels the next", on="trio")
async def cascade_trio_scope(n: int) -> float:
    scopes = [trio.CancelScope() for _ in range(n)]
    last = trio.Event()

    async def node(i: int) -> None:
        with scopes[i]:
            await trio.sleep_forever()
        if i + 1 < n:
            scopes[i + 1].cancel()
        else:
            last.set()

    async with tasks("trio") as spawn:
        for i in range(n):
            spawn(node, i)
        await settle("trio")
        start = perf_counter()
        scopes[0].cancel()
        await last.wait()
        return perf_counter() - start


@cascade.by("trio, each task waits for the Event before", on="trio")
async def cascade_trio_event(n: int) -> float:
    async def node(pair: tuple[trio.Event, trio.Event]) -> None:
        await pair[0].wait()
        pair[1].set()

    events = [trio.Event() for _ in range(n + 1)]
    async with tasks("trio") as spawn:
        for pair in pairwise(events):
            spawn(node, pair)
        await settle("trio")
        start = perf_counter()
        events[0].set()
        await events[-1].wait()
        return perf_counter() - start


cascade.by("Erlang, a chain of linked processes", on="erlang")(vm.ask("cascade"))


# -- the star, heard by hand -------------------------------------------------------


@star.by("backplane")
def star_backplane(n: int) -> float:
    hub = Device()
    leaves = [Device() for _ in range(n)]
    for leaf in leaves:
        leaf.link(hub, LinkMode.MONITOR)
    start = perf_counter()
    hub.disconnect(Killed())
    for leaf in leaves:
        leaf.receive_nowait()
    return perf_counter() - start


@star.by("deque each, append + popleft")
def star_deque(n: int) -> float:
    leaves: list[deque[str]] = [deque() for _ in range(n)]
    start = perf_counter()
    for leaf in leaves:
        leaf.append("gone")
    for leaf in leaves:
        leaf.popleft()
    return perf_counter() - start


@star.by("asyncio Queue each, put_nowait + get_nowait", on="asyncio")
def star_queue(n: int) -> float:
    leaves: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in range(n)]
    start = perf_counter()
    for leaf in leaves:
        leaf.put_nowait("gone")
    for leaf in leaves:
        leaf.get_nowait()
    return perf_counter() - start


@star.by("asyncio Future, a done callback each", on="asyncio")
async def star_done_callback(n: int) -> float:
    hub = asyncio.get_running_loop().create_future()
    leaves: list[list[object]] = [[] for _ in range(n)]
    for leaf in leaves:
        hub.add_done_callback(leaf.append)
    start = perf_counter()
    hub.set_result(None)
    await asyncio.sleep(0)
    for leaf in leaves:
        leaf.pop()
    return perf_counter() - start


@star.by("anyio memory object stream each, send + receive")
def star_anyio_stream(n: int) -> float:
    leaves = [anyio.create_memory_object_stream[str](1) for _ in range(n)]
    start = perf_counter()
    for sending, _ in leaves:
        sending.send_nowait("gone")
    for _, receiving in leaves:
        receiving.receive_nowait()
    took = perf_counter() - start
    for sending, receiving in leaves:
        sending.close()
        receiving.close()
    return took


@star.by("trio memory channel each, send + receive", on="trio")
def star_trio_channel(n: int) -> float:
    leaves = [trio.open_memory_channel[str](1) for _ in range(n)]
    start = perf_counter()
    for sending, _ in leaves:
        sending.send_nowait("gone")
    for _, receiving in leaves:
        receiving.receive_nowait()
    return perf_counter() - start


# -- the star of tasks ---------------------------------------------------------------


@star_managed.by("backplane")
async def star_managed_backplane(n: int) -> float:
    hub = Device()
    start = 0.0
    async with tasks(here()) as spawn:
        for _ in range(n):
            device = Device()
            device.link(hub, LinkMode.MONITOR)
            spawn(managed, device)
        await settle(here())
        start = perf_counter()
        hub.disconnect(Killed())
    return perf_counter() - start


@star_managed.by("asyncio, cancel each Task, gather", on="asyncio")
async def star_cancel(n: int) -> float:
    async def node(_: object) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            pass

    leaves = [asyncio.create_task(node(None)) for _ in range(n)]
    await settle("asyncio")
    start = perf_counter()
    for leaf in leaves:
        leaf.cancel()
    await asyncio.gather(*leaves)
    return perf_counter() - start


@star_managed.by("asyncio Event, each Task waits for it", on="asyncio")
async def star_event(n: int) -> float:
    hub = asyncio.Event()

    async def node(_: object) -> None:
        await hub.wait()

    async with tasks("asyncio") as spawn:
        for _ in range(n):
            spawn(node, None)
        await settle("asyncio")
        start = perf_counter()
        hub.set()
    return perf_counter() - start


@star_managed.by("asyncio TaskGroup, one Task fails", on="asyncio")
async def star_task_group(n: int) -> float:
    start = 0.0

    async def fail(when: asyncio.Event) -> None:
        await when.wait()
        raise RuntimeError("boom")

    when = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(when))
            for _ in range(n):
                group.create_task(forever())
            await settle("asyncio")
            start = perf_counter()
            when.set()
    except* RuntimeError:
        pass
    return perf_counter() - start


@star_managed.by("anyio task group, cancelled")
async def star_anyio_group(n: int) -> float:
    start = 0.0
    async with anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(forever)
        await settle(here())
        start = perf_counter()
        group.cancel_scope.cancel()
    return perf_counter() - start


@star_managed.by("trio nursery, cancelled", on="trio")
async def star_nursery(n: int) -> float:
    start = 0.0
    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(trio.sleep_forever)
        await settle("trio")
        start = perf_counter()
        nursery.cancel_scope.cancel()
    return perf_counter() - start


@star_managed.by("trio Event, each task waits for it", on="trio")
async def star_trio_event(n: int) -> float:
    hub = trio.Event()

    async def node(_: object) -> None:
        await hub.wait()

    async with tasks("trio") as spawn:
        for _ in range(n):
            spawn(node, None)
        await settle("trio")
        start = perf_counter()
        hub.set()
    return perf_counter() - start


star_managed.by("Erlang, processes linked to one", on="erlang")(vm.ask("star"))
