"""Nodes in other interpreters, which are killed, stopped, blocked and starved. In real time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import sniffio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from backplane import Device, DeviceID, Disconnected, Line, LinkMode, NoConnection
from backplane.bridge import (
    Limits,
    NameTakenError,
    Node,
    NotConnectedError,
    Peer,
    Retry,
    call,
    tell,
)

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import SECRET, Reasons, monitor, news, own_host, silent, until
else:
    from .nodes import SECRET, Reasons, monitor, news, own_host, silent, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_of_nodes_left")]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
all_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)

BRIEFLY = Retry(initial=0.05, maximum=0.1, attempts=50)
SCRIPT = Path(__file__).with_name("peer_process.py")
HEARTBEAT, DEAD_AFTER, ITS_OWN = 0.1, 0.5, 1.0
PATIENT = 60
"""What is not about silence must not fail for it, however busy the machine."""


class Other:
    """The node over there."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._in = process.stdin
        self._out = BufferedByteReceiveStream(process.stdout)
        self.address = ""

    async def ask(self, word: str) -> str:
        """Say a word, and hear one."""
        await self._in.send(f"{word}\n".encode())
        return await self.hear()

    async def hear(self) -> str:
        """Hear a word."""
        with anyio.fail_after(20):
            return (await self._out.receive_until(b"\n", 1000)).decode()

    def signal(self, number: int) -> None:
        """Have the system do something to it."""
        os.kill(self.process.pid, number)


@contextlib.asynccontextmanager
async def other(
    address: str = "tcp://127.0.0.1:0",
    count: int = 1,
    prefix: tuple[str, ...] = (),
    dead_after: float = PATIENT,
) -> AsyncIterator[Other]:
    backend = sniffio.current_async_library()
    command = [
        *prefix, sys.executable, str(SCRIPT), backend, address, SECRET.hex(), str(HEARTBEAT),
        str(dead_after), str(count),
    ]  # fmt: skip
    async with await anyio.open_process(command, stderr=None) as process:
        there = Other(process)
        try:
            there.address = await there.hear()
            yield there
        finally:
            with contextlib.suppress(ProcessLookupError):
                there.signal(signal.SIGKILL)


def node(name: str = "a", dead_after: float = PATIENT, handshake: float = 20) -> Node:
    quick = Limits(handshake=handshake)
    return Node(name, secret=SECRET, heartbeat=HEARTBEAT, dead_after=dead_after, limits=quick)


async def reach(peer: Peer, number: int = 0) -> Line:
    return await peer.find(f"device {number}")


@all_loops
async def test_the_death_of_an_interpreter_is_heard_at_once_by_a_thousand_devices() -> None:
    async with other(count=1000) as there, node() as a:
        peer = await a.connect(there.address)
        lines = [await reach(peer, number) for number in range(1000)]
        near = [monitor(line) for line in lines]

        there.signal(signal.SIGKILL)

        # as soon as the system closes its sockets; far before any silence counts
        with anyio.fail_after(PATIENT / 2):
            for device, line in zip(near, lines, strict=True):
                assert await news(device) == Disconnected(line.id, NoConnection("b"))
        assert all(map(silent, near))


@two_loops
async def test_what_an_interpreter_says_last_is_heard_before_its_end() -> None:
    async with other(count=2) as there, node() as a:
        peer = await a.connect(there.address)
        ended, lost = monitor(await reach(peer, 0)), monitor(await reach(peer, 1))

        await there.ask("end 0")
        there.signal(signal.SIGKILL)

        message = await news(ended)
        assert isinstance(message, Disconnected)
        assert message.fault is None
        message = await news(lost)
        assert isinstance(message, Disconnected)
        assert message.fault == NoConnection("b")


@two_loops
async def test_an_interpreter_that_fails_takes_its_leave() -> None:
    async with other() as there, node() as a:
        line = await reach(await a.connect(there.address))
        near = monitor(line)

        await there._in.send(b"fail\n")

        message = await news(near)
        assert isinstance(message, Disconnected)
        assert message.fault == NoConnection("b")


@two_loops
async def test_a_stopped_interpreter_is_lost_in_time_and_back_with_the_same_lines() -> None:
    async with other() as there, node(dead_after=DEAD_AFTER) as a, node("c") as c:
        line = await reach(await a.connect(there.address))
        near = monitor(line)
        patient = monitor(await reach(await c.connect(there.address)))
        reasons = Reasons(a)

        there.signal(signal.SIGSTOP)
        message = await news(near)
        there.signal(signal.SIGCONT)

        assert isinstance(message, Disconnected)
        assert message.fault == NoConnection("b")
        # how late that may be is what test_pulse.py knows, in a time of its own
        assert reasons.told[0].startswith("nothing was heard of the peer for ")
        assert silent(patient)
        assert await found_again(a, there) == line.id


async def found_again(a: Node, there: Other) -> DeviceID:
    """What a node with little patience finds, which is lost again on a machine that is slow."""
    with anyio.fail_after(20):
        while True:
            with contextlib.suppress(NotConnectedError, TimeoutError):
                peer = await a.connect(there.address, retry=BRIEFLY)
                return (await reach(peer)).id


@two_loops
async def test_an_interpreter_that_stops_for_a_moment_is_not_lost() -> None:
    async with other() as there, node() as a:
        line = await reach(await a.connect(there.address))
        near = monitor(line)

        for _ in range(2):
            there.signal(signal.SIGSTOP)
            await anyio.sleep(HEARTBEAT * 3)
            there.signal(signal.SIGCONT)
            assert await call(line, "still there?") == "still there?"

        assert silent(near)


@two_loops
async def test_one_that_was_stopped_itself_does_not_take_others_for_dead() -> None:
    """It wakes up, finds that much time has gone by, and first reads what has come."""
    async with other() as there, node(dead_after=ITS_OWN) as a:
        line = await reach(await a.connect(there.address))
        near = monitor(line)

        time.sleep(ITS_OWN * 1.2)  # noqa: ASYNC251
        assert await call(line, "still there?") == "still there?"
        time.sleep(ITS_OWN * 1.2)  # noqa: ASYNC251
        await anyio.sleep(HEARTBEAT)

        assert silent(near)
        assert line.connected


@two_loops
async def test_a_blocked_loop_over_there_is_lost_if_it_is_blocked_too_long() -> None:
    async with other() as there, node(dead_after=DEAD_AFTER) as a, node("c") as c:
        near = monitor(await reach(await a.connect(there.address)))
        line = await reach(await c.connect(there.address))
        patient = monitor(line)

        tell(line, DEAD_AFTER * 3)
        message = await news(near)
        assert isinstance(message, Disconnected)
        assert message.fault == NoConnection("b")
        assert await call(line, "still there?", 20) == "still there?"
        assert silent(patient)


@two_loops
async def test_one_that_is_killed_and_started_again_is_connected_again_at_once() -> None:
    async with node() as a:
        async with other(f"tcp://{own_host()}:0") as there:
            former = await a.connect(there.address)
            near = monitor(former.line())
            there.signal(signal.SIGKILL)
        async with other(there.address):
            peer = await a.connect(there.address)

            assert (await reach(peer)).connected
            assert peer.incarnation != former.incarnation
            assert isinstance(await news(near), Disconnected)


@two_loops
@pytest.mark.parametrize("who", ["the new one", "the other"])
async def test_its_next_life_gets_in_though_nobody_has_heard_of_the_death_of_the_former(
    who: str,
) -> None:
    """As when it was the whole machine: no connection is closed. Silence does not count yet."""
    async with (
        other() as former,
        other() as there,
        node() as a,
    ):
        old = await a.connect(former.address)
        near = monitor(old.line())
        former.signal(signal.SIGSTOP)

        with anyio.fail_after(20):
            if who == "the other":
                peer = await a.connect(there.address)
                assert peer.incarnation != old.incarnation
            else:
                address = await a.listen("tcp://127.0.0.1:0")
                assert await there.ask(f"connect {address}") == "connected"

        assert isinstance(await news(near), Disconnected)
        await until(a.peers)  # the one who has dialled is up before
        assert a.peer("b").incarnation != old.incarnation
        assert (await reach(a.peer("b"))).connected


@two_loops
async def test_a_second_process_of_a_name_does_not_get_in_and_is_told_why() -> None:
    async with (
        other() as first,
        other() as second,
        node() as a,
    ):
        peer = await a.connect(first.address)
        near = monitor(peer.line())

        word = await second.ask(f"connect {await a.listen('tcp://127.0.0.1:0')}")
        with pytest.raises(NameTakenError, match=r"'b' is connected, at tcp://.* and alive"):
            await a.connect(second.address)

        assert word.startswith("NameTakenError cannot connect with node 'a' at tcp://127.0.0.1:")
        assert "another node called 'b' is connected with it and alive: " in word
        assert a.peers() == [peer]
        assert silent(near)


@all_loops
async def test_a_node_outlasts_a_lack_of_descriptors() -> None:
    """Strangers who connect may use them all up; what is connected goes on, and so does it."""
    async with other() as there, node() as a:
        line = await reach(await a.connect(there.address))
        near = monitor(line)
        assert int(await there.ask("starve")) > 0

        async with node("c", handshake=1) as c:
            with pytest.raises((NotConnectedError, TimeoutError)):
                await c.connect(there.address)
            assert await call(line, "still there?") == "still there?"
            with anyio.fail_after(20):
                while await there.ask("refused") == "0":
                    await anyio.sleep(0.01)

            assert await there.ask("feed") == "fed"
            peer = await c.connect(there.address, retry=BRIEFLY)
            assert peer.name == "b"
        assert silent(near)


@two_loops
async def test_a_thousand_links_with_a_thousand_devices_of_another_interpreter() -> None:
    async with other(count=1) as there, node() as a:
        line = await reach(await a.connect(there.address))
        near = [Device() for _ in range(1000)]
        for device in near:
            device.link(line, LinkMode.PEER)
        assert a.stats().peers[0].links >= 1

        there.signal(signal.SIGKILL)

        heard = [await news(device) for device in near]
        assert heard == [Disconnected(line.id, NoConnection("b"))] * 1000
