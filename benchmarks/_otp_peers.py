"""The peers with generic servers, and with processes. As ``_supervisor_peers``, which says more."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from importlib import import_module
from time import perf_counter
from typing import Any

import anyio
import trio
from _core_many import forever
from _harness import settle
from _otp_cases import (
    PASSING,
    Kit,
    Make,
    Take,
    cast,
    memory,
    memory_process,
    self_messages,
    settle_here,
    spawn,
)
from _otp_libraries import AIOERL, COMMON, if_here
from _supervisor_libraries import FAUXTP, OTPYLIB, TRIOTP

# -- triotp: its mailboxes hold nothing, so that a server that sends to itself waits for ever --


class TriotpServer:
    """In place of the module that triotp wants."""

    def __init__(self, take: Take) -> None:
        self.take = take
        self.library = import_module("triotp.gen_server")

    async def init(self, _: object) -> None:
        pass

    async def handle_call(self, message: int, _: object, state: object) -> object:
        return self.library.Reply(message), state

    async def handle_cast(self, message: int, state: object) -> object:
        if message == -1:
            return self.library.Stop(), state
        if (sending := self.take(message)) is not None:
            await sending
        return self.library.NoReply(), state


@asynccontextmanager
async def triotp(make: Make, n: int) -> AsyncIterator[list[Any]]:
    gen_server = import_module("triotp.gen_server")
    import_module("triotp.mailbox")._init()  # what its node.run does
    async with trio.open_nursery() as nursery:
        for i in range(n):
            nursery.start_soon(gen_server.start, TriotpServer(make(i)), None, str(i))
        await settle("trio")
        yield [str(i) for i in range(n)]
        nursery.cancel_scope.cancel()


async def triotp_spawn(n: int) -> float:
    gen_server = import_module("triotp.gen_server")
    import_module("triotp.mailbox")._init()
    start = perf_counter()
    async with trio.open_nursery() as nursery:
        for i in range(n):
            nursery.start_soon(gen_server.start, TriotpServer(drop), None, str(i))
        await settle("trio")  # until they have their names
        for i in range(n):
            await gen_server.cast(str(i), -1)
    return perf_counter() - start


def drop(_: int) -> None:
    pass


@if_here(TRIOTP, "triotp.gen_server")
def _(library: Any) -> None:
    kit = Kit(TRIOTP.name, TRIOTP.on, triotp, library.cast, library.call, waits=True)
    kit.add(*COMMON, memory)
    TRIOTP.add(spawn, triotp_spawn)


# -- otpylib: its clients are processes: from outside, it makes one for each call -----------


async def otpylib_init(self: object, _: object) -> None:
    pass


async def otpylib_terminate(self: object, *_: object) -> None:
    pass


async def otpylib_call(self: object, message: int, _: object, state: object) -> object:
    return import_module("otpylib.gen_server").Reply(message), state


async def otpylib_info(self: object, message: object, state: object) -> object:
    return import_module("otpylib.gen_server").NoReply(), state


def otpylib_module(take: Take) -> Any:
    library = import_module("otpylib.gen_server")
    module = import_module("otpylib.module")

    async def handle_cast(self: object, message: int, state: object) -> object:
        if (sending := take(message)) is not None:
            await sending
        return library.NoReply(), state

    methods = {"init": otpylib_init, "terminate": otpylib_terminate, "handle_call": otpylib_call}
    methods |= {"handle_cast": handle_cast, "handle_info": otpylib_info}
    return module.OTPModule("Server", (), methods, behavior=module.GEN_SERVER, version="1.0.0")


@asynccontextmanager
async def otpylib_node() -> AsyncIterator[Any]:
    """Its runtime, with the task of the block as one of its processes."""
    runtime = import_module("otpylib.runtime")
    backends = import_module("otpylib.runtime.backends.asyncio_backend.backend")
    backend = backends.AsyncIOBackend()
    runtime.set_runtime(backend)
    await backend.initialize()
    with redirect_stdout(io.StringIO()):  # it prints each end
        try:
            token = backends._current_process.set(await backend.spawn(forever))
            yield backend
            backends._current_process.reset(token)
        finally:
            await backend.shutdown()
            await settle("asyncio")
            runtime.reset_runtime()


@asynccontextmanager
async def otpylib(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("otpylib.gen_server")
    async with otpylib_node():
        for i in range(n):
            await library.start(otpylib_module(make(i)), name=str(i))
        yield [str(i) for i in range(n)]


async def otpylib_crowd(clients: list[Callable[[], Awaitable[None]]]) -> None:
    left = len(clients)
    over = asyncio.Event()

    async def run(client: Callable[[], Awaitable[None]]) -> None:
        nonlocal left
        await client()
        left -= 1
        if not left:
            over.set()

    process = import_module("otpylib.process")
    for client in clients:
        await process.spawn(run, [client])
    await over.wait()


async def otpylib_spawn(n: int) -> float:
    process = import_module("otpylib.process")

    async def one_message() -> None:
        await process.receive()

    async with otpylib_node() as backend:
        before = len(process.processes())
        start = perf_counter()
        pids = [await process.spawn(one_message) for _ in range(n)]
        for pid in pids:
            await process.send(pid, "end")
        while len(backend._processes) > before:
            await settle("asyncio")
        return perf_counter() - start


async def otpylib_process(take: Take) -> None:
    process = import_module("otpylib.process")
    while True:
        if (sending := take(await process.receive())) is not None:
            await sending


@asynccontextmanager
async def otpylib_processes(make: Make, n: int) -> AsyncIterator[list[Any]]:
    process = import_module("otpylib.process")
    async with otpylib_node():
        yield [await process.spawn(otpylib_process, [make(i)]) for i in range(n)]


@if_here(OTPYLIB, "otpylib.gen_server")
def _(library: Any) -> None:
    kit = Kit(OTPYLIB.name, OTPYLIB.on, otpylib, library.cast, library.call, True, otpylib_crowd)
    kit.add(*COMMON, self_messages, memory)
    send = import_module("otpylib.process").send
    kit = Kit(f"{OTPYLIB.name}, processes", OTPYLIB.on, otpylib_processes, send, waits=True)
    kit.add(cast, *PASSING, memory_process)
    OTPYLIB.add(spawn, otpylib_spawn, ", processes")


# -- fauxtp: actors on anyio -----------------------------------------------------------


def fauxtp_server() -> Any:
    library = import_module("fauxtp")

    def init(self: Any, take: Take) -> None:
        library.GenServer.__init__(self)
        self.take = take

    async def handle_call(self: object, message: int, _: object, state: object) -> object:
        return message, state

    async def handle_cast(self: Any, message: int, state: object) -> object:
        if message == -1:
            self.stop()
        if (sending := self.take(message)) is not None:
            await sending
        return state

    methods = {"__init__": init, "handle_call": handle_call, "handle_cast": handle_cast}
    return type("Server", (library.GenServer,), methods)


@asynccontextmanager
async def fauxtp(make: Make, n: int) -> AsyncIterator[list[Any]]:
    server = fauxtp_server()
    async with anyio.create_task_group() as tg:
        yield [await server.start(make(i), task_group=tg) for i in range(n)]
        tg.cancel_scope.cancel()


async def fauxtp_spawn(n: int) -> float:
    server, messaging = fauxtp_server(), import_module("fauxtp.messaging")
    await settle_here()
    start = perf_counter()
    async with anyio.create_task_group() as tg:
        refs = [await server.start(drop, task_group=tg) for _ in range(n)]
        for ref in refs:
            await messaging.cast(ref, -1)
    return perf_counter() - start


@if_here(FAUXTP, "fauxtp.messaging")
def _(library: Any) -> None:
    kit = Kit(FAUXTP.name, FAUXTP.on, fauxtp, library.cast, library.call, waits=True)
    kit.add(*COMMON, self_messages, memory)
    FAUXTP.add(spawn, fauxtp_spawn)


# -- aioerl: processes with receive ----------------------------------------------------


async def aioerl_process(take: Take) -> None:
    library = import_module("aioerl")
    while True:
        message = await library.receive()
        if message.body >= 0:
            if (sending := take(message.body)) is not None:
                await sending
        else:
            await library.reply(message.body)


@asynccontextmanager
async def aioerl(make: Make, n: int) -> AsyncIterator[list[Any]]:
    library = import_module("aioerl")
    servers = [await library.spawn(aioerl_process(make(i))) for i in range(n)]
    yield servers
    ending = [server.task for server in servers]
    for server in servers:
        server.kill()
    with redirect_stdout(io.StringIO()):
        await asyncio.gather(*ending, return_exceptions=True)
    library.clear_mailbox()


async def aioerl_ask(server: Any, message: int) -> int:
    library = import_module("aioerl")
    await library.send(server, -1 - message)
    answer = await library.receive(timeout=5)
    return -1 - int(answer.body)


async def aioerl_crowd(clients: list[Callable[[], Awaitable[None]]]) -> None:
    library = import_module("aioerl")
    processes = [await library.spawn(client()) for client in clients]
    await asyncio.gather(*[process.task for process in processes])
    library.clear_mailbox()


async def aioerl_spawn(n: int) -> float:
    library = import_module("aioerl")

    async def one_message() -> None:
        await library.receive()

    start = perf_counter()
    processes = [await library.spawn(one_message()) for _ in range(n)]
    started = [process.task for process in processes]
    for process in processes:
        await library.send(process, "end")
    await asyncio.gather(*started)
    took = perf_counter() - start
    library.clear_mailbox()
    return took


@if_here(AIOERL)
def _(library: Any) -> None:
    kit = Kit(AIOERL.name, AIOERL.on, aioerl, library.send, aioerl_ask, True, aioerl_crowd)
    kit.add(*COMMON, self_messages, memory_process)
    AIOERL.add(spawn, aioerl_spawn)
