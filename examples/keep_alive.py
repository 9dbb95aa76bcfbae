"""A keep-alive loop: run a task until it succeeds, and learn each time why it did not.

The keeper monitors the Device of each attempt. Whatever ends an attempt, the
keeper hears of it once, with the cause; it need not guess from a log or a timeout.

Here the task reads a settings file that is missing at first, and then only
half written. Run it on either loop: ``python keep_alive.py [asyncio|trio]``

Prints:
    Failed(FileNotFoundError(2, 'No such file or directory'))
    Failed(KeyError('port'))
    8080
"""

import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from backplane import Device, Disconnected, Fault, LinkMode


async def keep_alive(task: Callable[[], Awaitable[None]], heard: Callable[[Fault], None]) -> None:
    """Run ``task`` again and again until it ends well; tell ``heard`` of each fault."""

    async def attempt(worker: Device) -> None:
        with suppress(Exception):  # the keeper is told, by the link
            await worker.manage(task)

    async with anyio.create_task_group() as tasks:
        with Device("keeper") as keeper:
            while True:
                worker = Device("worker")
                keeper.link(worker, LinkMode.MONITOR)
                tasks.start_soon(attempt, worker)
                message = await keeper.receive()
                if not isinstance(message, Disconnected) or message.fault is None:
                    return
                heard(message.fault)


async def main(settings: Path) -> None:
    async def read_settings() -> None:
        print(json.loads(await anyio.Path(settings).read_text())["port"])

    def mend(fault: Fault) -> None:
        print(fault)
        settings.write_text('{"port": 8080}' if settings.exists() else "{}")

    await keep_alive(read_settings, mend)


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        anyio.run(main, Path(directory, "settings"), backend=(sys.argv[1:] or ["asyncio"])[0])
