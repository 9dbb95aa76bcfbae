"""A supervisor, written by hand on the core: restart what fails, stop in order, or give up.

``supervise`` monitors the Device of each child, so it hears of every end and its
cause. ``process_files.py`` uses it. (``backplane.supervisor`` does much more.)

Here each worker reads one thermometer. A value that is no number kills it, and
a new worker goes on behind that value. When all are read, the workers are
stopped, the last first. A worker whose thermometer does not exist fails each
time, until the supervisor gives up. ``python supervisor.py [asyncio|trio]``

Prints:
    attic [19.0, 21.0] after Failed(ValueError("could not convert string to float: 'n/a'"))
    cellar [7.0, 8.0] after Failed(ValueError("could not convert string to float: '?'"))
    stopped: cellar, then attic
    gave up: after 3 faults, the last of roof, Failed(KeyError('roof'))
"""

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

import anyio

from backplane import Device, Disconnected, Fault, Line, LinkMode, Shutdown

Child = Callable[[], Awaitable[None]]
Heard = Callable[[str, Fault], None]


class GaveUp(Exception):
    """The children failed more often than the budget allows. All have been stopped."""


async def supervise(me: Device, children: Mapping[str, Child], budget: int, heard: Heard) -> None:
    """Run the children until all have ended well, or somebody shuts ``me`` down."""
    running: dict[str, Line] = {}  # in the order of `children`, also after restarts
    faults, stopping, last = 0, False, ""

    async def live(device: Device, child: Child) -> None:
        with suppress(Exception):  # the link tells, and why
            await device.manage(child)

    def start(name: str) -> None:
        device = Device(name)
        me.link(device, LinkMode.MONITOR)
        running[name] = device.line()
        tasks.start_soon(live, device, children[name])

    with me:
        async with anyio.create_task_group() as tasks:
            for name in children:
                start(name)
            while running:
                match await me.receive():
                    case Shutdown():
                        stopping = True
                    case Disconnected(sender, fault):
                        name = next(name for name, line in running.items() if line.id == sender)
                        if fault is not None:
                            heard(name, fault)
                            faults, last = faults + (not stopping), f"{name}, {fault}"
                        if fault is None or stopping or faults > budget:
                            del running[name]
                        else:
                            start(name)
                if running and (stopping or faults > budget):
                    running[next(reversed(running))].shutdown(me.id)  # the last first
        if faults > budget:
            raise GaveUp(f"after {faults} faults, the last of {last}")


async def main() -> None:
    readings = {"attic": ["19", "n/a", "21"], "cellar": ["?", "7", "8"]}
    measured: dict[str, list[float]] = {"attic": [], "cellar": []}
    causes: dict[str, Fault] = {}
    stopped: list[str] = []
    boss = Device("boss")

    async def read(name: str) -> None:
        while readings[name]:
            measured[name].append(float(readings[name].pop(0)))
        if not any(readings.values()):
            boss.line().shutdown()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(name)

    await supervise(boss, {name: partial(read, name) for name in readings}, 2, causes.__setitem__)
    for name, fault in sorted(causes.items()):
        print(name, measured[name], "after", fault)
    print("stopped:", ", then ".join(stopped))
    try:
        await supervise(Device("boss"), {"roof": partial(read, "roof")}, 2, causes.__setitem__)
    except GaveUp as error:
        print("gave up:", error)


if __name__ == "__main__":
    anyio.run(main, backend=(sys.argv[1:] or ["asyncio"])[0])
