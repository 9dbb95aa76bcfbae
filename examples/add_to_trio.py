"""Three lines tie the parts of an existing trio program together.

One part unpacks readings, another averages them; a guard keeps the failure of
one part from stopping the service. As it was, a reading that was cut short
ended the first part, the channel closed, and the second took that for the end
of the data: it returned the average of half of it. Now it is stopped, and both
say why.

Prints:
    unpack failed: error('unpack requires a buffer of 4 bytes')
    average failed: CascadeCrash(<DeviceID 1>, Failed(error('unpack requires a buffer of 4 bytes')))
"""

import struct
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from backplane import Device

READINGS = [struct.pack("f", 19.5), struct.pack("f", 20.5), b"\x00\x00", struct.pack("f", 80)]


async def unpack(send: trio.MemorySendChannel[float]) -> int:
    with send:
        for reading in READINGS:
            await send.send(*struct.unpack("f", reading))
    return len(READINGS)


async def average(receive: trio.MemoryReceiveChannel[float]) -> float:
    with receive:
        values = [value async for value in receive]
    return sum(values) / len(values)


async def guard(name: str, part: Callable[[], Awaitable[float]]) -> None:
    try:
        print(name, "returned", await part())
    except Exception as error:  # noqa: BLE001 - no part may stop the service
        print(f"{name} failed: {error!r}")


async def main() -> None:
    send, receive = trio.open_memory_channel[float](1)
    reader, averager = Device("reader"), Device("averager")  # new
    reader.link(averager)  # new
    # was: parts = partial(unpack, send), partial(average, receive)  # noqa: ERA001
    parts = partial(reader.manage, unpack, send), partial(averager.manage, average, receive)  # new
    async with trio.open_nursery() as service:
        service.start_soon(guard, "unpack", parts[0])
        service.start_soon(guard, "average", parts[1])


if __name__ == "__main__":
    trio.run(main)
