"""How soon those who are linked with a process hear that it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

import anyio
import trio
from _bridge_cases import LINKED, Far, end, fars, first_death, last_death
from _bridge_ours import LINES, device
from _bridge_raw import Client, connect_to, open_trio
from _harness import Case, On, settle

from backplane import Device, Line, LinkMode
from backplane.bridge import call

Hear = Callable[[], Awaitable[object]]


class Heard:
    """When each of them has heard."""

    def __init__(self) -> None:
        self._times: list[float] = []

    async def wait(self, hear: Hear) -> None:
        """Be one of them."""
        await hear()
        self._times.append(perf_counter())

    def after(self, start: float) -> dict[str, float]:
        if len(self._times) != LINKED:
            raise ValueError(f"{len(self._times)} of {LINKED} have heard")
        return {first_death.name: self._times[0] - start, last_death.name: self._times[-1] - start}


async def kill(far: Far, hears: list[Hear], on: On) -> dict[str, float]:
    """Kill it when all of them wait; how long the first and the last waited."""
    heard = Heard()
    async with anyio.create_task_group() as tasks:
        for hear in hears:
            tasks.start_soon(heard.wait, hear)
        await settle(on)
        await anyio.sleep(0.05)  # what is said of links is written
        start = perf_counter()
        os.kill(far.process.pid, signal.SIGKILL)
    return heard.after(start)


def by(name: str, on: On = "any") -> Callable[[Callable[[Far], Any]], None]:
    """Register what is killed, and who hears of it, with both cases."""

    def register(measure: Callable[[Far], Awaitable[dict[str, float]]]) -> None:
        def of(case: Case) -> Callable[[int], Awaitable[float]]:
            async def measure_once(_: int) -> float:
                far = fars.start(TARGETS[name])
                try:
                    return (await measure(far))[case.name]
                finally:
                    end(far.process)

            return measure_once

        for case in (first_death, last_death):
            case.by(name, on)(of(case))

    return register


TARGETS = {
    "backplane, 1 000 pairs": "_bridge_ours:serve",
    "backplane, all with one": "_bridge_ours:serve",
    "asyncio Protocol, 1 000 Futures": "_bridge_raw:serve_asyncio",
    "trio stream, 1 000 Events": "_bridge_raw:serve_trio",
}


def here() -> On:
    return "trio" if fars.loop == "trio" else "asyncio"


async def killed_with(far: Far, lines: list[Line]) -> dict[str, float]:
    devices = [Device() for _ in lines]
    for each, line in zip(devices, lines, strict=True):
        each.link(line, LinkMode.MONITOR)
    return await kill(far, [each.receive for each in devices], here())


@by("backplane, 1 000 pairs")
async def pairs(far: Far) -> dict[str, float]:
    async with device(far.addresses["tcp"]) as line:
        return await killed_with(far, await call(line, LINES, as_type=list[Line]))


@by("backplane, all with one")
async def one(far: Far) -> dict[str, float]:
    async with device(far.addresses["tcp"]) as line:
        return await killed_with(far, [line] * LINKED)


@by("asyncio Protocol, 1 000 Futures", "asyncio")
async def futures(far: Far) -> dict[str, float]:
    client: Client = await connect_to("tcp", far.addresses["tcp"])
    waiting = [asyncio.get_running_loop().create_future() for _ in range(LINKED)]

    def tell(_: object) -> None:
        for each in waiting:
            each.set_result(None)

    client.lost.add_done_callback(tell)
    return await kill(far, [partial(asyncio.wait_for, it, None) for it in waiting], "asyncio")


@by("trio stream, 1 000 Events", "trio")
async def events(far: Far) -> dict[str, float]:
    async with await open_trio("tcp", far.addresses["tcp"]) as stream, trio.open_nursery() as tasks:
        waiting = [trio.Event() for _ in range(LINKED)]

        async def read() -> None:
            try:
                await stream.receive_some()
            except trio.BrokenResourceError:
                pass
            for each in waiting:
                each.set()

        tasks.start_soon(read)
        return await kill(far, [each.wait for each in waiting], "trio")
