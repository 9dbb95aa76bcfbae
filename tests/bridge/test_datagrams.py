"""Bytes over datagrams: what is lost, repeated or out of its order is never passed over."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.bridge import FrameError
from backplane.bridge._datagram_stream import DatagramStream
from backplane.bridge._datagrams import Datagrams, ForeignError, session_of
from backplane.bridge._seal import ChaCha

SESSION = b"sixteen bytes id"
SECRET = b"a secret of sixteen bytes"


def pair(seal: bool = False, **options: Any) -> tuple[Datagrams, Datagrams]:
    """Both ends of a connection; the first has dialled."""
    seals = [
        ChaCha(SECRET, b"said", dialled=dialled) if seal else None for dialled in (True, False)
    ]
    return (
        Datagrams(SESSION, dialled=True, seal=seals[0], **options),
        Datagrams(SESSION, dialled=False, seal=seals[1], **options),
    )


# -- without a loop ---------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [False, True], ids=["bare", "sealed"])
@given(pieces=st.lists(st.binary(max_size=300)), back=st.binary(min_size=1, max_size=300))
def test_bytes_come_out_as_they_went_in_in_both_directions(
    seal: bool, pieces: list[bytes], back: bytes
) -> None:
    a, b = pair(seal)

    assert [b.take(a.pack(piece)) for piece in pieces] == pieces
    assert a.take(b.pack(back)) == back


class Carrier:
    """Carries the datagrams of one direction, well or badly."""

    def __init__(self, sender: Datagrams, receiver: Datagrams) -> None:
        self.sender = sender
        self.receiver = receiver
        self.under_way: list[bytes] = []
        self.delivered: list[bytes] = []
        self.sent = b""
        self.came = b""
        self.faulty = False
        self.broken = False

    def send(self, data: bytes) -> None:
        self.under_way.append(self.sender.pack(data))
        self.sent += data

    def deliver(self) -> None:
        if self.under_way:
            self._give(self.under_way.pop(0), faulty=self.faulty)

    def lose(self) -> None:
        if self.under_way:
            self.under_way.pop(0)
            self.faulty = True

    def repeat(self, which: int) -> None:
        if self.delivered:
            self._give(self.delivered[which % len(self.delivered)], faulty=True)

    def overtake(self) -> None:
        if len(self.under_way) > 1:
            self._give(self.under_way.pop(1), faulty=True)

    def _give(self, datagram: bytes, *, faulty: bool) -> None:
        self.faulty = faulty
        try:
            self.came += self.receiver.take(datagram)
        except ForeignError:
            raise AssertionError("a datagram of this connection was taken for foreign") from None
        except FrameError:
            self.broken = True
        else:
            self.delivered.append(datagram)
        assert self.broken == faulty


STEPS = st.one_of(
    st.tuples(st.just("send"), st.binary(max_size=5)),
    st.tuples(st.just("deliver")),
    st.tuples(st.just("lose")),
    st.tuples(st.just("repeat"), st.integers(0, 9)),
    st.tuples(st.just("overtake")),
)


@pytest.mark.parametrize("seal", [False, True], ids=["bare", "sealed"])
@given(steps=st.lists(STEPS, max_size=40))
def test_the_first_datagram_after_a_loss_a_repeat_or_an_overtaking_is_an_error(
    seal: bool, steps: list[tuple[Any, ...]]
) -> None:
    carrier = Carrier(*pair(seal))

    for name, *arguments in steps:
        getattr(carrier, name)(*arguments)
        assert carrier.sent.startswith(carrier.came)
        if carrier.broken:
            return

    carrier.send(b"the end")
    while carrier.under_way and not carrier.broken:
        carrier.deliver()
    assert carrier.broken or carrier.came == carrier.sent


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_foreign_and_change_nothing(garbage: bytes) -> None:
    a, b = pair()

    with pytest.raises(ForeignError):
        b.take(garbage)

    assert b.take(a.pack(b"hello")) == b"hello"


def test_a_datagram_of_another_connection_is_foreign() -> None:
    a, b = pair()
    other = Datagrams(os.urandom(16), dialled=True)

    with pytest.raises(ForeignError):
        b.take(other.pack(b"hello"))

    assert b.take(a.pack(b"hello")) == b"hello"


def test_a_datagram_that_is_sent_back_to_its_sender_is_foreign() -> None:
    a, b = pair()
    datagram = a.pack(b"hello")

    with pytest.raises(ForeignError):
        a.take(datagram)

    assert b.take(datagram) == b"hello"


@given(position=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_sealed_datagram_with_any_bit_changed_is_foreign_and_the_true_one_is_taken(
    position: int, bit: int
) -> None:
    a, b = pair(seal=True)
    datagram = a.pack(b"hello", last=True)
    forged = bytearray(datagram)
    forged[position % len(forged)] ^= 1 << bit

    with pytest.raises(ForeignError):
        b.take(bytes(forged))

    assert not b.ended
    assert b.take(datagram) == b"hello"
    assert b.ended


def test_a_sealed_datagram_does_not_show_what_it_carries() -> None:
    a, _ = pair(seal=True)

    assert b"hello" not in a.pack(b"hello")


@given(window=st.integers(1024, 5000), sizes=st.lists(st.integers(1, 4000), min_size=1))
def test_a_sender_never_has_more_than_the_window_under_way_and_is_never_stuck(
    window: int, sizes: list[int]
) -> None:
    a, b = pair(window=window, peer_window=window)
    untaken: list[bytes] = []

    for size in sizes:
        left = size
        while left:
            if a.room:
                data = bytes(min(left, a.room))
                left -= len(data)
                untaken.append(b.take(a.pack(data)))  # raises beyond the window
            else:
                assert untaken
                while untaken:
                    if b.free(untaken.pop(0)):
                        a.take(b.pack())


def test_a_peer_that_sends_more_than_the_window_is_cut_off() -> None:
    a, b = pair(window=1024, peer_window=1 << 20)

    b.take(a.pack(bytes(800)))

    with pytest.raises(FrameError, match="more than the window"):
        b.take(a.pack(bytes(200)))


def test_datagrams_without_bytes_cost_nothing_of_the_window() -> None:
    a, b = pair(window=1024, peer_window=1024)

    for _ in range(100):
        assert b.take(a.pack()) == b""
    assert a.room > 900


def test_a_peer_that_has_taken_what_was_never_sent_is_cut_off() -> None:
    a, b = pair()
    b.free(b"never came")

    with pytest.raises(FrameError, match="has taken 74 of 0"):
        a.take(b.pack())


def test_a_datagram_is_no_larger_than_it_may_be() -> None:
    a, _ = pair(seal=True, most=1000)

    assert len(a.pack(bytes(a.room))) == 1000


def test_a_limit_that_leaves_no_room_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="has no room"):
        Datagrams(SESSION, dialled=True, most=33)


def test_after_the_last_bytes_what_was_taken_can_still_be_told() -> None:
    a, b = pair()

    b.take(a.pack(b"last", last=True))
    b.take(a.pack())

    assert b.ended
    a.take(b.pack(b"still"))


def test_bytes_after_the_last_are_an_error() -> None:
    a, b = pair()
    b.take(a.pack(b"last", last=True))
    a.said_last = False  # it lies

    with pytest.raises(FrameError, match="after the last"):
        b.take(a.pack(b"more"))


@given(st.binary(max_size=100))
def test_whatever_comes_has_a_connection_or_none(data: bytes) -> None:
    session = session_of(data)

    assert session is None or (session in data and len(session) == 16)


# -- streams ----------------------------------------------------------------------------------


class Pipe:
    """Two streams, joined by what the test holds in its hands."""

    def __init__(self, *, seal: bool = False, window: int = 4096) -> None:
        a, b = pair(seal, window=window, peer_window=window)
        self.over: list[str] = []
        self.foreign = 0
        self.held: list[bytes] | None = None
        """What ``a`` has sent and was kept back; None: it is carried."""
        self.cut = False
        self.a = self._stream(a, self._from_a, "a", window)
        self.b = self._stream(b, lambda datagram: self.a.feed(datagram), "b", window)

    def _stream(self, datagrams: Datagrams, post: Any, name: str, window: int) -> DatagramStream:
        return DatagramStream(
            datagrams,
            lambda datagram: not self.cut and (post(datagram) or True),
            most_waiting=4 * window,
            on_over=lambda: self.over.append(name),
            on_foreign=self._count,
        )

    def _count(self) -> None:
        self.foreign += 1

    def _from_a(self, datagram: bytes) -> None:
        if self.held is None:
            self.b.feed(datagram)
        else:
            self.held.append(datagram)


@pytest.mark.anyio
@pytest.mark.parametrize("seal", [False, True], ids=["bare", "sealed"])
async def test_a_stream_carries_more_than_its_window(seal: bool) -> None:
    pipe = Pipe(seal=seal)
    data = os.urandom(100_000)
    came = bytearray()

    async def send() -> None:
        await pipe.a.send(data)
        await pipe.a.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(send)
        with anyio.fail_after(30):
            async for chunk in pipe.b:
                came += chunk

    assert came == data


@pytest.mark.anyio
async def test_a_sender_waits_while_the_other_side_takes_nothing() -> None:
    pipe = Pipe()
    sent: list[int] = []

    async def send() -> None:
        for each in range(10):
            await pipe.a.send(bytes(1000))
            sent.append(each)

    async with anyio.create_task_group() as tg:
        tg.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        waited = len(sent)
        with anyio.fail_after(30):
            for _ in range(10):
                await pipe.b.receive()
            await anyio.wait_all_tasks_blocked()

    assert waited == 3  # four thousand bytes are too many, with their headers
    assert len(sent) == 10


@pytest.mark.anyio
async def test_a_receiver_takes_no_more_than_it_has_asked_for() -> None:
    pipe = Pipe()

    await pipe.a.send(b"abcdef")

    assert [await pipe.b.receive(4), await pipe.b.receive(4)] == [b"abcd", b"ef"]


@pytest.mark.anyio
async def test_a_lost_datagram_breaks_both_ends_and_nothing_after_it_is_delivered() -> None:
    pipe = Pipe()
    pipe.held = []
    await pipe.a.send(b"one")
    await pipe.a.send(b"two")

    pipe.b.feed(pipe.held[1])

    with pytest.raises(anyio.BrokenResourceError) as caught:
        await pipe.b.receive()
    assert str(caught.value.__cause__) == "datagram 1 came instead of 0"
    with pytest.raises(anyio.BrokenResourceError):
        await pipe.b.send(b"x")
    with pytest.raises(anyio.EndOfStream):  # the other end hears of it
        await pipe.a.receive()
    assert pipe.over == ["b"]


@pytest.mark.anyio
async def test_a_stranger_s_datagrams_are_counted_and_the_stream_lives() -> None:
    pipe = Pipe(seal=True)
    number_of_next = bytes(8)

    pipe.b.feed(b"garbage")
    pipe.b.feed(b"\xb4" + SESSION + number_of_next + bytes(8) + b"sealed by nobody at all")
    await pipe.a.send(b"hello")

    assert await pipe.b.receive() == b"hello"
    assert pipe.foreign == 2


@pytest.mark.anyio
async def test_what_can_no_longer_be_carried_breaks_the_stream() -> None:
    pipe = Pipe()
    pipe.cut = True

    with pytest.raises(anyio.BrokenResourceError):
        await pipe.a.send(b"hello")

    assert pipe.over == ["a"]


@pytest.mark.anyio
async def test_whoever_waits_for_bytes_hears_that_nothing_more_can_be_carried() -> None:
    pipe = Pipe()

    async def receive() -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.a.receive()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            tg.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            pipe.cut = True
            with pytest.raises(anyio.BrokenResourceError):
                await pipe.a.send(b"hello")


@pytest.mark.anyio
async def test_whoever_waits_for_room_hears_that_nothing_more_can_be_carried() -> None:
    pipe = Pipe()
    await pipe.b.send(bytes(2000))

    async def send() -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.a.send(bytes(10_000))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            pipe.cut = True
            await pipe.a.receive()  # this cannot be told
            with pytest.raises(anyio.BrokenResourceError):
                await pipe.a.receive()


@pytest.mark.anyio
async def test_more_datagrams_than_can_wait_are_refused() -> None:
    pipe = Pipe()

    taken = [pipe.b.feed(bytes(1000)) for _ in range(20)]

    assert taken == [True] * 14 + [False] * 6


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["lose", "close", "gap"])
async def test_whoever_waits_for_room_hears_that_the_stream_is_over(how: str) -> None:
    pipe = Pipe()
    errors: list[BaseException] = []

    async def send() -> None:
        try:
            await pipe.a.send(bytes(10_000))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            errors.append(error)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            if how == "lose":
                pipe.a.lose("the engine is gone")
            elif how == "close":
                await pipe.a.aclose()
            else:
                pipe.a.feed(Pipe().b._datagrams.pack())
                pipe.a.feed(Pipe().b._datagrams.pack())

    expected = anyio.ClosedResourceError if how == "close" else anyio.BrokenResourceError
    assert [type(error) for error in errors] == [expected]
    assert pipe.over == ["a"]


@pytest.mark.anyio
async def test_a_closed_stream_ends_the_other_one_after_all_that_was_sent() -> None:
    pipe = Pipe()
    await pipe.a.send(b"hello")
    await pipe.a.aclose()
    await pipe.a.aclose()

    assert await pipe.b.receive() == b"hello"
    with pytest.raises(anyio.EndOfStream):
        await pipe.b.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.a.send(b"more")
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.a.receive()
    assert pipe.over == ["a"]


@pytest.mark.anyio
async def test_an_end_of_what_is_sent_leaves_the_other_direction_open() -> None:
    pipe = Pipe()
    await pipe.a.send_eof()
    await pipe.a.send_eof()

    with pytest.raises(anyio.EndOfStream):
        await pipe.b.receive()
    await pipe.b.send(b"an answer")
    assert await pipe.a.receive() == b"an answer"
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.a.send(b"more")


@pytest.mark.anyio
async def test_a_stream_is_closed_even_if_its_closing_is_cancelled() -> None:
    pipe = Pipe()

    await anyio.aclose_forcefully(pipe.a)

    with pytest.raises(anyio.EndOfStream):
        await pipe.b.receive()
