"""The same by hand: what one would write without a library for it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import anyio
import trio
from _otp_cases import (
    PASSING,
    Kit,
    Make,
    Take,
    call,
    call_10,
    cast,
    memory,
    memory_process,
    settle_here,
    spawn,
)


@asynccontextmanager
async def tasks_of(bodies: Iterable[Awaitable[None]]) -> AsyncIterator[None]:
    started = [asyncio.ensure_future(body) for body in bodies]
    yield
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


# -- an asyncio.Queue for the requests, a Future for each answer -----------------------

Item = tuple[int, "asyncio.Future[int] | None"]


async def queue_server(queue: asyncio.Queue[Item], take: Take) -> None:
    while True:
        message, future = await queue.get()
        if future is None:
            take(message)
        elif not future.done():
            future.set_result(message)


@asynccontextmanager
async def queue_servers(make: Make, n: int) -> AsyncIterator[list[Any]]:
    queues = [asyncio.Queue[Item]() for _ in range(n)]
    async with tasks_of(queue_server(queue, make(i)) for i, queue in enumerate(queues)):
        yield queues


async def queue_ask(queue: asyncio.Queue[Item], message: int) -> int:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    queue.put_nowait((message, future))
    return await future


async def queue_ask_5(queue: asyncio.Queue[Item], message: int) -> int:
    async with asyncio.timeout(5):
        return await queue_ask(queue, message)


def queue_tell(queue: asyncio.Queue[Item], message: int) -> None:
    queue.put_nowait((message, None))


QUEUE = Kit("asyncio Queue + Future", "asyncio", queue_servers, queue_tell, queue_ask)
QUEUE_5 = Kit(
    "asyncio, Queue and Future, asyncio.timeout(5)", "asyncio", queue_servers, queue_tell,
    queue_ask_5,
)  # fmt: skip
QUEUE.add(call, call_10, cast, memory, memory_process, *PASSING)
QUEUE_5.add(call, call_10)


# -- a deque, and one Future on which its server waits ----------------------------------


class Inbox:
    __slots__ = ("items", "loop", "waiter")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        self.items.append(item)
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)


async def inbox_server(inbox: Inbox, take: Take) -> None:
    items = inbox.items
    while True:
        while not items:
            inbox.waiter = inbox.loop.create_future()
            await inbox.waiter
        message, future = items.popleft()
        if future is None:
            take(message)
        elif not future.done():
            future.set_result(message)


@asynccontextmanager
async def inbox_servers(make: Make, n: int) -> AsyncIterator[list[Any]]:
    inboxes = [Inbox() for _ in range(n)]
    async with tasks_of(inbox_server(inbox, make(i)) for i, inbox in enumerate(inboxes)):
        yield inboxes


async def inbox_ask(inbox: Inbox, message: int) -> int:
    future: asyncio.Future[int] = inbox.loop.create_future()
    inbox.put((message, future))
    return await future


def inbox_tell(inbox: Inbox, message: int) -> None:
    inbox.put((message, None))


INBOX = Kit("a deque and one waiter Future", "asyncio", inbox_servers, inbox_tell, inbox_ask)
INBOX.add(call, call_10, cast, memory, memory_process, *PASSING)


# -- channels: trio's, and anyio's -----------------------------------------------------


async def channel_server(receiving: trio.MemoryReceiveChannel[Any], take: Take) -> None:
    async for message, reply in receiving:
        if reply is None:
            take(message)
        else:
            reply.send_nowait(message)


@asynccontextmanager
async def channel_servers(make: Make, n: int) -> AsyncIterator[list[Any]]:
    async with trio.open_nursery() as nursery:
        sending = []
        for i in range(n):
            put, get = trio.open_memory_channel[Any](math.inf)
            nursery.start_soon(channel_server, get, make(i))
            sending.append(put)
        yield sending
        nursery.cancel_scope.cancel()


async def channel_ask(channel: trio.MemorySendChannel[Any], message: int) -> int:
    put, get = trio.open_memory_channel[int](1)
    channel.send_nowait((message, put))
    return await get.receive()


def channel_tell(channel: Any, message: int) -> None:
    channel.send_nowait((message, None))


async def stream_server(receiving: Any, take: Take) -> None:
    async for message, reply in receiving:
        if reply is None:
            take(message)
        else:
            reply.send_nowait(message)


@asynccontextmanager
async def stream_servers(make: Make, n: int) -> AsyncIterator[list[Any]]:
    streams = [anyio.create_memory_object_stream[Any](math.inf) for _ in range(n)]
    async with anyio.create_task_group() as tg:
        for i, (_, get) in enumerate(streams):
            tg.start_soon(stream_server, get, make(i))
        yield [put for put, _ in streams]
        tg.cancel_scope.cancel()
    for put, get in streams:
        put.close()
        get.close()


async def stream_ask(stream: Any, message: int) -> int:
    put, get = anyio.create_memory_object_stream[int](1)
    with put, get:
        stream.send_nowait((message, put))
        return await get.receive()


TRIO = Kit("trio memory channels", "trio", channel_servers, channel_tell, channel_ask)
ANYIO = Kit("anyio memory object streams", "any", stream_servers, channel_tell, stream_ask)
for kit in (TRIO, ANYIO):
    kit.add(call, call_10, cast, memory, memory_process, *PASSING)


# -- start, a message, the end -------------------------------------------------------


@spawn.by("asyncio task and Queue", on="asyncio")
async def spawn_tasks(n: int) -> float:
    await settle_here()
    start = perf_counter()
    queues = [asyncio.Queue[str]() for _ in range(n)]
    started = [asyncio.create_task(queue.get()) for queue in queues]
    for queue in queues:
        queue.put_nowait("end")
    await asyncio.gather(*started)
    return perf_counter() - start


@spawn.by("trio nursery and memory channel", on="trio")
async def spawn_channels(n: int) -> float:
    await settle_here()
    start = perf_counter()
    async with trio.open_nursery() as nursery:
        sending = []
        for _ in range(n):
            put, get = trio.open_memory_channel[str](math.inf)
            nursery.start_soon(get.receive)
            sending.append(put)
        for put in sending:
            put.send_nowait("end")
    return perf_counter() - start


async def receive_and_close(get: Any, close: Callable[[], None]) -> None:
    with get:
        await get.receive()
    close()


@spawn.by("anyio task group and stream")
async def spawn_streams(n: int) -> float:
    await settle_here()
    start = perf_counter()
    async with anyio.create_task_group() as tg:
        sending = []
        for _ in range(n):
            put, get = anyio.create_memory_object_stream[str](math.inf)
            tg.start_soon(receive_and_close, get, put.close)
            sending.append(put)
        for put in sending:
            put.send_nowait("end")
    return perf_counter() - start
