"""A trio program in a thread, watched and stopped from asyncio.

A Device may live in another loop, library and thread than those linked with
it. Here asyncio monitors two Devices whose work runs under trio, each in a
thread of its own: the first fails there, the second is asked from here to stop.

Prints:
    asyncio heard from thermometer: Failed(ValueError("could not convert string to float: 'n/a'"))
    trio, in the thread of clock: cleaned up
    asyncio heard from clock: None
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import sniffio
import trio

from backplane import Device, Disconnected, LinkMode


async def measure() -> None:
    for reading in ["19.5", "n/a"]:
        float(reading)
        await trio.sleep(0.01)


def in_trio(device: Device, work: Callable[[], Awaitable[None]]) -> None:
    with suppress(Exception):  # whoever monitors the Device is told
        trio.run(device.manage, work)


async def main() -> None:
    loop, started = asyncio.get_running_loop(), asyncio.Event()

    async def tick() -> None:
        loop.call_soon_threadsafe(started.set)
        try:
            await trio.sleep_forever()
        finally:
            where = threading.current_thread().name
            print(f"{sniffio.current_async_library()}, in the thread of {where}: cleaned up")

    here, thermometer, clock = Device("asyncio"), Device("thermometer"), Device("clock")
    for there, work in (thermometer, measure), (clock, tick):
        here.link(there, LinkMode.MONITOR)
        thread = threading.Thread(target=in_trio, args=(there, work), name=there.name)
        thread.start()
        if there is clock:
            await started.wait()
            clock.line().shutdown(here.id)
        message = await here.receive()
        assert isinstance(message, Disconnected)
        print(f"{sniffio.current_async_library()} heard from {there.name}: {message.fault}")
        thread.join()


if __name__ == "__main__":
    asyncio.run(main())
