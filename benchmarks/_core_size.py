"""What a Device and a link weigh, and how long the import takes."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import anyio
import trio
from _core_many import forever, here
from _erlang import vm
from _harness import ROOT, Case, settle, tasks

from backplane import Device, LinkMode

SIZE = 100_000

idle = Case("memory.device", "bytes of an idle Device", "B", SIZE, 1000, rounds=3)
first_link = Case(
    "memory.first_link", "bytes of a Device's first link, MONITOR, to one hub", "B", SIZE, 1000, 3
)
more_link = Case(
    "memory.more_link",
    "bytes of a MONITOR link among Devices that all hear each other",
    "B",
    SIZE,
    1000,
    3,
)
imports = Case("import", "import it in a fresh interpreter, after that has started", rounds=9)
imports.size = imports.quick_size = 1
CASES = [idle, first_link, more_link, imports]


class Traced:
    """The bytes allocated in a block, seen after it."""

    grown = 0


@contextmanager
def traced() -> Iterator[Traced]:
    result = Traced()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield result
        result.grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def weigh(make: Callable[[], object], n: int) -> float:
    """The bytes of n things, without the list that holds them."""
    held: list[object] = [None] * n
    with traced() as result:
        for i in range(n):
            held[i] = make()
    return result.grown


# -- a Device ----------------------------------------------------------------------


@idle.by("backplane")
def weigh_device(n: int) -> float:
    return weigh(Device, n)


@idle.by("object with a __dict__ of two attributes")
def weigh_object(n: int) -> float:
    class Thing:
        def __init__(self) -> None:
            self.name = None
            self.inbox = None

    return weigh(Thing, n)


@idle.by("asyncio.Future", on="asyncio")
def weigh_future(n: int) -> float:
    return weigh(asyncio.get_running_loop().create_future, n)


@idle.by("asyncio.Event", on="asyncio")
def weigh_event(n: int) -> float:
    return weigh(asyncio.Event, n)


@idle.by("asyncio.Queue", on="asyncio")
def weigh_queue(n: int) -> float:
    return weigh(lambda: asyncio.Queue[None](), n)


@idle.by("anyio.Event")
def weigh_anyio_event(n: int) -> float:
    return weigh(anyio.Event, n)


@idle.by("anyio memory object stream")
def weigh_anyio_stream(n: int) -> float:
    streams = [anyio.create_memory_object_stream[None](1)] * n
    streams[0][0].close()
    streams[0][1].close()
    with traced() as result:
        for i in range(n):
            streams[i] = anyio.create_memory_object_stream[None](1)
    for sending, receiving in streams:
        sending.close()
        receiving.close()
    return result.grown


@idle.by("trio.Event", on="trio")
def weigh_trio_event(n: int) -> float:
    return weigh(trio.Event, n)


@idle.by("trio memory channel", on="trio")
def weigh_trio_channel(n: int) -> float:
    return weigh(lambda: trio.open_memory_channel[None](1), n)


@idle.by("idle task of the loop")
async def weigh_task(n: int) -> float:
    async def node(_: None) -> None:
        await forever()

    with anyio.CancelScope() as scope:
        if here() == "trio":
            async with tasks("trio") as spawn:
                with traced() as result:
                    for _ in range(n):
                        spawn(node, None)
                    await settle("trio")
                scope.cancel()
        else:
            held: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future()] * n
            with traced() as result:
                for i in range(n):
                    held[i] = asyncio.create_task(node(None))
                await settle("asyncio")
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
    return result.grown


idle.by("Erlang process", on="erlang")(vm.ask("memory", scale=1))


# -- a link ------------------------------------------------------------------------


@first_link.by("backplane")
def weigh_first_link(n: int) -> float:
    hub = Device()
    devices = [Device() for _ in range(n)]
    with traced() as result:
        for device in devices:
            device.link(hub, LinkMode.MONITOR)
    return result.grown


@first_link.by("backplane, PEER")
def weigh_first_peer_link(n: int) -> float:
    hub = Device()
    devices = [Device() for _ in range(n)]
    with traced() as result:
        for device in devices:
            device.link(hub, LinkMode.PEER)
    return result.grown


@first_link.by("asyncio Future, a done callback for each", on="asyncio")
def weigh_done_callback(n: int) -> float:
    hub = asyncio.get_running_loop().create_future()
    inboxes: list[list[object]] = [[] for _ in range(n)]
    with traced() as result:
        for inbox in inboxes:
            hub.add_done_callback(inbox.append)
    return result.grown


@more_link.by("backplane")
def weigh_more_links(n: int) -> float:
    return mesh(n, LinkMode.MONITOR)


@more_link.by("backplane, PEER")
def weigh_more_peer_links(n: int) -> float:
    return mesh(n, LinkMode.PEER)


def mesh(n: int, mode: LinkMode) -> float:
    """The bytes of n links between as few Devices as can have so many."""
    devices = [Device() for _ in range(int((2 * n) ** 0.5) + 2)]
    made = 0
    with traced() as result:
        for i, device in enumerate(devices):
            for j in range(i):
                if made < n:
                    device.link(devices[j], mode)
                    made += 1
    assert made == n
    return result.grown


# -- the import --------------------------------------------------------------------


COMPILED = TemporaryDirectory(prefix="backplane-bench-")
atexit.register(COMPILED.cleanup)


def import_time(module: str, first: str = "time") -> Callable[[int], float]:
    """Import ``module`` in a fresh interpreter, which has imported ``first``."""
    code = (
        f"import time, {first}\n"
        "start = time.perf_counter()\n"
        f"import {module}\n"
        "print(time.perf_counter() - start)"
    )
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Compiled files for all, written by the warm-up, and nothing left in the checkout.
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": COMPILED.name}

    def measure(n: int) -> float:
        command = [sys.executable, "-c", code]
        return sum(
            float(subprocess.check_output(command, env=environment, cwd=ROOT)) for _ in range(n)
        )

    return measure


imports.by("backplane")(import_time("backplane"))
imports.by("backplane, asyncio being there")(import_time("backplane", "asyncio"))
imports.by("asyncio")(import_time("asyncio"))
imports.by("anyio")(import_time("anyio"))
imports.by("anyio, asyncio being there")(import_time("anyio", "asyncio"))
imports.by("trio")(import_time("trio"))
