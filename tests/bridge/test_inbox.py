"""Nodes over a messaging engine that does its worst, in memory and in virtual time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import Disconnected, NoConnection, testing
from backplane.bridge import (
    AddressError,
    AuthError,
    Limits,
    Node,
    NodeDown,
    NodeUp,
    NotConnectedError,
    Retry,
    _seal,
    call,
    tell,
    wait_tell,
)
from backplane.bridge._datagrams import session_of
from backplane.bridge._transports import StreamAttribute
from backplane.bridge.nats import NatsBroker

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from engine import SECRET, Engine, broker, news, pair, until
else:
    from .engine import SECRET, Engine, broker, news, pair, until

virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
pytestmark = pytest.mark.anyio
sealed_or_bare = pytest.mark.parametrize("seal", [True, False], ids=["sealed", "bare"])


def is_data(data: bytes) -> bool:
    return session_of(data) is not None


# -- good days ----------------------------------------------------------------------------------


@sealed_or_bare
async def test_calls_and_messages_and_links_cross_an_engine(seal: bool) -> None:
    async with pair(Engine(), seal=seal) as both:
        assert await call(both.line, {"much": "x" * 100_000}) == {"much": "x" * 100_000}
        tell(both.line, "hello")
        await until(lambda: both.port.told)
        both.service.disconnect()

        assert await news(both.watcher) == Disconnected(both.line.id, None)
    assert both.port.told == ["hello"]


async def test_more_than_a_window_crosses_in_order() -> None:
    async with pair(Engine(), window=4096) as both:
        for number in range(300):
            await wait_tell(both.line, [number, "x" * 1000])
        assert await call(both.line, "the last", timeout=60) == "the last"

    assert [number for number, _ in both.port.told] == list(range(300))


async def test_the_engine_sees_nothing_of_what_is_sealed() -> None:
    engine = Engine()
    async with pair(engine) as both:
        await call(both.line, "a word that would stand out")

    everything = b"".join(data for subject, data in engine.sent)
    assert b"stand out" not in everything
    assert b"service" not in everything
    assert SECRET not in everything


async def test_nodes_call_each_other_at_the_same_time_and_have_one_connection() -> None:
    engine = Engine()
    async with broker(engine) as made, Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        await made.listen(a)
        await made.listen(b)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tg:
                tg.start_soon(made.connect, a, "b")
                tg.start_soon(made.connect, b, "a")
            await until(lambda: made.stats().streams == 2)

        assert [len(node.peers()) for node in (a, b)] == [1, 1]


async def test_a_name_with_dots_is_reached() -> None:
    async with (
        broker(Engine()) as made,
        Node("a", secret=SECRET) as a,
        Node("b.c..d@e", secret=SECRET) as b,
    ):
        assert await made.listen(b) == "bp.test.name.b%2Ec%2E%2Ed@e"

        assert (await made.connect(a, "b.c..d@e")).name == "b.c..d@e"


async def test_either_of_several_secrets_will_do() -> None:
    new = os.urandom(32)
    async with (
        broker(Engine()) as made,
        Node("a", secret=SECRET) as a,
        Node("b", secret=[new, SECRET]) as b,
    ):
        await made.listen(b)

        assert (await made.connect(a, "b")).connected


async def test_a_node_that_ends_leaves_nothing_at_the_engine() -> None:
    engine = Engine()
    async with broker(engine) as made:
        async with Node("b", secret=SECRET) as b:
            async with Node("a", secret=SECRET) as a:
                await made.listen(b)
                await made.connect(a, "b")
                await until(b.peers)
            await until(lambda: not b.peers())
        await until(lambda: not engine.hears)

        assert made.stats().streams == 0


# -- what is lost -------------------------------------------------------------------------------


@virtual
@sealed_or_bare
async def test_a_datagram_lost_in_the_middle_is_missed_with_the_next(seal: bool) -> None:
    engine = Engine()
    async with pair(engine, seal=seal) as both:
        began = anyio.current_time()
        engine.loses = lambda subject, data: is_data(data)
        tell(both.line, "lost")
        await anyio.sleep(0.1)
        engine.loses = lambda subject, data: False
        tell(both.line, "after a hole")

        assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))
        await until(lambda: not both.b.peers())
        assert anyio.current_time() - began < 0.2
    assert both.port.told == []


@virtual
async def test_the_last_datagram_lost_is_missed_within_a_heartbeat() -> None:
    engine = Engine()
    async with pair(engine, heartbeat=4.0, dead_after=100.0) as both:
        await anyio.sleep(100)
        engine.loses = lambda subject, data: is_data(data)
        began = anyio.current_time()
        tell(both.line, "the last")
        await anyio.sleep(0.1)
        engine.loses = lambda subject, data: False

        assert await news(both.watcher, 1000) == Disconnected(both.line.id, NoConnection("b"))
        await until(lambda: not both.b.peers())
        assert anyio.current_time() - began <= 4.0
    assert both.port.told == []


@virtual
async def test_an_engine_that_carries_nothing_any_longer_is_a_lost_connection() -> None:
    engine = Engine()
    async with pair(engine, heartbeat=4.0, dead_after=12.0) as both:
        downs: list[Any] = []
        both.b.subscribe(downs.append)
        await anyio.sleep(100)
        engine.lose_all()
        began = anyio.current_time()

        assert await news(both.watcher, 1000) == Disconnected(both.line.id, NoConnection("b"))
        await until(lambda: downs)
        assert 8.0 <= anyio.current_time() - began <= 12.0 + 2.0 + 0.1
        assert isinstance(downs[0], NodeDown)


@virtual
@pytest.mark.parametrize("lost", range(12))
async def test_whichever_datagram_of_a_beginning_is_lost_the_attempt_ends_and_leaves_nothing(
    lost: int,
) -> None:
    engine = Engine()
    count = iter(range(1000))
    engine.loses = lambda subject, data: next(count) == lost
    async with (
        broker(engine) as made,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as b,
    ):
        await made.listen(b)
        try:
            peer = await made.connect(a, "b")
        except (NotConnectedError, TimeoutError):
            pass
        else:
            assert lost >= 4  # the call, its answer, and the first three words of the dialler
            assert peer.name == "b"
        await anyio.sleep(60)

        assert len(a.peers()) == len(b.peers())
        assert made.stats().streams == 2 * len(a.peers())
        assert b.stats().handshakes == 0


@virtual
async def test_a_connection_that_loses_its_beginning_is_tried_again() -> None:
    engine = Engine()
    count = iter(range(1000))
    engine.loses = lambda subject, data: next(count) in (0, 2, 5)
    async with (
        broker(engine) as made,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as b,
    ):
        await made.listen(b)

        peer = await made.connect(a, "b", retry=Retry(attempts=10))

        assert peer.connected


@given(
    st.lists(st.sampled_from(["carry", "carry", "carry", "lose", "repeat", "swap"]), max_size=60)
)
def test_what_arrives_is_always_a_beginning_of_what_was_sent(fates: list[str]) -> None:
    async def scenario() -> None:
        engine = Engine()
        async with pair(engine) as both:
            fate = iter(fates)
            held: list[tuple[str, bytes]] = []

            def loses(subject: str, data: bytes) -> bool:
                what = next(fate, "carry")
                hears = engine.hears.get(subject, [])
                if what == "repeat":
                    for hear in hears:
                        hear(subject, data, None)
                elif what == "swap":
                    held.append((subject, data))
                elif what == "carry" and held:
                    for each in [(subject, data), *held]:
                        for hear in engine.hears.get(each[0], []):
                            hear(*each, None)
                    held.clear()
                    return True
                return what in ("lose", "swap")

            engine.loses = loses
            for number in range(40):
                try:
                    tell(both.line, number)
                except NotConnectedError:
                    break
                await anyio.sleep(0.01)
            engine.loses = lambda subject, data: False
            await anyio.sleep(60)
            told = both.port.told
            assert told == list(range(len(told)))
            assert both.line.connected == bool(both.b.peers())
            assert len(told) == 40 or not both.line.connected

    testing.run(scenario)


# -- strangers ----------------------------------------------------------------------------------


@virtual
async def test_a_stranger_s_datagrams_are_counted_and_leave_no_state() -> None:
    engine = Engine()
    async with pair(engine) as both:
        await anyio.sleep(0.1)
        before = both.b.stats()
        inbox = f"bp.test.{both.b.incarnation.hex()}"
        opening = _seal.pack_open(_open(both.b), os.urandom(32))
        noise = b"\x00" + os.urandom(599)  # whose first byte names no kind of datagram
        for data in (b"", b"garbage", noise, b"\xb1" + os.urandom(99), opening):
            engine.publish(inbox, data)
            engine.publish("bp.test.name.b", data)
        engine.publish(inbox, b"\xb4" + os.urandom(60))
        engine.publish(inbox, _seal.pack_answer(_answer(), SECRET, opening))
        engine.hears[f"{inbox}.*"][0](f"{inbox}.{os.urandom(16).hex()}", b"", "503")
        await anyio.sleep(0.1)

        assert both.broker.stats().ignored == {
            "garbage": 9, "stranger": 1, "unknown connection": 1, "late answer": 1, "status": 1,
        }  # fmt: skip
        assert both.broker.stats().streams == 2
        assert both.b.stats() == before
        assert await call(both.line, 1) == 1


def _open(called: Node, **changes: Any) -> _seal.Open:
    opening = _seal.Open(
        os.urandom(16), os.urandom(16), os.urandom(32), 1 << 20, [1], "a", called.name, True
    )
    return msgspec.structs.replace(opening, **changes)


def _answer() -> _seal.Answer:
    return _seal.Answer(os.urandom(16), os.urandom(16), os.urandom(32), 1 << 20, 1)


@virtual
async def test_a_forged_datagram_is_counted_and_the_connection_lives() -> None:
    engine = Engine()
    async with pair(engine) as both:
        tell(both.line, "one")
        await until(lambda: both.port.told)
        subject, true = next(each for each in reversed(engine.sent) if is_data(each[1]))
        number = int.from_bytes(true[17:25], "big")
        for each in (0, number, number + 1, number + 2, 2**64 - 1):
            forged = true[:17] + each.to_bytes(8, "big") + true[25:33] + os.urandom(30)
            engine.publish(subject, forged)
        await anyio.sleep(0.1)

        assert both.broker.stats().ignored == {"forged": 5}
        assert await call(both.line, 2) == 2


@virtual
async def test_without_a_seal_a_forged_number_ends_the_connection() -> None:
    engine = Engine()
    async with pair(engine, seal=False) as both:
        tell(both.line, "one")
        await until(lambda: both.port.told)
        subject, true = next(each for each in reversed(engine.sent) if is_data(each[1]))

        engine.publish(subject, true[:17] + (99).to_bytes(8, "big") + true[25:])

        assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))


@virtual
@sealed_or_bare
async def test_a_repeated_datagram_ends_the_connection_and_is_not_delivered(seal: bool) -> None:
    engine = Engine()
    async with pair(engine, seal=seal) as both:
        tell(both.line, "once")
        await until(lambda: both.port.told)
        inbox = f"bp.test.{both.b.incarnation.hex()}"
        true = [data for subject, data in engine.sent if subject == inbox and is_data(data)][-1]

        engine.publish(inbox, true)

        assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))
    assert both.port.told == ["once"]


@virtual
@sealed_or_bare
async def test_who_has_another_secret_gets_no_answer(seal: bool) -> None:
    engine = Engine()
    async with (
        broker(engine, seal=seal) as made,
        Node("a", secret=os.urandom(32)) as a,
        Node("b", secret=SECRET) as b,
    ):
        await made.listen(b)
        began = anyio.current_time()

        with pytest.raises(NotConnectedError, match="nobody answered who has the same secret"):
            await made.connect(a, "b")

        assert anyio.current_time() - began == pytest.approx(5)
        assert [subject for subject, data in engine.sent] == ["bp.test.name.b"]
        assert made.stats().ignored == {"stranger": 1}
        assert b.stats().refused == {}


@virtual
async def test_an_answer_of_a_stranger_is_left_and_the_true_one_is_taken() -> None:
    engine = Engine()
    async with (
        broker(engine) as made,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as b,
    ):
        await made.listen(b)
        strangers = 0

        def answer_first(subject: str, data: bytes) -> bool:
            nonlocal strangers
            opening = _seal.read_open(data)
            if _seal.is_open(data) and opening is not None and not strangers:
                inbox = f"bp.test.{opening.incarnation.hex()}"
                strangers = 20
                for _ in range(strangers):
                    lie = msgspec.structs.replace(_answer(), session=opening.session)
                    engine.publish(inbox, _seal.pack_answer(lie, os.urandom(32), data))
            return False

        engine.loses = answer_first
        async with anyio.create_task_group() as tg:
            tg.start_soon(made.connect, a, "b")

        assert a.peer("b").incarnation == b.incarnation
        assert made.stats().ignored == {"stranger": 16, "too much": 4}


@virtual
async def test_a_recorded_call_that_is_repeated_comes_to_nothing() -> None:
    engine = Engine()
    async with pair(engine) as both:
        subject, recorded = engine.sent[0]
        assert _seal.is_open(recorded)
        engine.publish(subject, recorded)
        await anyio.sleep(0.1)
        assert both.broker.stats().ignored == {"repeated call": 1}

        both.a.peer("b").close()
        await until(lambda: both.broker.stats().streams == 0)
        engine.publish(subject, recorded)  # nobody hears the answer
        await until(lambda: both.broker.stats().streams == 1)
        await anyio.sleep(10)

        assert both.broker.stats().streams == 0
        assert both.b.peers() == []


@virtual
async def test_calls_that_are_not_followed_by_anything_are_limited() -> None:
    engine = Engine()
    limits = Limits(pending_handshakes=3)
    async with broker(engine) as made, Node("b", secret=SECRET, limits=limits) as b:
        await made.listen(b)
        for _ in range(100):
            engine.publish("bp.test.name.b", _seal.pack_open(_open(b), SECRET))
        await anyio.sleep(0.1)
        assert made.stats().streams == 3
        assert made.stats().ignored == {"too many handshakes": 61, "too much": 36}
        await anyio.sleep(10)

        assert made.stats().streams == 0
        async with Node("a", secret=SECRET) as a:
            assert (await made.connect(a, "b")).connected


CHANGES: dict[str, dict[str, Any]] = {
    "version": {"versions": [2, 3]},
    "seal": {"sealed": False},
    "garbage": {"to": "c"},
}


@virtual
@pytest.mark.parametrize(("what", "change"), CHANGES.items(), ids=CHANGES)
async def test_a_call_that_makes_no_sense_here_is_counted(
    what: str, change: dict[str, Any]
) -> None:
    engine = Engine()
    async with broker(engine) as made, Node("b", secret=SECRET) as b:
        await made.listen(b)

        engine.publish("bp.test.name.b", _seal.pack_open(_open(b, **change), SECRET))
        await anyio.sleep(0.1)

        assert made.stats().ignored == {what: 1}
        assert made.stats().streams == 0


@virtual
async def test_only_one_who_seals_and_one_who_does_not_have_no_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine()
    async with (
        broker(engine) as one,
        broker(engine, seal=False) as other,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as b,
    ):
        await one.listen(b)

        with pytest.raises(NotConnectedError):
            await other.connect(a, "b")

    assert "no connection with 'a': only one of them seals" in caplog.text


@sealed_or_bare
async def test_both_ends_are_bound_to_the_same_and_no_two_connections_are(seal: bool) -> None:
    bindings = []
    for _ in range(3):
        async with pair(Engine(), seal=seal) as both:
            ends = [
                stream.extra(StreamAttribute.binding)
                for inbox in both.broker._inboxes.values()
                for stream in inbox.streams.values()
            ]
            assert len(ends) == 2
            assert ends[0] == ends[1]
            bindings.append(ends[0])

    assert len(set(bindings)) == 3


@virtual
async def test_who_calls_by_another_name_than_he_has_is_refused() -> None:
    engine = Engine()
    async with broker(engine) as made, Node("b", secret=SECRET) as b:
        await made.listen(b)
        async with Node("c", secret=SECRET) as c, Node("a", secret=SECRET) as a:
            await made.connect(a, "b")
            inbox = made._inboxes[a]
            stream = await inbox.call("b")

            with pytest.raises(NotConnectedError):
                await c.attach(stream, dial=True)

        assert b.stats().refused["AuthError"] == 1


async def test_the_proofs_of_a_session_are_bound_to_its_stream() -> None:
    from anyio.streams.stapled import StapledByteStream

    class Bound(StapledByteStream):
        binding = b""

        @property
        def extra_attributes(self) -> dict[Any, Callable[[], Any]]:
            return {StreamAttribute.binding: lambda: self.binding}

    here, there = _streams(Bound)
    here.binding, there.binding = b"one", b"other"
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        errors: list[Exception] = []

        async def answer() -> None:
            try:
                await b.attach(there, dial=False)
            except AuthError as error:
                errors.append(error)

        async with anyio.create_task_group() as tg:
            tg.start_soon(answer)
            with pytest.raises(NotConnectedError):
                await a.attach(here, dial=True)
    assert "has another secret" in str(errors[0])


def _streams(kind: Any) -> tuple[Any, Any]:
    from anyio.streams.buffered import BufferedByteReceiveStream

    to_b, b_in = anyio.create_memory_object_stream[bytes](4)
    to_a, a_in = anyio.create_memory_object_stream[bytes](4)
    return (
        kind(to_b, BufferedByteReceiveStream(a_in)),
        kind(to_a, BufferedByteReceiveStream(b_in)),
    )


# -- names and blocks ---------------------------------------------------------------------------


async def test_a_name_that_nobody_has_is_told_at_once() -> None:
    async with broker(Engine()) as made, Node("a", secret=SECRET) as a:
        with pytest.raises(NotConnectedError, match="nobody listens under that name"):
            await made.connect(a, "nobody")


@virtual
@sealed_or_bare
async def test_of_two_nodes_with_one_name_the_first_to_answer_is_taken(seal: bool) -> None:
    engine = Engine()
    async with (
        broker(engine, seal=seal) as made,
        broker(engine, seal=seal) as other,
        Node("a", secret=SECRET) as a,
        Node("b", secret=SECRET) as first,
        Node("b", secret=SECRET) as second,
    ):
        await made.listen(first)
        await other.listen(second)

        peer = await made.connect(a, "b")
        await anyio.sleep(10)

        assert peer.connected
        assert [len(node.peers()) for node in (first, second)] in ([1, 0], [0, 1])
        assert made.stats().streams + other.stats().streams == 2
        late = made.stats().ignored.keys()
        assert late - {"late answer"} == {"unknown connection"}  # the second gives up


@virtual
async def test_a_new_incarnation_takes_the_place_of_one_that_is_cut_off() -> None:
    engine = Engine()
    async with pair(engine) as both:
        old = f"bp.test.{both.b.incarnation.hex()}"
        new = False
        engine.loses = lambda subject, data: (
            subject == old or (subject == "bp.test.name.b" and not new)
        )
        async with broker(engine) as made, Node("b", secret=SECRET) as b:
            del engine.hears["bp.test.name.b"]
            new = True
            await made.listen(b)

            peer = await both.broker.connect(both.a, "b")

            assert peer.incarnation == b.incarnation
            assert await news(both.watcher) == Disconnected(both.line.id, NoConnection("b"))


async def test_a_node_does_not_call_itself() -> None:
    async with broker(Engine()) as made, Node("a", secret=SECRET) as a:
        with pytest.raises(ValueError, match="cannot connect with itself"):
            await made.connect(a, "a")


async def test_a_node_without_a_secret_is_refused() -> None:
    async with broker(Engine()) as made, Node("a") as a:
        with pytest.raises(AddressError, match="has no secret"):
            await made.connect(a, "b")
        with pytest.raises(AddressError, match="has no secret"):
            await made.listen(a)


async def test_a_node_outside_its_block_is_refused() -> None:
    async with broker(Engine()) as made:
        with pytest.raises(RuntimeError, match="enter the node first"):
            await made.listen(Node("a", secret=SECRET))


@pytest.mark.parametrize("name", ["", "my shop", "a.b", ">", "*", "x" * 65])
def test_a_cluster_that_makes_no_subject_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cluster="):
        NatsBroker(cluster=name)


def test_a_window_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1024 bytes"):
        NatsBroker(cluster="test", window=1023)


@virtual
async def test_when_the_broker_s_block_ends_both_nodes_hear_of_it_at_once() -> None:
    engine = Engine()
    async with broker(engine) as other, Node("b", secret=SECRET) as b:
        downs: list[Any] = []
        b.subscribe(downs.append)
        await other.listen(b)
        async with Node("a", secret=SECRET) as a:
            async with broker(engine) as made:
                peer = await made.connect(a, "b")
                await until(b.peers)
                ends = anyio.current_time()
            await until(lambda: not peer.connected and len(downs) == 2)
            assert anyio.current_time() - ends < 0.1

    assert [type(each) for each in downs] == [NodeUp, NodeDown]


async def test_what_the_block_raises_comes_out_as_itself() -> None:
    async def block() -> None:
        async with broker(Engine()) as made, Node("a", secret=SECRET) as a:
            await made.listen(a)
            raise KeyError

    with pytest.raises(KeyError):
        await block()


@virtual
async def test_an_attempt_that_is_cancelled_leaves_nothing() -> None:
    engine = Engine()
    for lost in range(6):
        count = iter(range(1000))
        engine.loses = lambda subject, data: next(count) >= lost  # noqa: B023
        async with (
            broker(engine) as made,
            Node("a", secret=SECRET) as a,
            Node("b", secret=SECRET) as b,
        ):
            await made.listen(b)
            with anyio.move_on_after(1):
                await made.connect(a, "b")
            await anyio.sleep(30)

            assert made.stats().streams == 0
            assert (a.peers(), b.peers()) == ([], [])
