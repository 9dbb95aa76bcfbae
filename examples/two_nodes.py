"""A node notices at once that another has died, and goes on with it when it is back.

In two terminals, with the same address; kill ``b`` as you like, and start it again:

    python two_nodes.py b unix:///tmp/b.sock
    python two_nodes.py a unix:///tmp/b.sock

With nothing but the name of a loop it starts ``b`` itself, kills it with ``kill -9``,
starts it again, and ends: ``python two_nodes.py [asyncio|trio]``

Prints:
    b has counted to 1
    b has counted to 2
    b has counted to 3
    b is gone: NoConnection(node='b')
    b has counted to 1
    b has counted to 2
    b has counted to 3
"""

import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from backplane import CascadeCrash, Device, Line, LinkMode
from backplane.bridge import Message, Node, Request, Retry, call


class Counter:
    """Takes what is asked of a Device: its port."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def call(self, request: Request) -> None:
        request.reply(next(self._numbers))

    def tell(self, message: Message) -> None:
        """Nobody tells it anything."""


async def run_b(address: str) -> None:
    device = Device("counter")
    async with Node("b") as node:
        node.export("counter", device, port=Counter())
        await node.listen(address)
        await anyio.sleep_forever()


async def run_a(address: str, tell: Callable[[str], Awaitable[None]]) -> None:
    async with Node("a") as node:
        while True:
            peer = await node.connect(address, expect="b", retry=Retry(maximum=0.5))
            counter = await peer.find("counter")
            device = Device("user of the counter")
            device.link(counter, LinkMode.MONITOR)

            async def work(counter: Line) -> None:
                while True:
                    await tell(f"b has counted to {await call(counter, None)}")

            try:
                await device.manage(work, counter)
            except CascadeCrash as crash:  # it was linked: so the work was stopped at once
                await tell(f"b is gone: {crash.fault}")


async def demonstrate(backend: str) -> None:
    # That b cannot be reached is a warning; here it is wanted.
    logging.getLogger("backplane.bridge").setLevel(logging.ERROR)
    with TemporaryDirectory() as directory:
        address = f"unix://{Path(directory, 'b.sock')}"
        command = [sys.executable, __file__, "b", address, backend]
        b = [subprocess.Popen(command)]  # noqa: ASYNC220 - it is killed by hand
        told = count(1)

        async def tell(text: str) -> None:
            print(text)
            match next(told):
                case 3:
                    b[0].kill()
                    b[0].wait()  # it is dead at once
                    await anyio.sleep_forever()  # until the link fires
                case 4:
                    b[0] = subprocess.Popen(command)  # noqa: ASYNC220
                case 7:
                    tasks.cancel_scope.cancel()
                case _:
                    pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_a, address, tell)
        b[0].kill()
        b[0].wait()


async def tell_slowly(text: str) -> None:
    print(text, flush=True)
    await anyio.sleep(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["b", address]:
            anyio.run(run_b, address)
        case ["b", address, loop]:
            anyio.run(run_b, address, backend=loop)
        case ["a", address]:
            anyio.run(run_a, address, tell_slowly)
        case other:
            loop = (other or ["asyncio"])[0]
            anyio.run(demonstrate, loop, backend=loop)
