"""The peers: other libraries with supervisors, each as its own documentation has it.

Each is measured if it is installed, in the cases for which it promises
something. What a row does not do is said in its name. They are imported when
they are used, and as ``Any``: this has to run, and to pass mypy, without them.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from importlib import import_module
from typing import Any

import anyio
import trio
from _core_many import forever
from _harness import settle
from _supervisor_libraries import AIOTOOLS, FAUXTP, MODE, OTPYLIB, TRIOTP
from _supervisor_many import memory, weigh
from _supervisor_parts import GROUP, MANY, CrashError, Crashes, Crew, Group
from _supervisor_restart import BEFORE, big_window, group, restart

# -- aiotools: its Supervisor is a task group whose tasks may fail; it restarts nothing --


async def aiotools_crew(crew: Crew, n: int) -> None:
    supervisor: Any
    async with import_module("aiotools").Supervisor() as supervisor:
        for _ in range(n):
            supervisor.create_task(crew.child())
        await crew.wait()
        supervisor.abort()
    crew.gone()


async def aiotools_memory(n: int) -> float:
    async def enter(stack: AsyncExitStack) -> None:
        supervisor = import_module("aiotools").Supervisor()
        await stack.enter_async_context(supervisor)
        stack.callback(supervisor.abort)
        for _ in range(n):
            supervisor.create_task(forever())

    return await weigh(enter, n)


AIOTOOLS.add_crew(aiotools_crew)
AIOTOOLS.add(memory, aiotools_memory)


# -- triotp: async functions, on trio; a nursery and a tenacity retry for each ----------


@asynccontextmanager
async def triotp(children: list[Callable[[], Awaitable[object]]]) -> AsyncIterator[None]:
    supervisor = import_module("triotp.supervisor")
    specs = [supervisor.child_spec(str(i), fn, []) for i, fn in enumerate(children)]
    options = supervisor.options(max_restarts=MANY, max_seconds=3600)
    with import_module("logbook").NullHandler().applicationbound():
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.start, specs, options)
            yield
            nursery.cancel_scope.cancel()


async def triotp_restart(n: int, before: int = 0) -> float:
    crashes = Crashes(n, before)
    async with triotp([crashes.child]):
        await crashes.stays.wait()
    return crashes.took


async def triotp_crew(crew: Crew, n: int) -> None:
    async with triotp([crew.child] * n):
        await crew.wait()
    crew.gone()


async def triotp_memory(n: int) -> float:
    return await weigh(lambda stack: stack.enter_async_context(triotp([forever] * n)), n)


TRIOTP.add(restart, triotp_restart)
TRIOTP.add(big_window, lambda n: triotp_restart(n, BEFORE * n))
TRIOTP.add_crew(triotp_crew)
TRIOTP.add(memory, triotp_memory)


# -- otpylib: gen_servers. One that fails in its init is not restarted, so it fails after ---


@asynccontextmanager
async def otpylib(
    init: Callable[[int], Awaitable[None]], size: int, strategy: str
) -> AsyncIterator[None]:
    """Supervise ``size`` gen_servers, which fail when they get any message."""
    module, supervisor = import_module("otpylib.module"), import_module("otpylib.supervisor")
    runtime = import_module("otpylib.runtime")
    backend = import_module("otpylib.runtime.backends.asyncio_backend.backend").AsyncIOBackend()

    async def start(self: object, i: int) -> None:
        await init(i)

    async def crash(self: object, message: object, state: object) -> None:
        raise CrashError

    async def unused(self: object, *args: object) -> None:
        pass

    async def children(self: object, _: object) -> object:
        specs = [supervisor.child_spec(str(i), server, i) for i in range(size)]
        return specs, supervisor.options(MANY, 3600, getattr(supervisor, strategy))

    def otp_module(name: str, behavior: object, **methods: object) -> Any:
        kwargs = {"behavior": behavior, "version": "1.0.0"}
        return module.OTPModule(name, (), {**methods, "terminate": unused}, **kwargs)

    callbacks = {"handle_call": unused, "handle_cast": unused, "handle_info": crash}
    server = otp_module("Server", module.GEN_SERVER, init=start, **callbacks)
    top = otp_module("Top", module.SUPERVISOR, init=children)

    async def root() -> None:
        await supervisor.start_link(top)
        await forever()

    runtime.set_runtime(backend)
    await backend.initialize()
    with redirect_stdout(io.StringIO()):  # it prints each crash
        try:
            await backend.spawn(root)
            yield
        finally:
            await backend.shutdown()
            await settle("asyncio")
            runtime.reset_runtime()


def otpylib_crash(pid: object) -> None:
    """Crash a server a little later: one that does so before it is monitored is never restarted."""

    async def send() -> None:
        await settle("asyncio")
        await import_module("otpylib.process").send(pid, "crash")

    asyncio.get_running_loop().create_task(send())


def otpylib_self() -> object:
    pid: object = import_module("otpylib.process").self()
    return pid


async def otpylib_restart(n: int, before: int = 0) -> float:
    crashes = Crashes(n, before)

    async def init(_: int) -> None:
        try:
            crashes.step()
        except CrashError:
            otpylib_crash(otpylib_self())

    async with otpylib(init, 1, "ONE_FOR_ONE"):
        await crashes.stays.wait()
    return crashes.took


async def otpylib_group(n: int) -> float:
    ten = Group(n)
    victim: object = None

    async def init(i: int) -> None:
        nonlocal victim
        if i == ten.victim:
            victim = otpylib_self()
        if ten.arrive():
            otpylib_crash(victim)

    async with otpylib(init, GROUP, "ONE_FOR_ALL"):
        await ten.stays.wait()
    return ten.took


async def otpylib_crew(crew: Crew, n: int) -> None:
    async def init(_: int) -> None:
        crew.arrive()

    async with otpylib(init, n, "ONE_FOR_ONE"):
        await crew.wait()
    crew.gone()


async def otpylib_memory(n: int) -> float:
    crew = Crew(n)

    async def init(_: int) -> None:
        crew.arrive()

    async def enter(stack: AsyncExitStack) -> None:
        await stack.enter_async_context(otpylib(init, n, "ONE_FOR_ONE"))
        await crew.wait()

    return await weigh(enter, n)


OTPYLIB.add(restart, otpylib_restart)
OTPYLIB.add(big_window, lambda n: otpylib_restart(n, BEFORE * n))
OTPYLIB.add(group, otpylib_group)
OTPYLIB.add_crew(otpylib_crew)
OTPYLIB.add(memory, otpylib_memory)


# -- mode: Services. It looks at those that crash when it is woken, or every 5 s -----------


ONE = "OneForOneSupervisor"


@asynccontextmanager
async def mode(
    child: Callable[[int], Awaitable[object]], size: int, strategy: str, late: bool = False
) -> AsyncIterator[None]:
    library = import_module("mode")

    async def main(self: Any) -> None:
        if late and not self.restart_count:  # a crash while the supervisor starts does not wake it
            await settle("asyncio")
        await child(self.i)

    methods = {"main": library.Service.task(main), "__module__": __name__}
    service = type("Child", (library.Service,), methods)
    supervisor = getattr(library, strategy)(max_restarts=MANY, over=1.0)
    for i in range(size):
        made = service()
        made.i = i
        supervisor.add(made)
    async with supervisor:
        yield


async def mode_restart(n: int) -> float:
    crashes = Crashes(n)
    async with mode(lambda _: crashes.child(), 1, ONE, late=True):
        await crashes.stays.wait()
    return crashes.took


async def mode_group(n: int) -> float:
    ten = Group(n)
    async with mode(ten.child, GROUP, "OneForAllSupervisor", late=True):
        await ten.stays.wait()
    return ten.took


async def mode_crew(crew: Crew, n: int) -> None:
    async with mode(lambda _: crew.child(), n, ONE):
        await crew.wait()
    crew.gone()


async def mode_memory(n: int) -> float:
    def enter(stack: AsyncExitStack) -> Awaitable[object]:
        return stack.enter_async_context(mode(lambda _: forever(), n, ONE))

    return await weigh(enter, n)


MODE.add(restart, mode_restart)
MODE.add(group, mode_group)
MODE.add_crew(mode_crew)
MODE.add(memory, mode_memory)


# -- fauxtp: actors on anyio. It has no window of restarts, and no crew of ten thousand: its --
# -- supervisor's registry is copied, deeply, for each name that is added ------------------


@asynccontextmanager
async def fauxtp(
    child: Callable[[int], Awaitable[object]], size: int, strategy: str = "ONE_FOR_ONE"
) -> AsyncIterator[None]:
    library = import_module("fauxtp")
    supervisors = import_module("fauxtp.supervisor")

    def init(self: Any, i: int) -> None:
        library.Actor.__init__(self)
        self.i = i

    async def run(self: Any, state: object) -> None:
        await child(self.i)

    actor = type("Child", (library.Actor,), {"__init__": init, "run": run})
    specs = [supervisors.ChildSpec(actor, str(i), (i,)) for i in range(size)]
    chosen = supervisors.RestartStrategy[strategy]
    async with anyio.create_task_group() as tg:
        await supervisors.Supervisor.start(specs, chosen, task_group=tg)
        yield
        tg.cancel_scope.cancel()


async def fauxtp_restart(n: int) -> float:
    crashes = Crashes(n)
    async with fauxtp(lambda _: crashes.child(), 1):
        await crashes.stays.wait()
    return crashes.took


async def fauxtp_group(n: int) -> float:
    ten = Group(n)
    async with fauxtp(ten.child, GROUP, "ONE_FOR_ALL"):
        await ten.stays.wait()
    return ten.took


FAUXTP.add(restart, fauxtp_restart)
FAUXTP.add(group, fauxtp_group)
