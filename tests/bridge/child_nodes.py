"""What child processes with a node do in the tests."""

from __future__ import annotations

import os

from backplane import Device, LinkMode
from backplane.bridge import call, parent_node


async def add_there(a: int, b: int) -> tuple[str, int]:
    async with parent_node() as (node, parent):
        line = await parent.find("adder")
        return node.name, await call(line, [a, b], as_type=int)


async def wait_for_the_end_of(name: str) -> str:
    async with parent_node() as (_, parent):
        line = await parent.find(name)
        device = Device()
        device.link(line, LinkMode.MONITOR)
        await call(line, "linked")
        return repr(await device.receive())


async def die_when_linked() -> None:
    async with parent_node() as (node, parent):
        device = Device("mortal")
        node.export("mortal", device)
        await call(await parent.find("desk"), "linked?", None)
        os._exit(3)


async def join_twice() -> str:
    async with parent_node():
        pass
    try:
        async with parent_node():
            return "joined twice"
    except RuntimeError as error:
        return str(error)


async def have_none() -> str:
    try:
        async with parent_node():
            return "joined"
    except RuntimeError as error:
        return str(error)
