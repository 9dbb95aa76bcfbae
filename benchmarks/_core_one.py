"""One end and one notice, one wake, one piece of work: the common operations."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter

import anyio
import anyio.from_thread
import trio
from _erlang import vm
from _harness import Case

from backplane import CascadeCrash, Device, Killed, LinkMode

life = Case("life", "two Devices made and linked MONITOR, one ended, receive_nowait by the other")
life_await = Case("life_await", "the same with await receive(), which lets the loop turn")
links = Case("links.peer", "link and unlink two Devices both ways")
monitors = Case("links.monitor", "link and unlink them one way")
wake = Case("wake.same_loop", "two tasks wake each other by the end of a Device: there and back")
thread = Case("wake.thread", "a task is woken by the end of a Device in another thread")
manage = Case("manage", "await Device().manage(fn), where fn does nothing")
crash = Case("manage.crash", "a Device ends with a fault; the work that depends on it is cancelled")
watch = Case("watch", "await device.watch(fn), where fn does nothing: fn, or a message")
CASES = [life, life_await, links, monitors, wake, thread, manage, crash, watch]


async def nothing() -> None:
    pass


# -- life --------------------------------------------------------------------------


@life.by("backplane")
def life_backplane(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.MONITOR)
        worker.disconnect()
        boss.receive_nowait()


@life_await.by("backplane")
async def life_await_backplane(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.MONITOR)
        worker.disconnect()
        await boss.receive()


async def asyncio_task(n: int) -> None:
    for _ in range(n):
        await asyncio.create_task(nothing())


async def asyncio_done_callback(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        heard: asyncio.Future[object] = loop.create_future()
        asyncio.create_task(nothing()).add_done_callback(heard.set_result)
        await heard


async def asyncio_task_group(n: int) -> None:
    for _ in range(n):
        async with asyncio.TaskGroup() as group:
            group.create_task(nothing())


async def anyio_task_group(n: int) -> None:
    for _ in range(n):
        async with anyio.create_task_group() as group:
            group.start_soon(nothing)


async def trio_nursery(n: int) -> None:
    for _ in range(n):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nothing)


async def future_set_await(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        future = loop.create_future()
        future.set_result(None)
        await future


async def event_set_await(n: int) -> None:
    for _ in range(n):
        event = asyncio.Event()
        event.set()
        await event.wait()


async def anyio_event_set_await(n: int) -> None:
    for _ in range(n):
        event = anyio.Event()
        event.set()
        await event.wait()


async def anyio_stream_close_await(n: int) -> None:
    for _ in range(n):
        sending, receiving = anyio.create_memory_object_stream[None](1)
        sending.close()
        try:
            await receiving.receive()
        except anyio.EndOfStream:
            pass
        receiving.close()


async def trio_event_set_await(n: int) -> None:
    for _ in range(n):
        event = trio.Event()
        event.set()
        await event.wait()


async def trio_channel_close_await(n: int) -> None:
    for _ in range(n):
        sending, receiving = trio.open_memory_channel[None](1)
        sending.close()
        try:
            await receiving.receive()
        except trio.EndOfChannel:
            pass


for one in (life, life_await):
    one.by("asyncio create_task + await", on="asyncio")(asyncio_task)
    one.by("asyncio create_task + done callback + await", on="asyncio")(asyncio_done_callback)
    one.by("asyncio TaskGroup of one task", on="asyncio")(asyncio_task_group)
    one.by("anyio task group of one task")(anyio_task_group)
    one.by("trio nursery of one task", on="trio")(trio_nursery)
    one.by("asyncio Future, set + await: no turn", on="asyncio")(future_set_await)
    one.by("asyncio Event, set + await: no turn", on="asyncio")(event_set_await)
    one.by("anyio Event, set + await")(anyio_event_set_await)
    one.by("anyio memory object stream, close + await")(anyio_stream_close_await)
    one.by("trio Event, set + await", on="trio")(trio_event_set_await)
    one.by("trio memory channel, close + await", on="trio")(trio_channel_close_await)
    one.by("Erlang spawn_monitor + DOWN", on="erlang")(vm.ask("life"))


# -- links -------------------------------------------------------------------------


@links.by("backplane")
def link_peer(n: int) -> None:
    a, b = Device(), Device()
    for _ in range(n):
        a.link(b, LinkMode.PEER)
        a.unlink(b, LinkMode.PEER)


@monitors.by("backplane")
def link_monitor(n: int) -> None:
    a, b = Device(), Device()
    for _ in range(n):
        a.link(b, LinkMode.MONITOR)
        a.unlink(b, LinkMode.MONITOR)


def done_callback(n: int) -> None:
    future = asyncio.get_running_loop().create_future()
    heard: list[object] = []
    for _ in range(n):
        future.add_done_callback(heard.append)
        future.remove_done_callback(heard.append)


for one in (links, monitors):
    one.by("asyncio Future, add + remove a done callback", on="asyncio")(done_callback)
links.by("Erlang link + unlink", on="erlang")(vm.ask("links"))
monitors.by("Erlang monitor + demonitor", on="erlang")(vm.ask("monitors"))


# -- wake, from the same loop --------------------------------------------------------


async def ping_pong(
    n: int, wait: Sequence[Callable[[], Awaitable[object]]], hit: Sequence[Callable[[], object]]
) -> None:
    """Two tasks: each waits for its own side, then hits the other's."""

    async def play(me: int) -> None:
        for _ in range(n):
            await wait[me]()
            hit[1 - me]()

    async with anyio.create_task_group() as group:
        group.start_soon(play, 0)
        group.start_soon(play, 1)
        hit[0]()


@wake.by("backplane")
async def wake_backplane(n: int) -> None:
    def hit(other: Device) -> None:
        ball = Device()
        other.link(ball, LinkMode.MONITOR)
        ball.disconnect()

    a, b = Device(), Device()
    await ping_pong(n, [a.receive, b.receive], [partial(hit, a), partial(hit, b)])


@wake.by("asyncio Future, set + await", on="asyncio")
async def wake_future(n: int) -> None:
    loop = asyncio.get_running_loop()
    futures = [loop.create_future(), loop.create_future()]

    async def wait(me: int) -> None:
        await futures[me]
        futures[me] = loop.create_future()

    def hit(other: int) -> None:
        futures[other].set_result(None)

    await ping_pong(n, [partial(wait, 0), partial(wait, 1)], [partial(hit, 0), partial(hit, 1)])


@wake.by("asyncio Event, set + wait", on="asyncio")
async def wake_event(n: int) -> None:
    events = [asyncio.Event(), asyncio.Event()]

    async def wait(me: int) -> None:
        await events[me].wait()
        events[me].clear()

    await ping_pong(n, [partial(wait, 0), partial(wait, 1)], [events[0].set, events[1].set])


@wake.by("asyncio Queue, put_nowait + get", on="asyncio")
async def wake_queue(n: int) -> None:
    a: asyncio.Queue[None] = asyncio.Queue()
    b: asyncio.Queue[None] = asyncio.Queue()
    await ping_pong(n, [a.get, b.get], [partial(a.put_nowait, None), partial(b.put_nowait, None)])


@wake.by("anyio Event, set + wait")
async def wake_anyio_event(n: int) -> None:
    events = [anyio.Event(), anyio.Event()]

    async def wait(me: int) -> None:
        await events[me].wait()
        events[me] = anyio.Event()

    def hit(other: int) -> None:
        events[other].set()

    await ping_pong(n, [partial(wait, 0), partial(wait, 1)], [partial(hit, 0), partial(hit, 1)])


@wake.by("anyio memory object stream, send_nowait + receive")
async def wake_anyio_stream(n: int) -> None:
    to_a, a = anyio.create_memory_object_stream[None](1)
    to_b, b = anyio.create_memory_object_stream[None](1)
    hits = [partial(to_a.send_nowait, None), partial(to_b.send_nowait, None)]
    async with to_a, to_b, a, b:
        await ping_pong(n, [a.receive, b.receive], hits)


@wake.by("trio Event, set + wait", on="trio")
async def wake_trio_event(n: int) -> None:
    events = [trio.Event(), trio.Event()]

    async def wait(me: int) -> None:
        await events[me].wait()
        events[me] = trio.Event()

    def hit(other: int) -> None:
        events[other].set()

    await ping_pong(n, [partial(wait, 0), partial(wait, 1)], [partial(hit, 0), partial(hit, 1)])


@wake.by("trio memory channel, send_nowait + receive", on="trio")
async def wake_trio_channel(n: int) -> None:
    to_a, a = trio.open_memory_channel[None](1)
    to_b, b = trio.open_memory_channel[None](1)
    hits = [partial(to_a.send_nowait, None), partial(to_b.send_nowait, None)]
    await ping_pong(n, [a.receive, b.receive], hits)


# -- wake, from another thread -------------------------------------------------------


@contextmanager
def helper() -> Iterator[Callable[[Callable[[], object]], None]]:
    """A thread that calls what it is given."""
    calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def work() -> None:
        while (fn := calls.get()) is not None:
            fn()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield calls.put
    finally:
        calls.put(None)
        worker.join()


@thread.by("backplane")
async def thread_backplane(n: int) -> float:
    boss = Device()
    with helper() as call:
        start = perf_counter()
        for _ in range(n):
            worker = Device()
            boss.link(worker, LinkMode.MONITOR)
            call(worker.disconnect)
            await boss.receive()
        return perf_counter() - start


@thread.by("asyncio call_soon_threadsafe + Future", on="asyncio")
async def thread_future(n: int) -> float:
    loop = asyncio.get_running_loop()
    with helper() as call:
        start = perf_counter()
        for _ in range(n):
            future: asyncio.Future[None] = loop.create_future()
            call(partial(loop.call_soon_threadsafe, future.set_result, None))
            await future
        return perf_counter() - start


@thread.by("asyncio run_coroutine_threadsafe + Event", on="asyncio")
async def thread_coroutine(n: int) -> float:
    loop = asyncio.get_running_loop()

    async def set_event(event: asyncio.Event) -> None:
        event.set()

    def from_thread(event: asyncio.Event) -> None:
        asyncio.run_coroutine_threadsafe(set_event(event), loop)

    with helper() as call:
        start = perf_counter()
        for _ in range(n):
            event = asyncio.Event()
            call(partial(from_thread, event))
            await event.wait()
        return perf_counter() - start


@thread.by("anyio BlockingPortal + Event")
async def thread_portal(n: int) -> float:
    took = 0.0
    async with anyio.from_thread.BlockingPortal() as portal:
        with helper() as call:
            start = perf_counter()
            for _ in range(n):
                event = anyio.Event()
                call(partial(portal.start_task_soon, event.set))
                await event.wait()
            took = perf_counter() - start
    return took


@thread.by("trio run_sync_soon + Event", on="trio")
async def thread_trio(n: int) -> float:
    token = trio.lowlevel.current_trio_token()
    with helper() as call:
        start = perf_counter()
        for _ in range(n):
            event = trio.Event()
            call(partial(token.run_sync_soon, event.set))
            await event.wait()
        return perf_counter() - start


@thread.by("trio from_thread.run_sync + Event", on="trio")
async def thread_from_thread(n: int) -> float:
    token = trio.lowlevel.current_trio_token()
    with helper() as call:
        start = perf_counter()
        for _ in range(n):
            event = trio.Event()
            call(partial(trio.from_thread.run_sync, event.set, trio_token=token))
            await event.wait()
        return perf_counter() - start


# -- manage ------------------------------------------------------------------------


@manage.by("backplane")
async def manage_backplane(n: int) -> None:
    for _ in range(n):
        await Device().manage(nothing)


@manage.by("backplane, async with Device().managed()")
async def managed_backplane(n: int) -> None:
    for _ in range(n):
        async with Device().managed():
            await nothing()


@manage.by("backplane, part_manage, always the same Device")
async def part_manage_backplane(n: int) -> None:
    device = Device()
    for _ in range(n):
        await device.part_manage(nothing)


@manage.by("bare await")
async def bare_await(n: int) -> None:
    for _ in range(n):
        await nothing()


@manage.by("asyncio.timeout(None) around it", on="asyncio")
async def asyncio_timeout(n: int) -> None:
    for _ in range(n):
        async with asyncio.timeout(None):
            await nothing()


@manage.by("anyio CancelScope around it")
async def anyio_scope(n: int) -> None:
    for _ in range(n):
        with anyio.CancelScope():
            await nothing()


@manage.by("trio CancelScope around it", on="trio")
async def trio_scope(n: int) -> None:
    for _ in range(n):
        with trio.CancelScope():
            await nothing()


manage.by("asyncio create_task + await", on="asyncio")(asyncio_task)
manage.by("asyncio TaskGroup of one task", on="asyncio")(asyncio_task_group)
manage.by("anyio task group of one task")(anyio_task_group)
manage.by("trio nursery of one task", on="trio")(trio_nursery)


# -- manage, stopped by a message ------------------------------------------------------


@crash.by("backplane")
async def crash_backplane(n: int) -> None:
    async def work(needed: Device) -> None:
        needed.disconnect(Killed())
        await anyio.lowlevel.checkpoint()

    for _ in range(n):
        needed = Device()
        device = Device()
        device.link(needed, LinkMode.MONITOR)
        try:
            await device.manage(work, needed)
        except CascadeCrash:
            pass


@crash.by("asyncio Task, cancelled, awaited", on="asyncio")
async def crash_task(n: int) -> None:
    async def work() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await anyio.lowlevel.checkpoint()

    for _ in range(n):
        try:
            await asyncio.create_task(work())
        except asyncio.CancelledError:
            pass


@crash.by("anyio CancelScope, cancelled")
async def crash_anyio_scope(n: int) -> None:
    async def work(scope: anyio.CancelScope) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    for _ in range(n):
        with anyio.CancelScope() as scope:
            await work(scope)


@crash.by("trio CancelScope, cancelled", on="trio")
async def crash_trio_scope(n: int) -> None:
    async def work(scope: trio.CancelScope) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    for _ in range(n):
        with trio.CancelScope() as scope:
            await work(scope)


# -- watch -------------------------------------------------------------------------


@watch.by("backplane")
async def watch_backplane(n: int) -> None:
    device = Device()
    for _ in range(n):
        await device.watch(nothing)


@watch.by("asyncio.wait, a Task and a Future", on="asyncio")
async def watch_asyncio(n: int) -> None:
    message: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for _ in range(n):
        work = asyncio.create_task(nothing())
        await asyncio.wait([work, message], return_when=asyncio.FIRST_COMPLETED)
        await work


@watch.by("anyio task group, the first one cancels the other")
async def watch_anyio(n: int) -> None:
    message = anyio.Event()

    async def heard(scope: anyio.CancelScope) -> None:
        await message.wait()
        scope.cancel()

    for _ in range(n):
        async with anyio.create_task_group() as group:
            group.start_soon(heard, group.cancel_scope)
            await nothing()
            group.cancel_scope.cancel()
