"""Nodes over a real NATS server: in real time, with real processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Device, Disconnected, Line, LinkMode, NoConnection
from backplane.bridge import (
    Limits,
    Node,
    NotConnectedError,
    Retry,
    call,
    tell,
    wait_tell,
)
from backplane.bridge.nats import NatsBroker

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from engine import SECRET, Pair, Server, news, server, until
    from nodes import Reasons
else:
    from .engine import SECRET, Pair, Server, news, server, until
    from .nodes import Reasons

two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]
CLUSTER = "test"
AGAIN = Retry(maximum=0.5, attempts=100)
PATIENT: dict[str, Any] = {"heartbeat": 20.0, "dead_after": 60.0}
"""What is not about silence must not fail for it, however busy the machine."""
QUICK: dict[str, Any] = {"heartbeat": 0.3, "dead_after": 1.5}


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def pair(server: Server, **options: Any) -> Any:
    """Two nodes, each with a client of its own."""
    options = {"secret": SECRET, **PATIENT, **options}
    async with (
        NatsBroker(server.url, cluster=CLUSTER) as broker,
        NatsBroker(server.url, cluster=CLUSTER) as other,
        Node("a", **options) as a,
        Node("b", **options) as b,
    ):
        both = Pair(server, broker, a, b, other)
        await both.connect()
        yield both


class Process:
    """A node ``b`` in a process of its own."""

    def __init__(self, server: Server, backend: str, dead_after: float) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).parent / "nats_child.py"), backend,
                server.url, CLUSTER, "b", SECRET.hex(), str(dead_after),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def process(server: Server, backend: str = "asyncio", dead_after: float = 60) -> Iterator[Process]:
    made = Process(server, backend, dead_after)
    try:
        yield made
    finally:
        made.end()


@contextlib.asynccontextmanager
async def reach(server: Server, dead_after: float = 60) -> Any:
    """A broker, a node ``a``, and a Line to what the process exports."""
    async with (
        NatsBroker(server.url, cluster=CLUSTER) as broker,
        Node("a", secret=SECRET, heartbeat=0.3, dead_after=dead_after) as a,
    ):
        peer = await broker.connect(a, "b", retry=AGAIN)
        yield broker, a, await peer.find("service")


def watch(line: Line) -> Device:
    watcher = Device("watcher")
    watcher.link(line, LinkMode.MONITOR)
    return watcher


async def test_calls_and_messages_and_links_cross_a_server(nats_server: Server) -> None:
    async with pair(nats_server) as both:
        assert await call(both.line, "x" * 900_000) == "x" * 900_000
        for number in range(50):
            await wait_tell(both.line, number)
        assert await call(both.line, "the last") == "the last"
        assert both.port.told == list(range(50))
        both.service.disconnect()

        assert await news(both.watcher) == Disconnected(both.line.id, None)
        assert both.broker.stats().ignored == {}


@two_loops
async def test_more_than_windows_of_messages_arrive_in_order(nats_server: Server) -> None:
    async with pair(nats_server) as both:
        for number in range(400):
            await wait_tell(both.line, [number, "x" * 20_000])
        await until(lambda: len(both.port.told) == 400)

        assert [number for number, _ in both.port.told] == list(range(400))
        assert both.broker.stats().dropped == 0


@two_loops
async def test_a_server_that_takes_little_at_once_is_given_little(tmp_path: Path) -> None:
    with server(tmp_path, "max_payload: 2048") as small:
        async with pair(small) as both:
            assert await call(both.line, "x" * 50_000) == "x" * 50_000


@two_loops
async def test_a_name_that_nobody_has_is_told_at_once(nats_server: Server) -> None:
    async with (
        NatsBroker(nats_server.url, cluster=CLUSTER) as broker,
        Node("a", secret=SECRET, limits=Limits(handshake=60)) as a,
    ):
        with anyio.fail_after(20):  # who listens and does not answer is waited for longer
            with pytest.raises(NotConnectedError, match="nobody listens under that name"):
                await broker.connect(a, "b")


@two_loops
async def test_attempts_that_fail_are_logged(
    nats_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        NatsBroker(nats_server.url, cluster=CLUSTER) as broker,
        Node("a", secret=SECRET) as a,
    ):
        with pytest.raises(NotConnectedError):
            await broker.connect(a, "b", retry=Retry(maximum=0.1, attempts=4))
    told = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert len(told) == 2
    assert all("nobody listens under that name" in text and "node 'b'" in text for text in told)
    assert told[1] == f"{told[0]} (after 2 attempts)"


@two_loops
async def test_nodes_of_another_cluster_are_not_reached(nats_server: Server) -> None:
    async with (
        NatsBroker(nats_server.url, cluster="one") as one,
        NatsBroker(nats_server.url, cluster="other") as other,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as b,
    ):
        await other.listen(b)

        with pytest.raises(NotConnectedError):
            await one.connect(a, "b")


@two_loops
async def test_a_node_that_has_ended_is_called_in_vain(nats_server: Server) -> None:
    async with (
        NatsBroker(nats_server.url, cluster=CLUSTER) as broker,
        Node("a", secret=SECRET, limits=Limits(handshake=1)) as a,
    ):
        async with Node("b", secret=SECRET) as b:
            await broker.listen(b)
            await broker.connect(a, "b", retry=AGAIN)
        await until(lambda: not a.peers())

        with pytest.raises(NotConnectedError):
            await broker.connect(a, "b")
        assert broker.stats().streams == 0


@two_loops
async def test_a_stranger_s_datagrams_are_counted_and_leave_no_state(nats_server: Server) -> None:
    async with pair(nats_server) as both:
        inbox = f"bp.{CLUSTER}.{both.b.incarnation.hex()}"
        for data in (b"", b"garbage", bytes(100_000), b"\xb1" + bytes(99), b"\xb4" + bytes(60)):
            both.broker._client.publish(inbox, data)
            both.broker._client.publish(f"bp.{CLUSTER}.name.b", data)

        await until(lambda: sum(both.other.stats().ignored.values()) == 10)
        assert both.other.stats().ignored == {"garbage": 9, "unknown connection": 1}
        assert both.other.stats().streams == 1
        assert both.b.stats().handshakes == 0
        assert await call(both.line, 1) == 1


# -- servers that go away -----------------------------------------------------------------------


@two_loops
async def test_without_a_server_there_is_no_broker(nats_server: Server) -> None:
    nats_server.kill()

    with pytest.raises(NotConnectedError, match="connect with the NATS server"):
        async with NatsBroker(nats_server.url, cluster=CLUSTER, timeout=0.5):
            pytest.fail("there is no server")


@two_loops
async def test_who_waits_for_a_server_can_be_cancelled(nats_server: Server) -> None:
    nats_server.kill()

    with anyio.move_on_after(0.3) as scope:
        async with NatsBroker(nats_server.url, cluster=CLUSTER, timeout=60):
            pytest.fail("there is no server")

    assert scope.cancelled_caught


@two_loops
async def test_a_server_that_does_not_let_it_in_is_told_at_once(tmp_path: Path) -> None:
    with server(tmp_path, "authorization { token: token }") as closed:
        with anyio.fail_after(20), pytest.raises(NotConnectedError) as caught:
            async with NatsBroker(closed.url, cluster=CLUSTER, timeout=60):
                pytest.fail("it must not be let in")
        assert "Authorization Violation" in str(caught.value.__cause__)

        async with NatsBroker(closed.url, cluster=CLUSTER, options={"token": "token"}) as broker:
            assert broker.stats().connected


async def test_what_has_lost_nothing_goes_on_after_a_restart_of_the_server(
    nats_server: Server,
) -> None:
    async with pair(nats_server) as both:
        assert await call(both.line, 1) == 1
        nats_server.kill()
        await until(lambda: not both.broker.stats().connected)
        nats_server.start()
        await until(lambda: both.broker.stats().connections == 2)
        await until(lambda: both.other.stats().connections == 2)

        assert await call(both.line, 2) == 2
        assert both.line.connected


@two_loops
async def test_what_is_lost_when_a_server_dies_under_load_is_a_lost_connection(
    nats_server: Server,
) -> None:
    async with pair(nats_server, **QUICK) as both:
        sent = 0
        with contextlib.suppress(NotConnectedError):
            for sent in range(1, 1000):
                await wait_tell(both.line, [sent, "x" * 1000])
                if sent == 300:
                    nats_server.kill()
                    nats_server.start()
                await anyio.sleep(0.001)
        await until(lambda: not both.line.connected or len(both.port.told) == sent)

        told = [number for number, _ in both.port.told]
        assert told == list(range(1, len(told) + 1))
        if len(told) < sent:
            assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))
        peer = await both.broker.connect(both.a, "b", retry=AGAIN)
        assert await call(await peer.find("service"), 1) == 1


@pytest.mark.heavy
@two_loops
async def test_a_server_that_stands_still_is_a_lost_connection_until_it_goes_on(
    nats_server: Server,
) -> None:
    async with pair(nats_server, **QUICK) as both:
        reasons = Reasons(both.a)
        nats_server.pause()

        assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))
        assert reasons.told[0].startswith("nothing was heard of the peer for ")
        nats_server.go_on()
        peer = await both.broker.connect(both.a, "b", retry=AGAIN)
        assert await call(await peer.find("service"), 1) == 1


@pytest.mark.heavy
@two_loops
async def test_a_client_that_is_thrown_out_for_good_is_replaced(tmp_path: Path) -> None:
    with server(tmp_path) as made:
        async with pair(made, **QUICK) as both:
            first = both.broker._client._client
            made.configure("authorization { token: secret }")
            await until(lambda: first.is_closed)
            assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))
            assert not both.broker.stats().connected
            with pytest.raises(NotConnectedError, match="the NATS server is not there"):
                await both.broker.connect(both.a, "b")

            made.configure("")
            await until(lambda: both.other.stats().connected)
            peer = await both.broker.connect(both.a, "b", retry=AGAIN)
            assert await call(await peer.find("service"), 1) == 1


# -- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@two_loops
async def test_a_node_in_another_process_is_reached(nats_server: Server, backend: str) -> None:
    with process(nats_server, backend):
        async with reach(nats_server) as (_, _, line):
            assert await call(line, {"a": [1, 2.5, b"three"]}) == {"a": [1, 2.5, b"three"]}


@pytest.mark.heavy
@two_loops
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_process_that_is_heard_no_longer_is_a_lost_connection(
    nats_server: Server, how: signal.Signals
) -> None:
    with process(nats_server) as child:
        async with reach(nats_server, dead_after=3) as (_, a, line):
            watcher = watch(line)
            assert await call(line, 1) == 1
            reasons = Reasons(a)
            child.send(how)

            assert await news(watcher) == Disconnected(line.id, NoConnection("b"))
            assert reasons.told[0].startswith("nothing was heard of the peer for ")


@pytest.mark.heavy
@two_loops
async def test_a_process_that_was_killed_is_back_with_its_next_life(nats_server: Server) -> None:
    """Long before its silence counts: the former one is asked whether it lives."""
    with process(nats_server) as child:
        async with reach(nats_server) as (broker, a, line):
            watcher = watch(line)
            child.end()
            with process(nats_server), anyio.fail_after(30):
                peer = await broker.connect(a, "b")

                assert await news(watcher) == Disconnected(line.id, NoConnection("b"))
                assert await call(await peer.find("service"), 2) == 2


@two_loops
async def test_who_takes_nothing_for_a_while_is_waited_for_and_loses_nothing(
    nats_server: Server,
) -> None:
    with process(nats_server) as child:
        async with reach(nats_server) as (broker, a, line):
            child.send(signal.SIGSTOP)
            sent = 0
            while a.stats().peers[0].waiting < 1 << 20:  # nothing more is taken
                tell(line, [sent, "x" * 50_000])
                sent += 1
                await anyio.sleep(0.001)
            child.send(signal.SIGCONT)
            for number in range(sent, 200):
                await wait_tell(line, [number, "x" * 50_000])
            await until(lambda: a.stats().peers[0].waiting == 0)

            assert await call(line, "told", timeout=60) == list(range(200))
            assert 20 < sent < 100
            assert broker.stats().dropped == 0
