"""A child process is connected with its parent's node over a socket of their own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Device, Killed, LinkMode, NoConnection
from backplane.bridge import (
    ExportError,
    Message,
    Node,
    NodeUp,
    ProcessExitedError,
    Request,
    in_process,
)
from backplane.supervisor import ChildSpec, Restart, Supervisor

if TYPE_CHECKING:
    import child_nodes as fns
    from nodes import Desk, news, until
else:
    from . import child_nodes as fns
    from .nodes import Desk, news, until

pytestmark = pytest.mark.anyio
SECRET = b"what all other nodes have to know"


class Adder:
    """Adds, and notes that it was asked."""

    def __init__(self) -> None:
        self.asked = anyio.Event()

    def call(self, request: Request) -> None:
        numbers: Any = request.open()
        self.asked.set()
        request.reply(sum(numbers) if isinstance(numbers, list) else None)

    def tell(self, message: Message) -> None:
        """Nobody tells it anything."""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_the_child_finds_what_its_parent_exports(backend: Any) -> None:
    adder, device = Adder(), Device("adder")
    async with Node("parent", secret=SECRET) as node:
        node.export("adder", device, port=adder, allow=["parent.*"])
        name, total = await in_process(fns.add_there, 2, backend=backend, node=node)(3)

    assert total == 5
    assert name.startswith("parent.add_there-")


@pytest.mark.parametrize(
    ("allow", "found"), [("boss.top_w0-*", True), ("boss.top_*", True), ("boss.w0-*", False)]
)
async def test_a_child_of_a_supervisor_is_called_by_its_path(allow: str, found: bool) -> None:
    adder, device = Adder(), Device("adder")
    ends: list[Any] = []

    async def work() -> None:
        try:
            name, _ = await in_process(fns.add_there, 2, node=node)(3)
            ends.append(re.fullmatch(r"boss\.top_w0-[0-9a-f]{8}", name) is not None)
        except ExportError:
            ends.append(False)

    spec = ChildSpec("w0", work, restart=Restart.TRANSIENT)
    async with Node("boss") as node:
        node.export("adder", device, port=adder, allow=[allow])
        async with Supervisor([spec], name="top"):
            with anyio.fail_after(20):
                while not ends:
                    await anyio.sleep(0.002)

    assert ends == [found]


async def test_the_child_hears_of_the_end_of_its_parents_device() -> None:
    adder, device = Adder(), Device("adder")
    async with Node("parent") as node, anyio.create_task_group() as tasks:
        node.export("it", device, port=adder)
        heard: list[str] = []

        async def run() -> None:
            heard.append(await in_process(fns.wait_for_the_end_of, "it", node=node)())

        tasks.start_soon(run)
        await adder.asked.wait()
        device.disconnect(Killed())

    assert heard[0].endswith("fault=Killed())")


async def test_the_parent_hears_of_the_end_of_the_childs_device_when_that_exits() -> None:
    desk, device = Desk(), Device("desk")
    boss = Device("boss")
    async with Node("parent") as node, anyio.create_task_group() as tasks:
        node.export("desk", device, port=desk)

        async def run() -> None:
            with pytest.raises(ProcessExitedError):
                await in_process(fns.die_when_linked, node=node)()

        async with node.events() as events:
            tasks.start_soon(run)
            event = await anext(aiter(events))
        assert isinstance(event, NodeUp)
        await until(lambda: desk.asked)
        boss.link(await node.peer(event.name).find("mortal"), LinkMode.MONITOR)
        desk.asked[0].reply("yes")
        message = await news(boss)

    assert message.fault == NoConnection(event.name)  # type: ignore[union-attr]


async def test_there_is_one_way_to_the_parent() -> None:
    async with Node("parent") as node:
        assert "or has gone it already" in await in_process(fns.join_twice, node=node)()
        assert "was not made by in_process" in await in_process(fns.have_none)()


async def test_a_child_that_never_joins_leaves_nothing() -> None:
    async with Node("parent") as node:
        assert await in_process(len, [1, 2], node=node)() == 2
        assert node.peers() == []
        assert node._setup.secrets_of == {}
