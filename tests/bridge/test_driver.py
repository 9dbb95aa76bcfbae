"""What moves bytes: slow peers and silent ones, loops that are late, streams that fail."""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.stapled import StapledByteStream

from backplane import Device, Disconnected, Killed, Line, NoConnection
from backplane.bridge import (
    BusyError,
    Limits,
    Node,
    NotConnectedError,
    Right,
    call,
    tell,
)
from backplane.bridge._frames import Ping, Pong
from backplane.bridge._sockets import Prompt
from backplane.bridge._tls import Secured
from backplane.lowlevel import checkpoint, clock

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import SECRET, Desk, Puppet, Reasons, Way, monitor, news, pair, silent, until
else:
    from .nodes import SECRET, Desk, Puppet, Reasons, Way, monitor, news, pair, silent, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("discreet", "no_socket_left", "nothing_of_nodes_left"),
]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
by_tcp = pytest.mark.parametrize("way", ["tcp"], indirect=True)
by_memory = pytest.mark.parametrize("way", ["memory"], indirect=True)

LOCAL = "tcp://127.0.0.1:0"
QUICK: dict[str, Any] = {"heartbeat": 0.05, "dead_after": 0.2}


# -- closing -----------------------------------------------------------------------------------


async def test_what_was_said_before_a_good_end_arrives(way: Way) -> None:
    """Though the other side talks all the time, so that there is always something unread."""
    async with way.pair() as world:
        here, there = Desk(), Desk()
        near, far = Device(), Device()
        line = await world.reach(far, port=there)
        world.a.export("near", near, port=here)
        back = await world.to_a.find("near")

        async def chatter() -> None:
            while True:
                try:
                    tell(back, "y" * 1000)
                except (NotConnectedError, BusyError):
                    return
                await checkpoint()

        async with anyio.create_task_group() as tg:
            tg.start_soon(chatter)
            await until(lambda: here.told)
            for number in range(300):
                tell(line, [number, "x" * 1000])
            world.to_b.close()
            await until(lambda: not world.to_b.connected)

        assert [number for number, _ in there.told] == list(range(300))


async def test_what_was_said_before_the_end_of_the_block_arrives(way: Way) -> None:
    async with way.node("b") as b:
        desk, far = Desk(), Device()
        b.export("far", far, port=desk)
        async with way.node("a") as a:
            peer = await way.connect(a, b)
            line = await peer.find("far")
            for number in range(100):
                tell(line, [number, "x" * 1000])

        await until(lambda: not b.peers())
        assert [number for number, _ in desk.told] == list(range(100))


@by_tcp
async def test_a_peer_that_does_not_read_does_not_keep_the_end_waiting(way: Way) -> None:
    async with Node("a", secret=SECRET, limits=Limits(closing=0.1), dead_after=60) as a:
        puppet = await Puppet.dial(await a.listen(LOCAL))
        await until(lambda: a.peers())
        told = Reasons(a)
        with anyio.fail_after(20):
            await a.close()
        await until(lambda: told.told)
        await puppet.stream.aclose()


# -- slow and silent peers ------------------------------------------------------------------------


async def reach(node: Node, puppet: Puppet) -> tuple[Line, Device]:
    """A Line of a node to a Device of a puppet."""
    device = Device()
    session = puppet.session
    wire = session.mirror.pack(session.exports.mint(device.line(), Right.ALL, Desk()))
    return node.peer("b")._session.mirror.open(wire), device


async def test_a_peer_that_stops_reading_is_lost_and_each_link_fires_once() -> None:
    limits = Limits(outbox=1 << 16, frame=1 << 16, outbox_hard=1 << 18)
    async with Node("a", secret=SECRET, limits=limits, heartbeat=0.1, dead_after=0.4) as a:
        puppet = await Puppet.dial(await a.listen(LOCAL))
        await until(lambda: a.peers())
        told = Reasons(a)
        line, there = await reach(a, puppet)
        near = [monitor(line) for _ in range(3)]

        async def live() -> None:
            with contextlib.suppress(anyio.BrokenResourceError):  # it is lost
                while True:  # it goes on writing signs of life: only its reader hangs
                    puppet.session.outbox.put(Pong(1), urgent=True)
                    await puppet.write()
                    await anyio.sleep(0.05)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tg:
                tg.start_soon(live)
                try:
                    while True:
                        try:
                            tell(line, "x" * 60_000)
                        except BusyError:
                            await anyio.sleep(0.01)
                except NotConnectedError:
                    pass
                tg.cancel_scope.cancel()

        for device in near:
            assert await news(device) == Disconnected(there.id, NoConnection("b"))
            assert silent(device)
        assert len(told.told) == 1  # the system may be the first to notice
        await puppet.stream.aclose()


@two_loops
async def test_a_peer_that_causes_more_than_it_reads_is_lost() -> None:
    """What links cause is never refused; so there is a hard limit."""
    limits = Limits(outbox=1 << 12, frame=1 << 12, outbox_hard=1 << 14)
    async with Node("a", secret=SECRET, limits=limits) as a:
        puppet = await Puppet.dial(await a.listen(LOCAL))
        await until(lambda: a.peers())
        told = Reasons(a)
        line, _ = await reach(a, puppet)

        for _ in range(2000):
            line.shutdown()

        await until(lambda: told.told)
        assert "bytes wait to be written to node 'b'" in told.told[0]
        assert not line.connected
        await puppet.stream.aclose()


async def attached(a: Node) -> Puppet:
    """One that is connected in memory, which has no time of its own."""
    here, there = pair()
    puppet = Puppet(there, dialled=False)
    async with anyio.create_task_group() as tg:
        tg.start_soon(puppet.shake)
        await a.attach(here, dial=True)
    return puppet


async def listen(puppet: Puppet) -> None:
    """Read, and never answer."""
    async for _ in puppet.stream:
        pass


@virtual
async def test_a_peer_that_falls_silent_is_lost_in_time() -> None:
    async with Node("a", secret=SECRET, **QUICK) as a:
        puppet = await attached(a)
        told = Reasons(a)
        line, there = await reach(a, puppet)
        near = monitor(line)
        began = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(listen, puppet)
            assert await news(near) == Disconnected(there.id, NoConnection("b"))

        assert 0.2 <= anyio.current_time() - began <= 0.2 + 0.05 / 2 + 0.001
        assert told.told == ["nothing was heard of the peer for 0.2 seconds"]
        await puppet.stream.aclose()


async def test_a_peer_that_falls_silent_is_lost_on_every_loop() -> None:
    async with Node("a", secret=SECRET, heartbeat=0.1, dead_after=1.0) as a:
        puppet = await Puppet.dial(await a.listen(LOCAL))
        await until(lambda: a.peers())
        told = Reasons(a)
        line, there = await reach(a, puppet)
        near = monitor(line)

        async with anyio.create_task_group() as tg:
            tg.start_soon(listen, puppet)
            assert await news(near) == Disconnected(there.id, NoConnection("b"))

        assert told.told[0].startswith("nothing was heard of the peer for ")
        await puppet.stream.aclose()


@virtual
async def test_a_peer_that_writes_but_does_not_read_is_lost() -> None:
    """Its bytes keep coming, and its answers do not."""
    async with Node("a", secret=SECRET, **QUICK) as a:
        puppet = await attached(a)
        told = Reasons(a)
        began = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(listen, puppet)
            while not told.told:
                puppet.session.outbox.put(Pong(1), urgent=True)
                await puppet.write()
                await anyio.sleep(0.04)
            tg.cancel_scope.cancel()

        assert told.told == ["the peer reads nothing any longer, though it writes"]
        assert 0.4 <= anyio.current_time() - began <= 0.4 + 0.05 + 0.05 / 2 + 0.04
        await puppet.stream.aclose()


@virtual
@by_memory
async def test_a_living_peer_is_not_lost_however_little_is_said(way: Way) -> None:
    async with way.pair(heartbeat=0.02, dead_after=0.08) as world:
        told = Reasons(world.a)
        before = world.a.stats().peers[0].frames_in

        await anyio.sleep(10)

        assert not told.told
        assert world.to_b.connected
        assert world.to_a.connected
        assert world.a.stats().peers[0].frames_in - before > 10 / 0.02


@by_tcp
async def test_hearts_beat_on_every_loop(way: Way) -> None:
    async with way.pair(heartbeat=0.02, dead_after=60) as world:
        told = Reasons(world.a)
        before = world.a.stats().peers[0].frames_in

        await until(lambda: world.a.stats().peers[0].frames_in - before > 20)

        assert not told.told
        assert world.to_a.connected


# -- a loop that is late ---------------------------------------------------------------------------


@pytest.mark.heavy
@by_tcp
@two_loops
async def test_a_loop_that_was_late_itself_does_not_take_others_for_dead(way: Way) -> None:
    class Slow(Desk):
        def tell(self, message: Any) -> None:
            time.sleep(message.open())

    async with way.pair(**QUICK) as world:
        far = Device()
        line = await world.reach(far, port=Slow(answers=lambda question: question))
        for seconds in (0.25, 0.45):
            tell(line, seconds)
            assert await call(line, "still there?") == "still there?"
            await anyio.sleep(0.06)  # the hearts beat
            time.sleep(seconds)  # noqa: ASYNC251
            tell(line, 0)
            assert await call(line, "and now?") == "and now?"
            await anyio.sleep(0.06)

        assert world.to_b.connected
        assert world.to_a.connected


# -- streams that fail ---------------------------------------------------------------------------


class Odd(ByteStream):
    """A stream of the user's own, which can be made to fail."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.receiving: BaseException | None = None
        self.sending: BaseException | None = None
        self.closing: BaseException | None = None
        self.sent: list[int] = []

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.receiving is not None:
            raise self.receiving
        data = await self._stream.receive(max_bytes)
        if self.receiving is not None:
            raise self.receiving
        return data

    async def send(self, item: bytes) -> None:
        if self.sending is not None:
            raise self.sending
        self.sent.append(len(item))
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
        if self.closing is not None:
            raise self.closing

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


ERRORS = [
    anyio.BrokenResourceError(),
    anyio.ClosedResourceError(),
    OSError("a cable"),
    ssl.SSLError("bad record"),
    LookupError("its own"),
]


async def joined(a: Node, b: Node) -> tuple[Odd, Any]:
    here, there = pair()
    odd = Odd(here)
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: b.attach(there, dial=False))
        peer = await a.attach(odd, dial=True)
    return odd, peer


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
async def test_a_stream_that_fails_to_read_ends_its_connection_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        odd, peer = await joined(a, b)
        told = Reasons(a)
        odd.receiving = error
        b.peer("a")._session.outbox.put(Ping(0))

        await until(lambda: told.told)

        assert not peer.connected
        again = await joined(a, b)
        assert again[1].connected
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bool(logged) == isinstance(error, LookupError)


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
async def test_a_stream_that_fails_to_write_ends_its_connection_alone(error: Exception) -> None:
    limits = Limits(closing=0.05)
    async with (
        Node("a", secret=SECRET, limits=limits) as a,
        Node("b", secret=SECRET, limits=limits) as b,
    ):
        odd, peer = await joined(a, b)
        told = Reasons(a)
        odd.sending = error
        a.peer("b")._session.outbox.put(Ping(0))

        await until(lambda: told.told)

        assert not peer.connected
        await until(lambda: not b.peers())
        again = await joined(a, b)
        assert again[1].connected


async def test_a_stream_that_cannot_be_closed_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        odd, peer = await joined(a, b)
        odd.closing = LookupError("stuck")
        peer.close()
        await until(lambda: not a.peers())
        await until(lambda: "could not be closed" in caplog.text)


async def test_a_stream_that_is_lost_while_it_writes_is_read_to_its_end() -> None:
    """What the peer has said before it ended, a true fault perhaps, is worth more than the loss."""
    async with Node("a", secret=SECRET) as a:
        here, there = pair()
        odd = Odd(here)
        puppet = Puppet(there, dialled=False)
        async with anyio.create_task_group() as tg:
            tg.start_soon(puppet.shake)
            await a.attach(odd, dial=True)
        line, device = await reach(a, puppet)
        near = monitor(line)
        await puppet.read()  # the Watch

        odd.sending = anyio.BrokenResourceError()
        a.peer("b")._session.outbox.put(Ping(0))
        await anyio.wait_all_tasks_blocked()
        device.disconnect(Killed())
        await puppet.write()
        await there.aclose()

        assert await news(near) == Disconnected(device.id, Killed())
        await until(lambda: not a.peers())


async def test_much_is_written_a_piece_at_a_time() -> None:
    """So that it is seen whether a slow peer takes any."""
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        odd, peer = await joined(a, b)
        desk, far = Desk(), Device()
        b.export("far", far, port=desk)
        line = await peer.find("far")
        for number in range(5):
            tell(line, [number, "x" * 100_000])
        await until(lambda: len(desk.told) == 5)

        assert [number for number, _ in desk.told] == list(range(5))
        assert max(odd.sent) == 1 << 15


class Ready(Odd, Prompt):
    """One that takes bytes at once, when it is let."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__(stream)
        assert isinstance(stream, StapledByteStream)
        self._there: Any = stream.send_stream
        self.may = True
        self.sent_at_once: list[int] = []

    def can_send(self) -> bool:
        return self.may and not self._there.statistics().current_buffer_used

    def send_at_once(self, item: bytes) -> None:
        self._there.send_nowait(item)
        self.sent_at_once.append(len(item))


async def test_little_is_written_at_once_and_much_is_waited_for() -> None:
    rare: dict[str, Any] = {"heartbeat": 60.0, "dead_after": 200.0}  # no sign of life in between
    async with Node("a", secret=SECRET, **rare) as a, Node("b", secret=SECRET, **rare) as b:
        here, there = map(Ready, pair())
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(there, dial=False))
            peer = await a.attach(here, dial=True)
        far = Device()
        b.export("far", far, port=Desk(answers=lambda size: "x" * size))
        line = await peer.find("far")
        for stream in (here, there):
            stream.sent.clear()
            stream.sent_at_once.clear()

        assert await call(line, 1) == "x"
        assert await call(line, 100_000) == "x" * 100_000
        assert (here.sent, len(here.sent_at_once)) == ([], 2)
        assert (len(there.sent), len(there.sent_at_once)) == (4, 1)
        here.may = there.may = False
        assert await call(line, 2) == "xx"
        assert len(here.sent_at_once) == 2
        assert len(there.sent_at_once) == 1


@by_tcp
async def test_calls_of_one_and_of_many_keep_their_order_with_messages(way: Way) -> None:
    async with way.pair() as world:
        desk = Desk()
        desk.answers = lambda question: [question, len(desk.told)]
        far = Device()
        line = await world.reach(far, port=desk)
        count = 0

        async def caller() -> None:
            nonlocal count
            for _ in range(20):
                tell(line, count)
                count += 1
                before = count
                number, told = await call(line, before)
                assert number == before <= told

        await caller()
        async with anyio.create_task_group() as tg:
            for _ in range(8):
                tg.start_soon(caller)
        await caller()
        assert desk.told == list(range(200))


@two_loops
async def test_a_cancelled_attach_closes_its_stream() -> None:
    async with Node("a", secret=SECRET) as a:
        here, there = pair()
        async with there, anyio.create_task_group() as tg:
            tg.start_soon(lambda: a.attach(here, dial=True))
            with anyio.fail_after(20):
                await there.receive()  # its hello
                tg.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), pytest.raises(anyio.EndOfStream):
                    await there.receive()
        assert a.stats().refused == {"NotConnectedError": 1}


@two_loops
async def test_what_is_woken_before_it_runs_or_after_does_no_harm() -> None:
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        here, there = pair()
        async with here, there:
            unborn = a._board._drive(Secured(here), True, None, "nowhere")
            unborn.wake()
            unborn.wake_soon()
            assert unborn.session.outbox.take()  # it was looked at first, not lost
        _, peer = await joined(a, b)
        driver = peer._session.driver
        peer.close()
        await until(lambda: not a.peers())

        driver.wake()
        driver.wake_soon()
        driver.look()
        await anyio.wait_all_tasks_blocked()
        assert not peer.connected


@by_memory
@two_loops
async def test_a_look_is_brought_forward_but_not_put_off(way: Way) -> None:
    async with way.pair() as world:
        driver = world.to_b._session.driver
        now = clock()()
        first = driver._alarm

        driver.hurry(now + 1000)
        assert driver._alarm is first
        driver.hurry(now + 0.001)
        assert driver._alarm is not first
        await until(lambda: driver._alarm.due > now + 1)
        assert world.to_b.connected
