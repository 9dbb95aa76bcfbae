"""Nodes across a bad network: each link fires exactly once, whatever becomes of the bytes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Device, Disconnected, Killed, Line, LinkMode, NoConnection
from backplane.bridge import Limits, Node, NotConnectedError, Peer, Retry, Right, call, tell
from backplane.bridge._addresses import parse

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from chaos import Chaos
    from nodes import SECRET, Desk, Way, monitor, news, silent, until
else:
    from .chaos import Chaos
    from .nodes import SECRET, Desk, Way, monitor, news, silent, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("discreet", "no_socket_left", "nothing_of_nodes_left"),
]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
all_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
by_tcp = pytest.mark.parametrize("way", ["tcp"], indirect=True)

QUICK: dict[str, Any] = {"heartbeat": 0.05, "dead_after": 0.25, "limits": Limits(closing=0.3)}
FULL = os.environ.get("CI") and os.environ.get("HYPOTHESIS_PROFILE") != "dev"


@dataclass
class World:
    """Two nodes, and between them the weather. ``a`` has dialled."""

    a: Node
    b: Node
    chaos: Chaos
    to_b: Peer
    desk: Desk
    far: list[Device]
    near: list[Device]
    lines: list[Line]
    there: list[Device]
    """Devices of ``b`` that are linked with those of ``a`` in ``mine``."""
    mine: list[Device]

    async def fired_once(self, fault: Any = None) -> None:
        """Each link across the connection has, on both sides, since it was lost."""
        for device, line in zip(self.near, self.lines, strict=True):
            assert await news(device) == Disconnected(line.id, NoConnection("b"))
            assert silent(device)
        for device, other in zip(self.there, self.mine, strict=True):
            assert await news(device) == Disconnected(other.id, NoConnection("a"))
            assert silent(device)


@contextlib.asynccontextmanager
async def world(seed: int = 0, **options: Any) -> AsyncIterator[World]:
    options = QUICK | options
    async with Node("b", secret=SECRET, **options) as b, Node("a", secret=SECRET, **options) as a:
        chaos = Chaos(parse(await b.listen("tcp://127.0.0.1:0")).port, seed=seed)
        async with chaos.running():
            to_b = await a.connect(chaos.address, expect="b")
            desk = Desk(answers=lambda question: question)
            far = [Device() for _ in range(5)]
            lines = []
            for number, device in enumerate(far):
                b.export(f"far {number}", device, rights=Right.ALL, port=desk)
                lines.append(await to_b.find(f"far {number}"))
            near = [monitor(line) for line in lines]
            await until(lambda: b.peers())
            mine = [Device() for _ in range(5)]
            there = []
            for number, device in enumerate(mine):
                a.export(f"mine {number}", device)
                there.append(monitor(await b.peer("a").find(f"mine {number}")))
            yield World(a, b, chaos, to_b, desk, far, near, lines, there, mine)


@all_loops
async def test_it_does_not_matter_how_bytes_are_parted() -> None:
    async with world(dead_after=10.0) as w:
        w.chaos.up.split = w.chaos.down.split = 1

        for number in range(20):
            tell(w.lines[0], number)
        assert await call(w.lines[1], "x" * 1000) == "x" * 1000
        w.far[0].disconnect(Killed())

        assert await news(w.near[0]) == Disconnected(w.lines[0].id, Killed())
        assert w.desk.told == list(range(20))
        assert all(map(silent, w.near[1:]))


@two_loops
async def test_a_handshake_survives_any_parting_and_delay() -> None:
    async with Node("b", secret=SECRET) as b, Node("a", secret=SECRET) as a:
        port = parse(await b.listen("tcp://127.0.0.1:0")).port
        chaos = Chaos(port)
        chaos.up.split = chaos.down.split = 1
        async with chaos.running():
            assert (await a.connect(chaos.address)).name == "b"


@all_loops
async def test_a_slow_network_is_no_dead_one() -> None:
    """Delays below ``dead_after`` change nothing but the time."""
    async with world(dead_after=1.0) as w:
        w.chaos.up.delay = w.chaos.down.delay = 0.03
        for number in range(5):
            assert await call(w.lines[0], number) == number

        assert w.to_b.connected
        assert all(map(silent, w.near))


@all_loops
@pytest.mark.parametrize("which", ["up", "down", "both"])
@pytest.mark.parametrize("how", ["stalled", "swallowed"])
async def test_silence_one_way_or_both_is_loss(how: str, which: str) -> None:
    async with world() as w:
        for name in ("up", "down") if which == "both" else (which,):
            setattr(getattr(w.chaos, name), how, True)

        await w.fired_once()
        await until(lambda: not w.a.peers() and not w.b.peers())


@all_loops
@pytest.mark.parametrize("after", [0, 1, 100, 2000])
async def test_a_reset_is_loss_wherever_it_comes(after: int) -> None:
    async with world() as w:
        w.chaos.up.reset_after = after
        with contextlib.suppress(NotConnectedError):
            for number in range(100):
                tell(w.lines[0], [number, "x" * 100])
                await anyio.sleep(0)  # noqa: ASYNC115 - a turn, for either library
        w.chaos.up.reset_after = 0

        await w.fired_once()

        assert [number for number, _ in w.desk.told] == list(range(len(w.desk.told)))


@all_loops
async def test_an_end_that_is_swallowed_is_found_out() -> None:
    """One side has gone; the other never gets its farewell."""
    async with world() as w:
        w.chaos.up.swallowed = True
        await w.a.close()
        await w.fired_once()


@two_loops
async def test_silence_that_ends_in_time_is_forgiven() -> None:
    async with world(dead_after=10.0) as w:
        w.chaos.up.stalled = w.chaos.down.stalled = True
        await anyio.sleep(0.3)
        w.chaos.up.stalled = w.chaos.down.stalled = False

        assert await call(w.lines[0], "still there?") == "still there?"
        assert all(map(silent, w.near))


@two_loops
@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_each_link_fires_once_with_its_fault_or_the_loss(seed: int) -> None:
    async with world(seed=seed) as w:
        w.chaos.up.delay = w.chaos.down.delay = 0.004
        w.chaos.up.split = 1 + seed * 7
        w.chaos.down.reset_after = 300 + 400 * seed
        for device in w.far[:3]:
            device.disconnect(Killed())

        for index, device in enumerate(w.near):
            message = await news(device)
            expected = [Disconnected(w.lines[index].id, NoConnection("b"))]
            if index < 3:
                expected.append(Disconnected(w.lines[index].id, Killed()))
            assert message in expected
            if index >= 3:
                assert not w.to_b.connected
            elif w.to_b.connected:
                w.chaos.down.reset_after = 0
        await until(lambda: not w.a.peers())
        assert all(map(silent, w.near))


@two_loops
async def test_a_handshake_that_is_cut_anywhere_leaves_nothing() -> None:
    quick = Limits(handshake=0.5)
    async with (
        Node("b", secret=SECRET, limits=quick) as b,
        Node("a", secret=SECRET, limits=quick) as a,
    ):
        port = parse(await b.listen("tcp://127.0.0.1:0")).port
        chaos = Chaos(port)
        async with chaos.running():
            for after in range(1, 140, 6):
                chaos.up.reset_after, chaos.down.reset_after = after, None
                with contextlib.suppress(NotConnectedError, TimeoutError):
                    await a.connect(chaos.address)
                chaos.up.reset_after, chaos.down.reset_after = None, after
                with contextlib.suppress(NotConnectedError, TimeoutError):
                    await a.connect(chaos.address)
            chaos.down.reset_after = None
            await until(lambda: not b.stats().handshakes)
            peer = await a.connect(chaos.address, retry=Retry(initial=0.01))
            assert peer.connected


# -- much and often ------------------------------------------------------------------------------


def memory() -> int:
    """Kilobytes that the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def tables(node: Node) -> list[int]:
    """How much a node keeps."""
    board = node._board
    return [
        len(board._of),
        len(board._peers),
        len(board._watchers),
        node._gate.pending,
        len(node._exports._of),
        len(node._exports._tokens),
        len(node._exports._names),
    ]


@by_tcp
@two_loops
async def test_connections_come_and_go_and_leave_nothing(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="backplane.bridge")  # kept, they would be the most
    cycles = 10_000 if FULL else 150
    async with way.node("b") as b, way.node("a") as a:
        address = await b.listen(way.address())
        far = Device()
        b.export("far", far)
        sizes: list[int] = []
        open_files = len(os.listdir("/proc/self/fd"))
        for number in range(cycles):
            peer = await a.connect(address)
            near = monitor(await peer.find("far"))
            peer.close()
            assert isinstance(await news(near), Disconnected)
            if number in (cycles // 2, cycles - 1):
                await until(lambda: not b.peers())
                gc.collect()
                sizes.append(memory())
        await until(lambda: not a.peers() and not b.peers())
        assert tables(a) == [0, 0, 0, 0, 0, 0, 0]
        assert tables(b) == [0, 0, 0, 0, 1, 1, 1]
        assert len(os.listdir("/proc/self/fd")) <= open_files + 3  # the loop's own
        assert sizes[1] - sizes[0] < 6000


@by_tcp
@all_loops
async def test_ten_thousand_links_on_one_connection_all_fire_and_leave_nothing(way: Way) -> None:
    count = 10_000
    async with way.pair() as w:
        desk = Desk()
        board = Device()
        w.b.export("desk", board, port=desk)
        there = await w.to_b.find("desk")
        mine = [Device() for _ in range(count)]
        for start in range(0, count, 500):
            tell(there, [device.line() for device in mine[start : start + 500]])
            await until(lambda total=start + 500: sum(map(len, desk.told)) == total)  # type: ignore[misc]
        lines: list[Line] = [line for part in desk.told for line in part]
        hearer = Device()
        for line in lines:
            hearer.link(line, LinkMode.MONITOR)
        await until(lambda: w.a.stats().peers[0].links >= count)

        for device in mine[: count // 2]:
            device.disconnect(Killed())
        faults = [(await news(hearer)).fault for _ in range(count // 2)]  # type: ignore[union-attr]
        w.to_a.close()
        losses = [(await news(hearer)).fault for _ in range(count // 2)]  # type: ignore[union-attr]

        assert set(faults) == {Killed()}
        assert set(losses) == {NoConnection("a")}
        assert silent(hearer)
        await until(lambda: not w.a.peers() and not w.b.peers())
        mine.clear()
        gc.collect()
        assert len(w.a._exports) == 0
