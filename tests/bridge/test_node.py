"""Nodes: Devices linked, sent to, watched and managed under across all kinds of connections."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from backplane import (
    Cancelled,
    CascadeCrash,
    Cascaded,
    Completed,
    Device,
    DeviceDownError,
    Disconnected,
    Dropped,
    Failed,
    Killed,
    Line,
    LinkDownError,
    LinkMode,
    Messaged,
    NoConnection,
    PowerOffCrash,
    Shutdown,
    current_device,
)
from backplane.bridge import (
    AddressError,
    ExportError,
    Limits,
    Node,
    NodeDown,
    NodeUp,
    NotAllowedError,
    NotConnectedError,
    RemoteError,
    Right,
    call,
    tell,
)
from backplane.supervisor import ChildSpec, Restart, Supervisor

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import SECRET, Desk, Puppet, Way, monitor, news, pair, silent, until
else:
    from .nodes import SECRET, Desk, Puppet, Way, monitor, news, pair, silent, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("discreet", "no_socket_left", "nothing_of_nodes_left"),
]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
by_tcp = pytest.mark.parametrize("way", ["tcp"], indirect=True)
by_memory = pytest.mark.parametrize("way", ["memory"], indirect=True)


# -- links, in every way and on every loop ---------------------------------------------------


async def test_a_far_devices_true_fault_is_heard(way: Way) -> None:
    async with way.pair() as world:
        faults = [None, Killed(), Cancelled(), Dropped(), NoConnection("elsewhere")]
        far = [Device() for _ in faults]
        lines = [await world.reach(device) for device in far]
        near = [monitor(line) for line in lines]

        for device, fault in zip(far, faults, strict=True):
            device.disconnect(fault)

        for device, line, fault, there in zip(near, lines, faults, far, strict=True):
            assert await news(device) == Disconnected(there.id, fault)
            assert not line.connected
            assert silent(device)


async def test_an_exception_over_there_stands_as_its_name_and_text(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        near = monitor(await world.reach(far))
        try:
            with far:
                raise LookupError("the very reason")
        except LookupError:
            pass

        message = await news(near)

        assert isinstance(message, Disconnected)
        assert isinstance(message.fault, Failed)
        error = message.fault.exception
        assert isinstance(error, RemoteError)
        assert (error.type_name, error.text) == ("builtins.LookupError", "the very reason")
        assert error.traceback == ""


@by_tcp
@two_loops
async def test_a_traceback_crosses_if_the_node_tells_of_such(way: Way) -> None:
    async with way.pair(tracebacks=True) as world:
        far = Device()
        near = monitor(await world.reach(far))
        try:
            with far:
                raise LookupError("the very reason")
        except LookupError:
            pass

        message = await news(near)

        assert isinstance(message, Disconnected)
        assert isinstance(message.fault, Failed)
        assert isinstance(message.fault.exception, RemoteError)
        assert 'raise LookupError("the very reason")' in message.fault.exception.traceback


@pytest.mark.parametrize(
    ("mode", "near_hears", "far_hears"),
    [
        (LinkMode.MONITOR, True, False),
        (LinkMode.NOTIFY, False, True),
        (LinkMode.PEER, True, True),
    ],
    ids=["monitor", "notify", "peer"],
)
async def test_each_mode_of_a_link_is_the_same_across_nodes(
    way: Way, mode: LinkMode, near_hears: bool, far_hears: bool
) -> None:
    async with way.pair() as world:
        # One pair whose far Device ends first, and one whose near does.
        far, other_far = Device(), Device()
        near, other_near = Device(), Device()
        line, other_line = await world.reach(far), await world.reach(other_far)
        near.link(line, mode)
        other_near.link(other_line, mode)
        after_far, after_near = monitor(line), Device()
        world.a.export("other near", other_near)
        after_near.link(await world.to_a.find("other near"), LinkMode.MONITOR)

        far.disconnect(Killed())
        await news(after_far)
        other_near.disconnect(Killed())
        await news(after_near)

        if near_hears:
            assert near.receive_nowait() == Disconnected(far.id, Killed())
        assert silent(near)
        if far_hears:
            assert other_far.receive_nowait() == Disconnected(other_near.id, Killed())
        assert silent(other_far)


async def test_an_unlinked_device_hears_nothing(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far)
        linked, unlinked = monitor(line), Device()
        unlinked.link(line)
        unlinked.unlink(line)

        far.disconnect(Killed())
        await news(linked)

        assert silent(unlinked)


async def test_the_loss_of_a_connection_is_heard_exactly_once_and_node_down_comes_last(
    way: Way,
) -> None:
    async with way.pair() as world:
        far = [Device() for _ in range(5)]
        lines = [await world.reach(device) for device in far]
        near = [monitor(line, LinkMode.PEER) for line in lines]
        connection = monitor(world.to_b.line())
        order: list[str] = []
        heard: list[NodeDown] = []

        def hear(event: object) -> None:
            if isinstance(event, NodeDown):
                order.append(f"{sum(not line.connected for line in lines)} lines gone")
                order.append(f"connection {'there' if world.to_b.line().connected else 'gone'}")
                heard.append(event)

        world.a.subscribe(hear)

        world.to_a.close()

        for device, there in zip(near, far, strict=True):
            assert await news(device) == Disconnected(there.id, NoConnection("b"))
            assert silent(device)
        assert isinstance((await news(connection)), Disconnected)
        assert order == ["5 lines gone", "connection gone"]
        assert [(down.name, down.incarnation) for down in heard] == [("b", world.b.incarnation)]
        for device, line in zip(far, lines, strict=True):
            assert await news(device) == Disconnected(near[far.index(device)].id, NoConnection("a"))
            with pytest.raises(LinkDownError):
                Device().link(line)


async def test_a_device_that_is_sent_to_hears_it_in_order(way: Way) -> None:
    async with way.pair() as world:
        far, sender = Device(), Device()
        line = await world.reach(far)

        line.shutdown(sender.id)
        line.shutdown()
        line.send(Disconnected(sender.id, Killed()))

        assert await news(far) == Shutdown(sender.id)
        assert await news(far) == Shutdown(None)
        assert await news(far) == Disconnected(sender.id, Killed())


async def test_work_is_watched_for_a_far_device(way: Way) -> None:
    async with way.pair() as world:
        far, near = Device(), Device()
        near.link(await world.reach(far), LinkMode.MONITOR)

        async def work() -> str:
            far.disconnect(Killed())
            await anyio.sleep_forever()
            return "never"

        async def quick() -> str:
            return "done"

        with anyio.fail_after(20):
            assert await near.watch(work) == Messaged(Disconnected(far.id, Killed()))
            assert await near.watch(quick) == Completed("done")


async def test_work_that_is_managed_under_a_remote_line_ends_with_it(way: Way) -> None:
    async with way.pair() as world:
        far, near = Device(), Device()
        near.link(await world.reach(far))

        async def work() -> None:
            far.disconnect(Killed())
            await anyio.sleep_forever()

        with anyio.fail_after(20), pytest.raises(CascadeCrash) as caught:
            await near.manage(work)

        assert (caught.value.sender, caught.value.fault) == (far.id, Killed())


async def test_far_work_is_shut_down_by_a_line(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far)
        near = monitor(line)

        async def work() -> None:
            line.shutdown(near.id)
            await anyio.sleep_forever()

        with anyio.fail_after(20), pytest.raises(PowerOffCrash) as caught:
            await far.manage(work)

        assert caught.value.sender == near.id
        assert await news(near) == Disconnected(far.id, None)


async def test_a_cascade_crosses_both_ways_and_keeps_its_root(way: Way) -> None:
    async with way.pair() as world:
        far, near = Device("far"), Device("near")
        near.link(await world.reach(far))
        ends: list[BaseException] = []
        watcher = Device()
        world.a.export("near", near)
        watcher.link(await world.to_a.find("near"), LinkMode.MONITOR)

        async def manage() -> None:
            try:
                await near.manage(anyio.sleep_forever)
            except CascadeCrash as crash:
                ends.append(crash)

        async with anyio.create_task_group() as tg:
            tg.start_soon(manage)
            await anyio.wait_all_tasks_blocked()
            far.disconnect(Failed(ValueError("root")))

            message = await news(watcher)

        assert len(ends) == 1
        assert isinstance(message, Disconnected)
        assert isinstance(message.fault, Cascaded)
        assert message.sender == near.id
        assert message.fault.sender == far.id
        root = message.fault.root
        assert isinstance(root, Failed)
        assert isinstance(root.exception, RemoteError)
        assert root.exception.text == "root"


@by_tcp
async def test_a_supervisor_restarts_the_child_that_depends_on_a_remote_device(way: Way) -> None:
    async with way.pair() as world:
        far: list[Device] = []
        starts: list[Line] = []

        def serve() -> None:
            far.append(Device())
            world.b.export("service", far[-1])

        async def child() -> None:
            from backplane import current_device

            line = await world.to_b.find("service")
            current_device().link(line, LinkMode.MONITOR)
            starts.append(line)
            await anyio.sleep_forever()

        serve()
        async with Supervisor([ChildSpec("child", child, restart=Restart.PERMANENT)]):
            await until(lambda: len(starts) == 1)
            world.b.revoke("service")
            dead = far[-1]
            serve()
            dead.disconnect(Killed())
            await until(lambda: len(starts) == 2)

        assert starts[0].id != starts[1].id


# -- finding -------------------------------------------------------------------------------------


async def test_what_is_exported_is_found_and_nothing_else(way: Way) -> None:
    async with way.pair() as world:
        far = Device("jobs")
        world.b.export("jobs", far, allow=["a", "worker-*"])
        world.b.export("private", far, allow=["worker-*"])

        line = await world.to_b.find("jobs")

        assert (line.id, line.name, line.connected) == (far.id, "jobs", True)
        for name in ("private", "nothing", "JOBS", ""):
            with pytest.raises(ExportError, match="or not to this node"):
                await world.to_b.find(name)


@by_memory
@two_loops
async def test_the_same_device_is_the_same_line(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        world.b.export("one", far)
        world.b.export("two", far)
        world.b.export("weak", far, rights=Right.MONITOR)

        one, two, weak = [await world.to_b.find(name) for name in ("one", "two", "weak")]

        assert one == two
        assert hash(one) == hash(two)
        assert weak.id == one.id


@by_memory
@two_loops
async def test_a_search_for_what_has_no_name_is_refused_here(way: Way) -> None:
    async with way.pair() as world:
        with pytest.raises(TypeError, match="not under a int"):
            await world.to_b.find(5)  # type: ignore[arg-type]

        with pytest.raises(ExportError):
            await world.to_b.find("the connection is still there")


@by_memory
@two_loops
async def test_a_search_without_a_connection_fails_at_once(way: Way) -> None:
    async with way.pair() as world:
        world.to_b.close()
        await until(lambda: not world.to_b.connected)

        with pytest.raises(NotConnectedError, match="find 'jobs'"):
            await world.to_b.find("jobs")


@two_loops
async def test_a_search_fails_when_the_connection_is_lost_meanwhile() -> None:
    async with Node("a", secret=SECRET) as a, anyio.create_task_group() as tg:
        puppet = await Puppet.dial(await a.listen("tcp://127.0.0.1:0"))
        await until(lambda: a.peers())
        peer = a.peer("b")

        async def search() -> None:
            with pytest.raises(NotConnectedError, match="find 'jobs'"):
                await peer.find("jobs")

        tg.start_soon(search)
        await puppet.read()
        await puppet.stream.aclose()


@two_loops
async def test_a_search_is_given_up_and_its_late_answer_is_nobodys() -> None:
    async with Node("a", secret=SECRET) as a:
        puppet = await Puppet.dial(await a.listen("tcp://127.0.0.1:0"))
        await until(lambda: a.peers())
        far = Device()
        puppet.session.exports.name("jobs", far.line(), ["*"], Right.ALL, None)

        with pytest.raises(TimeoutError, match="node 'b' did not say what 'jobs' is"):
            await a.peer("b").find("jobs", timeout=0.02)
        await puppet.read()
        await puppet.write()

        await until(lambda: not a.peer("b")._session.lookups._asked)
        assert a.stats().peers[0].links == 0
        await puppet.stream.aclose()
        await until(lambda: not a.peers())


@by_memory
@two_loops
async def test_revoked_names_are_not_found_and_their_lines_stay(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        world.b.export("jobs", far)
        line = await world.to_b.find("jobs")

        assert world.b.revoke("jobs")

        assert not world.b.revoke("jobs")
        with pytest.raises(ExportError):
            await world.to_b.find("jobs")
        near = monitor(line)
        far.disconnect(Killed())
        assert await news(near) == Disconnected(far.id, Killed())


@by_memory
@two_loops
async def test_a_revoked_device_is_reached_by_nothing(way: Way) -> None:
    async with way.pair() as world:
        far, other, desk = Device(), Device(), Desk(answers=lambda question: question)
        line = await world.reach(far, port=desk)
        marker = await world.reach(other, port=desk)

        assert world.b.revoke(far)
        assert not world.b.revoke(far)
        line.shutdown()
        tell(line, "not heard")
        tell(marker, "heard")
        await until(lambda: desk.told)

        assert desk.told == ["heard"]
        assert silent(far)


@by_memory
@two_loops
async def test_names_are_taken_once_and_free_when_their_device_has_ended(way: Way) -> None:
    async with way.pair() as world:
        first, second = Device(), Device()
        world.b.export("jobs", first)
        with pytest.raises(ValueError, match="exported already"):
            world.b.export("jobs", second)
        with pytest.raises(TypeError, match=r"allow is a list of patterns: \['\*'\]"):
            world.b.export("other", second, allow="*")

        first.disconnect()
        world.b.export("jobs", second.line())

        assert (await world.to_b.find("jobs")).id == second.id
        world.b.revoke(second.line())
        with pytest.raises(ExportError):
            await world.to_b.find("jobs")


# -- rights --------------------------------------------------------------------------------------


@by_memory
@two_loops
async def test_who_may_only_monitor_cannot_send_and_is_told_at_once(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, Right.MONITOR)
        near = monitor(line)

        with pytest.raises(NotAllowedError, match=r"Right\.SEND"):
            line.shutdown()

        far.disconnect(Killed())
        assert await news(near) == Disconnected(far.id, Killed())


@by_memory
@two_loops
async def test_who_may_only_monitor_cannot_make_it_hear_and_stops_nobody(way: Way) -> None:
    async with way.pair() as world:
        far, near = Device(), Device()
        line = await world.reach(far, Right.MONITOR)
        other = monitor(line)
        begun = False

        async def work() -> None:
            nonlocal begun
            current_device().link(line, LinkMode.PEER)
            begun = True

        with pytest.raises(NotAllowedError, match=r"Right\.LINK"):
            await near.manage(work)

        assert not begun
        assert silent(far)
        far.disconnect(Killed())
        assert await news(other) == Disconnected(far.id, Killed())


@by_memory
@two_loops
async def test_what_has_ended_cannot_be_exported(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far)
        far.disconnect()
        for ended in (far, far.line()):
            with pytest.raises(LinkDownError, match="cannot export it as 'again'"):
                world.b.export("again", ended)
        await until(lambda: not line.connected)
        with pytest.raises(LinkDownError, match="cannot export it as 'again'"):
            world.a.export("again", line)


@by_memory
@two_loops
async def test_a_far_device_is_not_exported_with_more_rights_than_one_has(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, Right.MONITOR | Right.LINK)
        world.a.export("as it is", line, rights=Right.MONITOR | Right.LINK)

        with pytest.raises(NotAllowedError, match=r"export it as 'more' .* without Right\.SEND"):
            world.a.export("more", line, rights=Right.ALL)


# -- lines in messages ---------------------------------------------------------------------------


async def test_a_line_in_a_message_leads_to_its_device(way: Way) -> None:
    async with way.pair() as world:
        desk = Desk(answers=lambda question: question)
        far = Device()
        line = await world.reach(far, port=desk)
        mine = Device("mine")

        tell(line, {"reply to": mine.line(), "as": [1, mine.id]})
        await until(lambda: desk.told)

        received = desk.told[0]["reply to"]
        assert received.id == mine.id
        assert desk.told[0]["as"] == [1, mine.id]
        there = monitor(received)
        mine.disconnect(Killed())
        assert await news(there) == Disconnected(mine.id, Killed())


async def test_a_line_that_comes_home_is_the_devices_own(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        world.b.serve(far, Desk(answers=lambda question: question))
        line = await world.reach(far)
        mine = Device()

        answer = await call(line, [mine.line(), line])

        assert answer[0] == mine.line()
        assert answer[1] == line
        near = monitor(answer[0])
        mine.disconnect()
        assert near.receive_nowait() == Disconnected(mine.id, None)


async def test_a_line_that_comes_home_too_late_has_ended(way: Way) -> None:
    async with way.pair() as world:
        kept: list[Line] = []

        def answers(question: Any) -> Any:
            if isinstance(question, Line):
                kept.append(question)
            return kept[0]

        far = Device()
        line = await world.reach(far, port=Desk(answers=answers))
        mine = Device()
        await call(line, mine.line())
        mine.disconnect()

        late = await call(line, "give it back")

        assert (late.id, late.connected) == (mine.id, False)


async def test_a_line_goes_to_a_third_node_that_has_a_connection(way: Way) -> None:
    async with way.pair() as world, way.node("c") as c:
        desk, far = Desk(), Device("far")
        world.b.export("far", far)
        to_c = await way.connect(world.a, c)
        await way.connect(c, world.b)
        board = Device()
        c.export("desk", board, port=desk)
        line = await world.to_b.find("far")

        tell(await to_c.find("desk"), line)
        await until(lambda: desk.told)

        received = desk.told[0]
        assert (received.id, received.connected) == (far.id, True)
        world.to_b.close()  # it is c's own way that counts
        await until(lambda: not line.connected)
        there = monitor(received)
        far.disconnect(Killed())
        assert await news(there) == Disconnected(far.id, Killed())


async def test_a_line_to_a_node_without_a_connection_has_ended_but_goes_on(way: Way) -> None:
    async with way.pair() as world, way.node("c") as c:
        desk, far = Desk(answers=lambda _: desk.told[0]), Device("far")
        to_c = await way.connect(world.a, c)
        board = Device()
        c.export("desk", board, port=desk)
        line = await world.reach(far)
        at_c = await to_c.find("desk")

        tell(at_c, line)
        await until(lambda: desk.told)

        received = desk.told[0]
        assert (received.id, received.connected) == (far.id, False)
        with pytest.raises(LinkDownError):
            Device().link(received)
        with pytest.raises(NotConnectedError, match="node 'b' is not connected"):
            tell(received, "anything")
        back = await call(at_c, "give it back")
        assert back == line
        assert back.connected


# -- the life of a node --------------------------------------------------------------------------


@by_memory
async def test_all_ends_with_the_block(way: Way) -> None:
    far = Device()
    async with way.pair() as world:
        line = await world.reach(far)
        near, of_node = monitor(line), monitor(world.a.device.line())
        assert silent(of_node)

    assert near.receive_nowait() == Disconnected(far.id, NoConnection("b"))
    assert of_node.receive_nowait() == Disconnected(world.a.device.id, None)
    assert world.a.peers() == []
    assert repr(world.a) == "<Node 'a', 0 connections>"
    assert repr(world.to_b) == "<Peer 'b' gone>"


@by_memory
async def test_an_exception_of_the_block_comes_out_as_it_is(way: Way) -> None:
    error = LookupError("mine")
    of_node, of_line = Device(), Device()

    nodes: list[Node] = []

    async def block() -> None:
        async with way.pair() as world:
            nodes.append(world.a)
            of_node.link(world.a.device, LinkMode.MONITOR)
            of_line.link(world.to_b.line(), LinkMode.MONITOR)
            raise error

    with pytest.raises(LookupError, match="mine") as caught:
        await block()

    assert caught.value is error
    assert of_node.receive_nowait() == Disconnected(nodes[0].device.id, Failed(error))
    assert isinstance(of_line.receive_nowait(), Disconnected)


async def test_a_node_in_a_cancelled_scope_ends() -> None:
    of_node = Device()

    with anyio.CancelScope() as scope:
        async with Node("a", secret=SECRET) as a:
            await a.listen("tcp://127.0.0.1:0")
            of_node.link(a.device, LinkMode.MONITOR)
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert of_node.receive_nowait() == Disconnected(a.device.id, None)


class BlockError(Exception):
    """Ends a block."""


class Jammed:
    """A stream that takes nothing from some time on."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.is_jammed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send(self, data: bytes) -> None:
        if self.is_jammed:
            await anyio.sleep_forever()
        await self._stream.send(data)


@pytest.mark.parametrize("how", ["left", "cancelled", "failed", "cancelled twice"])
async def test_what_was_said_last_arrives_however_the_block_ends(way: Way, how: str) -> None:
    far, desk = Device(), Desk(answers=lambda question: question)
    scope = anyio.CancelScope()
    async with way.node("b") as b:
        b.export("desk", far, port=desk)
        async with b.events() as events:
            with scope, contextlib.suppress(BlockError):
                async with way.node("a") as a:
                    to_b = await way.connect(a, b)
                    line = await to_b.find("desk")
                    try:
                        if how.startswith("cancelled"):
                            scope.cancel()
                            await anyio.sleep_forever()
                        if how == "failed":
                            raise BlockError
                    finally:
                        for number in range(3):
                            tell(line, number)
                        with anyio.CancelScope(shield=True):
                            assert await call(line, "still there?") == "still there?"
                        if how == "cancelled twice":
                            scope.cancel()
                        tell(line, "last")

            with anyio.fail_after(20):
                assert isinstance(await anext(events), NodeUp)
                down = await anext(events)

    assert desk.told == [0, 1, 2, "last"]
    assert isinstance(down, NodeDown)
    assert str(down.reason) == "node 'a' has closed the connection"


async def test_a_block_that_is_cancelled_does_not_wait_long_for_a_peer_that_does_not_read() -> None:
    limits = Limits(closing=0.1)
    here, there = pair()
    jammed = Jammed(here)
    async with Node("b", secret=SECRET) as b:
        with anyio.fail_after(20), anyio.CancelScope() as scope:
            async with Node("a", secret=SECRET, limits=limits) as a:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(lambda: b.attach(there, dial=False))
                    await a.attach(jammed, dial=True)  # type: ignore[arg-type]
                jammed.is_jammed = True
                scope.cancel()
                await anyio.sleep_forever()

        assert scope.cancelled_caught
        assert a.peers() == []
        await until(lambda: not b.peers())


async def live_in(node: Node) -> None:
    async with node:
        await anyio.sleep_forever()


async def test_a_node_that_is_cancelled_as_it_begins_ends(call: Any) -> None:
    of_node, a = Device(), Node("a", secret=SECRET)
    of_node.link(a.device, LinkMode.MONITOR)

    living = call(live_in, a)
    living.cancel()
    await living()

    assert of_node.receive_nowait() == Disconnected(a.device.id, None)
    with pytest.raises(RuntimeError, match="lives in one block"):
        await a.__aenter__()


@pytest.mark.parametrize("turns", range(6))
async def test_a_node_that_is_cancelled_at_any_await_of_its_beginning_ends(
    call: Any, turns: int
) -> None:
    of_node, a = Device(), Node("a", secret=SECRET)
    of_node.link(a.device, LinkMode.MONITOR)

    living = call(live_in, a)
    async with anyio.create_task_group() as tg:
        tg.start_soon(living)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        living.cancel()

    assert of_node.receive_nowait() == Disconnected(a.device.id, None)


async def test_a_failure_beside_a_node_in_a_group_comes_out_as_it_is() -> None:
    async def fail() -> None:
        raise LookupError("beside")

    async def block() -> None:
        async with anyio.create_task_group() as tg, Node("a", secret=SECRET) as a:
            await a.listen("tcp://127.0.0.1:0")
            tg.start_soon(fail)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await block()

    assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def test_a_group_of_exceptions_comes_out_as_it_is() -> None:
    group = ExceptionGroup("several", [LookupError(), ValueError()])

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("a", secret=SECRET):
            raise group

    assert caught.value is group


async def test_a_node_lives_once() -> None:
    node = Node("a", secret=SECRET)
    with pytest.raises(RuntimeError, match="enter the node first"):
        await node.listen("tcp://127.0.0.1:0")
    async with node:
        with pytest.raises(RuntimeError, match="make a new one"):
            await node.__aenter__()
        address = await node.listen("tcp://127.0.0.1:0")
    with pytest.raises(RuntimeError, match="the node has ended"):
        await node.connect(address)
    here, there = pair()
    async with there:
        with pytest.raises(RuntimeError, match="the node has ended"):
            await node.attach(here, dial=True)
        with pytest.raises(anyio.EndOfStream):  # it was closed nevertheless
            await there.receive()
    with pytest.raises(RuntimeError, match="make a new one"):
        async with node:
            pass


@pytest.mark.parametrize("name", ["", "two words", "a/b", "\xe4", "x" * 256, None, b"a"])
@two_loops
async def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="a node's name"):
        Node(name)


@pytest.mark.parametrize(("heartbeat", "dead_after"), [(0, 3), (-1, 3), (2, 5), (5, 14.9)])
@two_loops
async def test_times_that_cannot_work_are_refused(heartbeat: float, dead_after: float) -> None:
    with pytest.raises(ValueError, match="a third of dead_after"):
        Node("a", heartbeat=heartbeat, dead_after=dead_after)


async def test_close_ends_the_connections_and_the_node_goes_on(way: Way) -> None:
    async with way.pair() as world:
        await world.a.close()

        assert world.a.peers() == []
        assert not world.to_b.connected
        with pytest.raises(NotConnectedError):
            world.a.peer("b")
        await until(lambda: not world.b.peers())
        again = await way.connect(world.a, world.b)
        assert again.connected
        assert again is not world.to_b


async def test_peers_are_known_by_their_names(way: Way) -> None:
    async with way.pair() as world:
        assert world.a.peers() == [world.to_b]
        assert world.a.peer("b") is world.to_b
        assert (world.to_b.name, world.to_b.incarnation) == ("b", world.b.incarnation)
        assert world.to_b.connected
        assert repr(world.to_b) == "<Peer 'b' connected>"
        assert repr(world.a) == "<Node 'a', 1 connections>"
        assert world.a.name == "a"
        with pytest.raises(NotConnectedError, match="node 'c' is not connected"):
            world.a.peer("c")


# -- Lines as bytes ------------------------------------------------------------------------------


@by_memory
@two_loops
async def test_a_message_as_bytes_is_opened_on_another_node(way: Way) -> None:
    async with way.pair() as world:
        mine = Device("mine")

        data = world.a.encode({"line": mine.line()})

        there = world.b.decode(data)["line"]
        here = world.a.decode(data)["line"]
        assert here == mine.line()
        assert (there.id, there.connected) == (mine.id, True)
        assert world.b.open_line(world.b.pack_line(there)) == there


@by_memory
@two_loops
async def test_a_line_of_a_former_connection_opens_in_the_next(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        old = await world.reach(far)
        data = world.a.pack_line(old)
        await world.a.close()
        await until(lambda: not world.b.peers())
        assert not world.a.open_line(data).connected

        await way.connect(world.a, world.b)

        new = world.a.open_line(data)
        assert (new.id, new.connected, old.connected) == (far.id, True, False)
        near = monitor(new)
        far.disconnect(Killed())
        assert await news(near) == Disconnected(far.id, Killed())


# -- events ------------------------------------------------------------------------------------


async def test_subscribers_hear_who_comes_and_goes_whatever_others_raise(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async with way.node("a") as a, way.node("b") as b:
        heard: list[Any] = []

        def fail(event: Any) -> None:
            raise LookupError("a subscriber's own")

        a.subscribe(fail)
        unsubscribe = a.subscribe(heard.append)
        peer = await way.connect(a, b)
        peer.close()
        await until(lambda: len(heard) == 2)
        unsubscribe()
        unsubscribe()
        await until(lambda: not b.peers())
        await way.connect(a, b)

    assert heard[0] == NodeUp("b", b.incarnation)
    assert isinstance(heard[1], NodeDown)
    assert (heard[1].name, heard[1].incarnation) == ("b", b.incarnation)
    assert isinstance(heard[1].reason, NotConnectedError)
    assert len(heard) == 2
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert all("a subscriber of node 'a' failed" in record.message for record in errors)


@by_memory
async def test_events_are_iterated_with_those_first_that_are_there(way: Way) -> None:
    async with way.pair() as world, world.a.events() as events:
        world.to_b.close()
        with anyio.fail_after(20):
            first = await anext(events)
            second = await anext(events)
            with anyio.move_on_after(0.01) as scope:
                await anext(events)

        assert scope.cancelled_caught
        assert first == NodeUp("b", world.b.incarnation)
        assert isinstance(second, NodeDown)


@by_memory
async def test_events_wait_for_what_has_not_happened(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        got: list[Any] = []

        async def hear() -> None:
            async with a.events() as events:
                async for event in events:
                    got.append(event)
                    return

        async with anyio.create_task_group() as tg:
            tg.start_soon(hear)
            await anyio.wait_all_tasks_blocked()
            await way.connect(a, b)

        assert got == [NodeUp("b", b.incarnation)]


# -- stats ---------------------------------------------------------------------------------------


@by_tcp
async def test_stats_tell_what_there_is(way: Way) -> None:
    async with way.pair(heartbeat=60.0, dead_after=200.0) as world:  # no sign of life under way
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        near = monitor(line)
        before = world.b.stats()
        async with anyio.create_task_group() as tg:
            tg.start_soon(call, line, "x" * 1000, None)
            await until(lambda: desk.asked)

            here, there = world.a.stats(), world.b.stats()
            desk.asked[0].reply(None)

        assert (here.peers[0].name, here.handshakes, here.refused) == ("b", 0, {})
        assert here.peers[0].source.startswith("tcp://127.0.0.1:")
        assert there.peers[0].source.startswith("127.0.0.1:")
        assert (here.peers[0].calls, there.peers[0].calls) == (1, 1)
        assert (here.peers[0].links, there.peers[0].links) == (1, 1)
        assert there.peers[0].bytes_in - before.peers[0].bytes_in > 1000
        assert there.peers[0].frames_in - before.peers[0].frames_in >= 1
        assert here.peers[0].bytes_out == there.peers[0].bytes_in
        assert here.peers[0].frames_out == there.peers[0].frames_in
        assert here.peers[0].waiting == 0
        assert (here.exports, there.exports) == (0, 1)
        assert silent(near)


# -- what is left ----------------------------------------------------------------------------------


async def test_a_forgotten_line_is_forgotten_over_there(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far)
        await until(lambda: world.b.stats().peers[0].links == 1)
        assert world.a.stats().peers[0].links == 1

        del line
        gc.collect()

        await until(lambda: world.a.stats().peers[0].links == 0)
        await until(lambda: world.b.stats().peers[0].links == 0)


@by_memory
@two_loops
async def test_nothing_refers_to_a_node_that_has_ended(way: Way) -> None:
    async def scenario() -> list[weakref.ref[Any]]:
        async with way.pair() as world:
            far = Device()
            assert (await world.reach(far)).connected
            return [weakref.ref(thing) for thing in (world.a, world.b, world.to_b._session)]

    refs = await scenario()
    await anyio.wait_all_tasks_blocked()
    gc.collect()

    assert [ref() for ref in refs] == [None, None, None]


@by_memory
@two_loops
async def test_a_device_that_has_ended_cannot_be_linked_across(way: Way) -> None:
    async with way.pair() as world:
        far, near = Device(), Device()
        line = await world.reach(far)
        near.disconnect()

        with pytest.raises(DeviceDownError):
            near.link(line)
        with pytest.raises(LinkDownError):
            line.link(near)


# -- addresses, at the node ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("tcp://127.0.0.1:0", {}),
        ("tcp://0.0.0.0:0", {"secret": SECRET}),
        ("tcp://localhost:0", {"secret": SECRET}),
        ("tls://127.0.0.1:0", {"secret": SECRET}),
        ("nonsense", {"secret": SECRET}),
    ],
    ids=["no secret", "all addresses", "a name", "no certificate", "no address"],
)
@two_loops
async def test_what_is_not_safe_is_neither_listened_nor_dialled(
    address: str, options: dict[str, Any]
) -> None:
    async with Node("a", **options) as a:
        with pytest.raises(AddressError):
            await a.listen(address)
        with pytest.raises(AddressError):
            await a.connect(address)


@two_loops
async def test_what_is_not_safe_is_done_if_written_out_and_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        address = await b.listen("tcp://0.0.0.0:0", insecure_plaintext=True)
        assert "neither encrypted nor signed" in caplog.text
        caplog.clear()

        peer = await a.connect(address.replace("0.0.0.0", "localhost"), insecure_plaintext=True)

        assert peer.name == "b"
        assert "neither encrypted nor signed" in caplog.text


@two_loops
async def test_listening_on_what_is_taken_fails(tmp_path: Path) -> None:
    async with Node("a", secret=SECRET) as a:
        for address in ("tcp://127.0.0.1:0", f"unix://{tmp_path}/s"):
            bound = await a.listen(address)
            with pytest.raises(OSError, match=r"in use|somebody listens") as raised:
                await a.listen(bound)
            assert f"cannot listen at {bound}: " in str(raised.value)
            assert raised.value.errno == errno.EADDRINUSE
        await until(lambda: a.stats().refused)  # the one who looked whether it lives
