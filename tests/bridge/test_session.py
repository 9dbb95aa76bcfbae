"""One connection: time, silence, slow peers, floods, limits, and a good end."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from anyio import WouldBlock

from backplane import Cancelled, Device, Disconnected, Failed, LinkMode, NoConnection
from backplane.bridge._errors import (
    BusyError,
    EncodeError,
    FrameError,
    NotConnectedError,
    PayloadError,
    ProofRefusedError,
    RemoteError,
)
from backplane.bridge._exports import Right
from backplane.bridge._frames import (
    Close,
    Find,
    Fire,
    Found,
    Ping,
    Pong,
    Ready,
    Send,
    Tell,
    Watch,
    encode,
)
from backplane.bridge._limits import Limits
from backplane.bridge._requests import Message
from backplane.bridge._session import Session
from backplane.bridge._states import State

if TYPE_CHECKING:
    from liar import Liar, packed
    from wire import End, Quiet, Wire, pair, reach
else:
    from .liar import Liar, packed
    from .wire import End, Quiet, Wire, pair, reach

HEARTBEAT, DEAD_AFTER = 1.0, 3.0
TIMES: dict[str, Any] = {"heartbeat": HEARTBEAT, "dead_after": DEAD_AFTER}


class Box:
    """A port that keeps what comes."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, message: Message) -> None:
        self.told.append(message.open())

    def call(self, request: Any) -> None:
        raise AssertionError("nobody asks")


def tell(session: Session, token: bytes, value: Any, force: bool = False) -> None:
    session.outbox.say(Tell(token, msgspec.Raw(session.payloads.pack(value))), force)


class Told:
    """Two nodes, and a port at the one that was dialled."""

    def __init__(self, **options: Any) -> None:
        self.here, self.there, self.wire = pair(**options)
        self.box, self.device = Box(), Device()
        self.token = self.there.exports.mint(self.device.line(), Right.ALL, self.box).token

    def tell(self, value: Any, **how: Any) -> None:
        tell(self.wire.a, self.token, value, **how)


def age(wire: Wire, seconds: float, step: float = 0.5, *, moves: bool = True) -> None:
    """Let time pass at both ends."""
    until = wire.now + seconds
    while wire.now < until:
        wire.now += step
        wire.a.tick(wire.now)
        wire.b.tick(wire.now)
        if moves:
            wire.settle()


# -- signs of life --------------------------------------------------------------------------------


def test_two_with_nothing_to_say_stay_up_and_say_little() -> None:
    _, _, wire = pair(**TIMES)
    age(wire, 7200.0)

    assert wire.a.state is wire.b.state is State.UP
    assert wire.a.outbox.frames_out < 7200 * 4.1  # a question and an answer, twice each heartbeat


def test_an_idle_peer_hears_at_least_each_heartbeat() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    heard = [0.0]
    due = 0.0
    for _ in range(400):
        liar.now, due = due, session.tick(due)
        if said := liar.hear():
            heard.append(liar.now)
        liar.say(*[Pong(0) for frame in said if isinstance(frame, Ping)])
    gaps = [later - sooner for sooner, later in itertools.pairwise(heard)]

    assert len(gaps) > 100
    assert max(gaps) <= HEARTBEAT


def test_silence_is_the_end_in_time() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    now = 0.0
    while session.is_up:
        now = session.tick(now)
        liar.hear()

    assert DEAD_AFTER <= now <= DEAD_AFTER + HEARTBEAT / 2
    assert isinstance(session.reason, TimeoutError)
    assert str(session.reason) == "nothing was heard of the peer for 3.0 seconds"


def test_silence_just_short_of_it_is_forgiven() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    for n in range(1, 100):
        for part in range(1, 6):
            session.tick(n * 2.9 - 2.9 + part * 2.9 / 5)
        session.receive(packed(Pong(0)), n * 2.9)
        liar.hear()

    assert session.is_up


@pytest.mark.parametrize("moves", ["nothing", "half a frame", "frames"])
def test_any_byte_is_a_sign_of_life(moves: str) -> None:
    liar = Liar(End("b", **TIMES)).shake()
    half = [bytes([byte]) for byte in b"\0\0\1\0xxxx"]
    for n in range(8):  # no longer than a lost answer is waited for
        liar.session.tick(n / 2 + 0.5)
        if moves != "nothing":
            data = half[n] if moves == "half a frame" else packed(Ping(1))
            liar.session.receive(data, n / 2 + 0.5)

    assert liar.session.is_up is (moves != "nothing")


def test_a_peer_that_writes_and_reads_nothing_is_found_out() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    now = 0.0
    while session.is_up and now < 100:
        now += 0.25
        session.receive(packed(Pong(1)), now)
        session.tick(now)
        session.outbox.take()
        session.pulse.wrote(now)

    assert isinstance(session.reason, TimeoutError)
    assert str(session.reason) == "the peer reads nothing any longer, though it writes"
    assert now <= HEARTBEAT + 2 * DEAD_AFTER + 0.5


def test_a_peer_that_writes_all_the_time_and_answers_stays() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    for n in range(400):
        liar.now = n / 4
        liar.session.receive(packed(Pong(1)), liar.now)
        liar.session.tick(liar.now)
        liar.say(*[Pong(ping.number) for ping in liar.hear_only(Ping)])

    assert liar.session.is_up


def test_pings_are_answered_before_all_that_waits() -> None:
    told = Told()
    for n in range(5):
        told.tell(n)
    told.wire.a.receive(packed(Ping(0), Ping(2)), 0.0)

    data = told.wire.a.outbox.take(1) + told.wire.a.outbox.take(1)
    assert data == packed(Pong(0), Pong(2))


def test_a_write_that_never_ends_is_the_end() -> None:
    told = Told(**TIMES)
    session = told.wire.a
    told.tell("x")
    assert session.outbox.take()
    now = 0.0
    while session.is_up:
        now += 0.5
        session.receive(packed(Pong(0)), now)
        session.tick(now)

    assert str(session.reason) == "the peer takes no bytes any longer"
    assert now == DEAD_AFTER


def test_a_probe_is_answered_within_a_second() -> None:
    due: list[float] = []
    here, there = End("a", **TIMES), End("b", **TIMES, on_hurry=lambda _, when: due.append(when))
    wire = Wire(here, there)
    wire.settle()
    due.clear()
    wire.b.probe(0.0)
    wire.b.probe(0.0)
    wire.settle()
    wire.b.tick(1.0)
    assert wire.b.is_up
    assert due == [1.0, 1.0]

    wire.b.probe(1.0)
    wire.b.receive(packed(Pong(0), Pong(1)), 1.5)  # that is no answer
    wire.b.tick(1.9)
    assert wire.b.is_up
    wire.b.tick(2.0)

    assert str(wire.b.reason) == "the peer did not answer while another of its name was there"


def test_one_that_has_come_up_is_looked_at_after_half_a_heartbeat() -> None:
    due: list[float] = []
    here, there = End("a"), End("b", heartbeat=1.0, on_hurry=lambda _, when: due.append(when))
    Wire(here, there, now=7.0).settle()

    assert due == [7.5]  # and not at the deadline of the handshake


def test_nothing_is_taken_that_would_come_after_the_good_bye() -> None:
    here, there = End("a"), End("b")
    wire = Wire(here, there)
    wire.settle()
    wire.a.close(0.0)

    with pytest.raises(NotConnectedError):
        wire.a.outbox.say(Tell(b"t" * 12, msgspec.Raw(b"\xc0")))
    wire.a.outbox.say(Tell(b"t" * 12, msgspec.Raw(b"\xc0")), force=True)
    wire.settle()
    assert wire.b.is_down


def test_a_probe_counts_from_when_it_is_asked_however_long_nothing_has_happened() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    liar.session.probe(0.75)
    liar.session.tick(1.5)
    assert liar.session.is_up
    liar.session.tick(1.75)

    assert isinstance(liar.session.reason, TimeoutError)


@pytest.mark.parametrize("now", [0.0, 0.1, 1.1, 3.6, 7.3])
def test_a_probe_ends_at_the_very_time_that_was_said_and_is_looked_for_till_then(
    now: float,
) -> None:
    due: list[float] = []
    liar = Liar(End("b", **TIMES, on_hurry=lambda _, when: due.append(when)), now=now).shake()
    liar.session.probe(now)
    assert due[-1] == now + 1

    assert liar.session.tick(now + 0.75) == now + 1  # somebody has looked too early
    liar.session.tick(now + 1)
    assert isinstance(liar.session.reason, TimeoutError)


def test_who_has_answered_a_probe_has_shown_life_for_a_while() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    liar.say(Pong(2))  # nobody has asked
    assert not session.pulse.has_shown_life

    shown = []
    session.probe(1.0)
    for liar.now, answer in ((1.5, Pong(2)), (6.4, Pong(1)), (6.6, Pong(1))):
        liar.say(answer)
        shown.append(session.pulse.has_shown_life)
    assert shown == [True, True, False]


@pytest.mark.parametrize("is_closed", [True, False])
def test_one_that_is_not_in_use_yet_or_no_longer_has_a_second_too(is_closed: bool) -> None:
    liar = Liar(End("b"))
    liar.hear()
    liar.say(liar.hello)
    liar.hear()
    liar.say(liar.proof())
    session = liar.session
    if is_closed:
        liar.say(Ready())
        session.close(0.0)
    liar.hear()
    session.probe(0.5)

    assert liar.hear() == []
    assert session.tick(1.4) == 1.5
    session.tick(1.5)
    assert isinstance(session.reason, TimeoutError)


# -- a loop that was late -------------------------------------------------------------------------


def test_after_a_late_look_the_peer_gets_as_much_time_again() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    session.tick(0.5)
    session.tick(20.0)  # the loop was blocked, what has come meanwhile is not read yet
    assert session.is_up

    session.receive(packed(Pong(0)), 20.1)
    session.tick(20.5)
    session.tick(40.0)  # and again
    assert session.is_up
    session.receive(packed(Pong(0)), 40.1)

    assert session.is_up


def test_but_only_once_as_long_as_nothing_is_heard() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    session.tick(20.0)
    session.tick(22.9)
    assert session.is_up
    session.tick(25.0)  # late again, and there was nothing to read

    assert isinstance(session.reason, TimeoutError)


def test_after_a_late_look_a_write_is_not_condemned() -> None:
    told = Told(**TIMES)
    told.tell("x")
    data = told.wire.a.outbox.take()
    told.wire.a.tick(20.0)
    assert told.wire.a.is_up
    told.wire.a.pulse.wrote(20.1)
    told.wire.b.receive(data, 20.1)

    assert told.box.told == ["x"]


def test_a_peer_that_takes_much_slowly_but_takes_it_stays() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    tell(session, bytes(12), "x" * 100_000)
    session.outbox.take()
    for n in range(1, 41):  # many times as long as it may take nothing
        session.receive(packed(Pong(0)), n / 2)
        session.pulse.wrote(n / 2, all_=False)
        session.tick(n / 2)
    assert session.is_up
    for n in range(41, 50):
        session.receive(packed(Pong(0)), n / 2)
        session.tick(n / 2)

    assert str(session.reason) == "the peer takes no bytes any longer"


def test_after_a_late_look_an_answer_may_still_come() -> None:
    liar = Liar(End("b", **TIMES)).shake()
    session = liar.session
    session.tick(0.5)
    assert liar.hear_only(Ping)
    session.receive(packed(Pong(1)), 1.0)
    session.tick(20.0)
    assert session.is_up
    session.receive(packed(Pong(0)), 20.1)
    for n in range(1, 5):
        session.tick(20 + n / 2)
        session.receive(packed(Pong(0)), 20 + n / 2)

    assert session.is_up


# -- slow peers -----------------------------------------------------------------------------------


def small(**limits: Any) -> Limits:
    return Limits(**({"frame": 4096, "outbox": 10_000, "outbox_hard": 20_000} | limits))


def test_beyond_the_soft_mark_users_are_refused_and_nothing_is_lost() -> None:
    told = Told(limits=small())
    count = 0
    while told.wire.a.outbox.waiting <= 10_000:
        told.tell("x" * 100)
        count += 1
    with pytest.raises(BusyError) as raised:
        told.tell("x")
    assert raised.value.node == "b"
    assert raised.value.waiting == told.wire.a.outbox.waiting > 10_000
    assert told.wire.a.outbox.waiting < 10_000 + 200
    told.tell("one more", force=True)
    told.wire.settle()

    assert told.box.told == ["x" * 100] * count + ["one more"]
    assert told.wire.a.outbox.waiting == 0
    told.tell("y")


def test_beyond_the_hard_mark_the_peer_is_lost() -> None:
    told = Told(limits=small())
    listener = Device()
    line = reach(told.here, told.there, told.wire, told.device.line())
    listener.link(line, LinkMode.MONITOR)
    told.wire.settle()
    for _ in range(1000):
        line.shutdown()
    assert told.wire.a.is_up
    told.wire.a.outbox.pump()

    assert isinstance(told.wire.a.reason, BusyError)
    assert listener.receive_nowait() == Disconnected(told.device.id, NoConnection("b"))
    assert told.wire.a.outbox.waiting == 0
    assert told.wire.a.outbox.take() == b""


def test_answers_that_nobody_takes_are_the_end() -> None:
    liar = Liar(End("b", limits=small())).shake()
    for n in range(3000):
        liar.say(Find(n, "x"))

    assert isinstance(liar.session.reason, BusyError)
    assert str(liar.session.reason) == (
        f"{liar.session.reason.waiting} bytes wait to be written to node 'liar', more than "
        f"Limits(outbox_hard={small().outbox_hard})"
    )


def test_users_bytes_beyond_the_hard_mark_are_the_end() -> None:
    told = Told(limits=small())
    while told.wire.a.outbox.waiting <= 20_000:
        told.tell("x" * 1000, force=True)
    told.wire.a.outbox.pump()

    assert isinstance(told.wire.a.reason, BusyError)


def test_what_waits_is_counted_exactly() -> None:
    told = Told()
    told.tell("x" * 50)
    assert told.wire.a.outbox.waiting == len(told.wire.a.outbox.take())
    assert told.wire.a.outbox.waiting == 0
    told.tell("x")
    told.tell("y")
    half = told.wire.a.outbox.take(1)
    assert told.wire.a.outbox.waiting == len(half)
    told.wire.a.eof()
    assert told.wire.a.outbox.waiting == 0


# -- what cannot be sent --------------------------------------------------------------------------


def test_what_is_too_large_is_refused_to_who_sends_it() -> None:
    told = Told(limits=small())
    room = 4096 - len(encode(Tell(told.token, msgspec.Raw(b"")), 100)) + 4
    fits = b"x" * (room - 3)  # a bin 16 has three bytes before it
    told.tell(fits)
    with pytest.raises(
        EncodeError, match="a message of 4097 bytes is too large: the peer takes 4096"
    ):
        told.tell(fits + b"x")
    told.wire.settle()

    assert told.box.told == [fits]
    assert told.wire.a.is_up


def test_what_has_no_form_is_refused_to_who_sends_it() -> None:
    told = Told()
    for value in (object(), {"x": [object()]}, 1 << 64, "\udc80", lambda: None, ValueError()):
        with pytest.raises(EncodeError):
            told.tell(value)
    assert told.wire.a.outbox.waiting == 0
    told.wire.settle()

    assert told.box.told == []
    assert told.wire.a.is_up


def test_the_sender_goes_by_what_the_other_takes() -> None:
    here, there = End("a"), End("b", limits=small())
    wire = Wire(here, there)
    wire.settle()
    device = Device()
    token = there.exports.mint(device.line(), Right.ALL, Box()).token

    with pytest.raises(EncodeError):
        tell(wire.a, token, "x" * 5000)
    back = here.exports.mint(device.line(), Right.ALL, Box()).token
    tell(wire.b, back, "x" * 5000)
    wire.settle()
    assert wire.a.is_up
    assert wire.b.is_up


def test_a_fault_that_is_too_large_for_the_peer_is_cut_short() -> None:
    here, there = End("a", limits=small()), End("b", tracebacks=True)
    wire = Wire(here, there)
    wire.settle()
    listener, device = Device(), Device()
    listener.link(reach(here, there, wire, device.line()), LinkMode.MONITOR)
    wire.settle()
    device.disconnect(Failed(ValueError("ä" * 4000)))
    wire.settle()

    message = listener.receive_nowait()
    assert isinstance(message, Disconnected)
    assert isinstance(message.fault, Failed)
    assert isinstance(message.fault.exception, RemoteError)
    assert message.fault.exception.text == "ä" * 100
    assert wire.a.is_up


def test_text_that_is_no_unicode_crosses() -> None:
    here, there, wire = pair()
    listener, device = Device(), Device("\udcff")
    line = reach(here, there, wire, device.line())
    listener.link(line, LinkMode.MONITOR)
    device.disconnect(Failed(ValueError("a file called \udcff")))
    wire.settle()

    message = listener.receive_nowait()
    assert isinstance(message, Disconnected)
    assert str(message.fault) == (
        r"Failed(RemoteError('builtins.ValueError', 'a file called \\udcff'))"
    )
    assert line.name == r"\udcff"


# -- floods ---------------------------------------------------------------------------------------


def nobody(count: int) -> bytes:
    return packed(*[Send(bytes(12), None)] * count)


def test_so_many_messages_for_nobody_a_second_and_no_more() -> None:
    liar = Liar(End("b", limits=Limits(unknown=100))).shake()
    session = liar.session
    for second in range(1, 20):
        session.receive(nobody(60), second)
        session.receive(nobody(40), second + 0.9)
    assert session.is_up

    session.receive(nobody(101), 30.0)
    assert isinstance(session.reason, FrameError)
    assert str(session.reason) == "more than 100 messages for nobody in a second"


def test_a_flood_at_the_very_start_of_a_second_counts() -> None:
    liar = Liar(End("b", limits=Limits(unknown=100))).shake()
    for n in range(10):
        liar.session.receive(nobody(101), 10.0 * (n + 1))

    assert isinstance(liar.session.reason, FrameError)
    assert liar.session.mirror.unknown == 101


def test_what_was_on_its_way_to_one_that_has_just_ended_is_no_flood() -> None:
    end = End("b", limits=Limits(unknown=100))
    liar = Liar(end).shake()
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL, Box()).token
    device.disconnect()
    liar.say(*[Tell(token, msgspec.Raw(b"\xc0"))] * 500, *[Send(token, None)] * 500)

    assert liar.session.is_up
    assert liar.session.mirror.unknown == 0


def test_tells_to_nobody_count_too() -> None:
    end = End("b", limits=Limits(unknown=100))
    liar = Liar(end).shake()
    device = Device()
    silent = end.exports.mint(device.line(), Right.ALL).token
    mute = end.exports.mint(device.line(), Right.MONITOR, Box()).token
    for token in (silent, mute, bytes(12), b""):
        liar.say(*[Tell(token, msgspec.Raw(b"\xc0"))] * 25)
    assert liar.session.is_up
    liar.say(Tell(b"", msgspec.Raw(b"\xc0")))

    assert isinstance(liar.session.reason, FrameError)


# -- finding --------------------------------------------------------------------------------------


def test_what_is_exported_is_found_by_those_who_may() -> None:
    here, there, wire = pair()
    device = Device("jobs")
    there.exports.name("jobs", device.line(), ["c", "a*"], Right.MONITOR, None)
    there.exports.name("secret", device.line(), ["c"], Right.ALL, None)
    found: list[Any] = []
    for name in ("jobs", "secret", "nothing"):
        here.session.lookups.find(name, found.append)
    wire.settle()

    assert found[0].name == "jobs"
    assert found[0].rights == Right.MONITOR.value
    assert found[1:] == [None, None]


def test_what_is_looked_for_when_the_connection_is_lost_is_not_found() -> None:
    here, _, wire = pair()
    found: list[Any] = []
    here.session.lookups.find("x", found.append)
    wire.lose()

    assert found == [None]
    with pytest.raises(
        NotConnectedError,
        match=r"find 'x' on node 'b': .* broke: it ended without a word; connect again",
    ):
        here.session.lookups.find("x", found.append)
    assert found == [None]


def test_a_name_that_is_too_large_is_not_looked_for() -> None:
    here, _, wire = pair()
    found: list[Any] = []
    with pytest.raises(EncodeError):
        here.session.lookups.find("x" * (1 << 20), found.append)
    wire.lose()

    assert found == []


def test_an_answer_to_no_question_is_an_error() -> None:
    liar = Liar(End("b")).shake()
    liar.say(Found(5, None))

    assert str(liar.session.reason) == "an answer to no question"


def test_what_is_found_must_be_the_peers_own() -> None:
    liar = Liar(End("b")).shake()
    found: list[Any] = []
    liar.session.lookups.find("x", found.append)
    liar.say(Found(1, liar.line(node="c")))

    assert isinstance(liar.session.reason, FrameError)
    assert found == [None]


# -- the end --------------------------------------------------------------------------------------


def test_what_was_said_before_a_good_end_arrives() -> None:
    told = Told()
    for n in range(100):
        told.tell(n)
    told.device.line()
    told.wire.a.close(0.0)
    told.wire.a.close(0.0)
    with pytest.raises(WouldBlock):
        told.device.receive_nowait()
    told.wire.settle(split=7)

    assert told.box.told == list(range(100))
    assert told.wire.a.is_down
    assert told.wire.b.is_down
    assert (told.here.downs, told.there.downs) == ([told.wire.a], [told.wire.b])


def test_a_peer_that_does_not_close_is_waited_for_so_long() -> None:
    due: list[float] = []
    end = End("b", limits=Limits(closing=2.0), on_hurry=lambda _, when: due.append(when))
    liar = Liar(end).shake()
    due.clear()
    liar.session.close(10.0)
    assert liar.hear() == [Close("bye")]
    assert due == [12.0]
    assert liar.session.tick(11.9) == 12.0
    assert not liar.session.is_down
    liar.session.tick(12.0)

    assert isinstance(liar.session.reason, TimeoutError)
    assert str(liar.session.reason) == (
        "node 'liar' did not take its last bytes and hang up in time: Limits(closing=2)"
    )


def test_a_session_can_be_closed_before_it_is_up() -> None:
    here, there = End("a"), End("b")
    wire = Wire(here, there)
    wire.a.close(0.0)
    wire.settle()

    assert wire.a.is_down
    assert wire.b.is_down
    assert here.ups == there.ups == []


def test_nothing_can_be_said_when_it_is_down() -> None:
    told = Told()
    told.wire.lose()
    with pytest.raises(NotConnectedError) as raised:
        told.tell("x")
    assert raised.value.node == "b"
    told.wire.a.outbox.put(Ping(1))
    told.wire.a.close(0.0)
    told.wire.a.down(ValueError())
    told.wire.a.receive(packed(Ping(1)), 0.0)
    told.wire.a.outbox.say_bytes(b"x")
    told.wire.a.probe(0.0)

    assert told.wire.a.outbox.take() == b""
    assert isinstance(told.wire.a.reason, NotConnectedError)
    assert told.wire.a.tick(7.0) > 7.0
    assert told.here.downs == [told.wire.a]


def test_the_cause_of_a_loss_is_told() -> None:
    _, _, wire = pair()
    error = OSError("reset")
    wire.a.eof(error)

    assert isinstance(wire.a.reason, NotConnectedError)
    assert wire.a.reason.__cause__ is error
    assert str(wire.a.reason) == "the connection with node 'b' broke: reset"


def test_who_has_closed_it_is_told() -> None:
    _, _, wire = pair()
    wire.a.close(0.0)
    wire.settle()
    wire.a.eof()

    assert str(wire.a.reason) == "this node has closed the connection with node 'b'"
    assert str(wire.b.reason) == "node 'a' has closed the connection"
    assert type(wire.a.reason) is type(wire.b.reason) is NotConnectedError


def test_where_a_handshake_has_ended_is_told() -> None:
    def dialler() -> Liar:
        return Liar(End("b"), dials=False, source="tcp://here:1")

    silent, hello, late, other = dialler(), dialler(), dialler(), Liar(End("b"), source="x")
    hello.hear()
    hello.say(hello.hello)
    for each in (silent, hello, other):
        each.session.eof()
    late.session.tick(5.0)

    assert [str(each.session.reason) for each in (silent, hello, late, other)] == [
        "cannot connect with tcp://here:1: it closed without a word before it said who it is: if "
        "that is a node, and tls:// or tcp:// is as it listens, then its log says why",
        "cannot connect with node 'liar' at tcp://here:1: it closed without a word when it saw "
        "this node's proof, as one does whose secret is another: its log says more",
        "tcp://here:1 was saying hello for too long",
        "cannot connect with x: it went away, saying hello",
    ]
    assert isinstance(hello.session.reason, ProofRefusedError)
    assert isinstance(silent.session.reason, NotConnectedError)
    assert silent.session.reason.node == "tcp://here:1"


TLS = "it speaks TLS: say tls:// at both ends, or at neither"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (bytes.fromhex("1603010200010001fc0303"), TLS),
        (bytes.fromhex("15030300020232"), TLS),
        (b"GET / HTTP/1.1\r\n\r\n", "it speaks HTTP"),
        (b"POST /x HTTP/1.1\r\n\r\n", "it speaks HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP"),
        (b"SSH-2.0-x\r\n", "a frame of 1397966893 bytes: the limit is 4096"),
        (bytes.fromhex("16040000"), "a frame of 369360896 bytes: the limit is 4096"),
    ],
)
def test_what_else_a_stranger_speaks_is_told(said: bytes, text: str) -> None:
    for cut in range(5):
        stranger = Liar(End("b"))
        stranger.session.receive(said[:cut], 0.0)
        stranger.session.receive(said[cut:], 0.0)
        assert str(stranger.session.reason) == text
        assert isinstance(stranger.session.reason, FrameError)


def test_after_its_first_frame_a_peer_is_known_to_speak_in_frames() -> None:
    liar = Liar(End("b"))
    liar.say(liar.hello)
    liar.session.receive(b"GET / HTTP/1.1\r\n\r\n", 0.0)

    assert str(liar.session.reason) == "a frame of 1195725856 bytes: the limit is 4096"


def test_a_peer_whose_messages_fail_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()

    def fail(message: Message) -> None:
        raise ValueError("broken")

    told.box.tell = fail  # type: ignore[method-assign]
    for number in range(100):
        told.tell(number)
    told.wire.settle()
    assert len(caplog.records) == 30
    assert all(record.exc_info for record in caplog.records)

    told.wire.now = 61.0
    told.tell("last")
    told.wire.settle()
    assert [record.getMessage() for record in caplog.records[30:]] == [
        "70 lines like the next were left out",
        f"the port of {told.device.line()!r} failed for a message from 'a'",
    ]
    assert told.wire.b.is_up


def test_all_links_have_fired_when_the_node_hears_of_the_loss() -> None:
    heard: list[Any] = []
    device, far = Device(), Device()
    here, there = End("a"), End("b")
    here.setup = dataclasses.replace(
        here.setup, on_down=lambda _: heard.append(device.receive_nowait())
    )
    wire = Wire(here, there)
    wire.settle()
    device.link(reach(here, there, wire, far.line()), LinkMode.MONITOR)
    wire.settle()
    wire.lose()

    assert heard == [Disconnected(far.id, NoConnection("b"))]


def test_a_frame_that_ends_it_is_the_last_that_is_looked_at() -> None:
    told = Told()
    told.wire.b.receive(
        packed(
            Tell(told.token, msgspec.Raw(b"\x01")),
            Close("bye"),
            Tell(told.token, msgspec.Raw(b"\x02")),
        ),
        0.0,
    )

    assert told.box.told == [1]


def test_what_is_said_in_answer_comes_after_what_was_said_before() -> None:
    """A Device's last words, though its end is told in answer to a question."""
    end = End("b")
    liar = Liar(end).shake()
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL).token
    tell(liar.session, b"x", "its last words")
    device.disconnect(Cancelled())
    liar.say(Watch(token))

    assert [type(frame) for frame in liar.hear()] == [Tell, Fire]


def test_a_port_that_raises_is_reported_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Box):
        def tell(self, message: Message) -> None:
            message.open(int)

    end = End("b")
    liar = Liar(end).shake()
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL, Bad()).token
    with caplog.at_level(logging.ERROR, "backplane.bridge"):
        liar.say(Tell(token, msgspec.Raw(msgspec.msgpack.encode("secret"))))

    assert liar.session.is_up
    [record] = caplog.records
    assert "the port of <Line to Device" in record.getMessage()
    assert "'liar'" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], PayloadError)


def test_a_message_says_where_it_is_from_and_no_more() -> None:
    seen: list[Message] = []

    class Keeping(Box):
        def tell(self, message: Message) -> None:
            seen.append(message)

    end = End("b")
    liar = Liar(end).shake()
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL, Keeping()).token
    liar.say(Tell(token, msgspec.Raw(msgspec.msgpack.encode("secret"))))

    assert repr(seen[0]) == "<Message of 7 bytes from 'liar'>"
    assert seen[0].node == "liar"
    assert seen[0].open(str) == "secret"


def test_a_hello_says_nothing_of_the_secret() -> None:
    session = Session(End("a").setup, dialled=True, now=0.0, waiter=Quiet())

    assert b"secret" not in session.outbox.take()
    assert "sixteen" not in repr(session.setup)


def test_the_frame_that_takes_it_into_use_comes_before_any_ping() -> None:
    liar = Liar(End("b"), dials=False)
    liar.hear()
    liar.say(liar.hello)
    liar.hear()
    liar.say(liar.proof())
    liar.session.probe(0.0)

    assert [type(frame) for frame in liar.hear()] == [Ready, Ping]


class Counting:
    """Counts how often it is to look."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    wake_soon = wake


def test_who_writes_is_woken_once_for_all_that_waits() -> None:
    told = Told()
    session, counting = told.wire.a, Counting()
    session.outbox._waiter = counting

    for round_ in range(1, 4):
        for number in range(10):
            told.tell(number)
            session.outbox.put(Pong(1))
        assert counting.woken == round_
        session.outbox.take()


class Prompt:
    """A driver that writes at once, as long as it is let."""

    def __init__(self, session: Session) -> None:
        self.wrote: list[bytes] = []
        self.may = True
        session.driver = self

    def write_alone(self, data: bytes) -> bool:
        if self.may:
            self.wrote.append(data)
        return self.may


def say(told: Told, value: Any, alone: bool = True) -> bytes:
    frame = Tell(told.token, msgspec.Raw(msgspec.msgpack.encode(value)))
    told.wire.a.outbox.say(frame, alone=alone)
    return encode(frame, 1 << 20)


def test_what_is_said_alone_is_written_at_once() -> None:
    told = Told()
    session, counting = told.wire.a, Counting()
    session.outbox._waiter, prompt = counting, Prompt(session)
    before = session.outbox.bytes_out, session.outbox.frames_out

    data = [say(told, 1), say(told, 2)]
    assert prompt.wrote == data
    assert counting.woken == session.outbox.waiting == 0
    assert session.outbox.bytes_out == before[0] + sum(map(len, data))
    assert session.outbox.frames_out == before[1] + 2
    prompt.may = False
    say(told, 3)
    assert counting.woken == 1
    assert session.outbox.waiting == len(data[0])


def test_what_is_said_alone_overtakes_nothing() -> None:
    told = Told()
    session, prompt = told.wire.a, Prompt(told.wire.a)
    line, near = reach(told.here, told.there, told.wire, told.device.line()), Device()
    told.wire.settle()

    said = [say(told, 1, alone=False), say(told, 2)]
    assert session.outbox.take() == b"".join(said)
    third = say(told, 3)  # what was taken is not written yet
    session.pulse.wrote(0.0)
    assert session.outbox.take() == third
    session.pulse.wrote(0.0)
    line.link(near.line(), LinkMode.MONITOR)  # which the other side has not been told
    say(told, 4)
    assert session.outbox.take().endswith(say(told, 4, alone=False))
    assert prompt.wrote == []


def test_what_the_end_of_a_device_causes_does_not_overtake_the_news_of_it() -> None:
    told = Told()
    session, near = told.wire.a, Device()
    wire = session.mirror.pack(told.here.exports.mint(near.line(), Right.ALL))
    line = told.wire.b.mirror.open(wire)  # they want to hear of its end
    told.wire.settle()
    prompt, note = Prompt(session), session.mirror.note

    def note_and_say(event: Any) -> None:
        say(told, 5)
        note(event)

    session.mirror.note = note_and_say  # type: ignore[method-assign]
    near.disconnect()
    session.close(0.0)  # it looks at what has happened, too
    told.wire.settle()

    assert prompt.wrote == []
    assert told.box.told == [5]
    assert not line.connected


def test_who_was_one_of_many_waits_for_the_others() -> None:
    told = Told()
    session, prompt = told.wire.a, Prompt(told.wire.a)
    for _ in range(2):
        say(told, 1, alone=False)
    session.outbox.take()
    session.pulse.wrote(0.0)

    alone = say(told, 2)
    assert prompt.wrote == []
    assert session.outbox.take() == alone
    session.pulse.wrote(0.0)
    assert prompt.wrote == [say(told, 3)]


def test_what_is_said_as_bytes_come_is_written_when_all_have() -> None:
    told = Told()
    session, counting = told.wire.b, Counting()
    session.outbox._waiter, prompt = counting, Prompt(session)

    class Answering(Box):
        def tell(self, message: Message) -> None:
            session.outbox.say(Tell(told.token, msgspec.Raw(b"\x01")), alone=True)

    told.token = told.there.exports.mint(told.device.line(), Right.ALL, Answering()).token
    for number in range(3):
        told.tell(number)
    session.receive(told.wire.a.outbox.take(), 0.0)

    assert prompt.wrote == []
    assert counting.woken == 0
    assert session.outbox.has_any()
    assert session.outbox.take()
    assert not session.outbox.has_any()


def test_a_connection_that_is_down_has_nothing_that_waits() -> None:
    for closed in (False, True):
        told = Told()
        told.tell("never read")
        if closed:
            told.wire.a.close(0.0)
        assert told.wire.a.outbox.waiting
        told.wire.a.eof()
        assert told.wire.a.outbox.waiting == 0
        assert told.wire.a.outbox.take() == b""


def test_what_is_said_while_somebody_looks_has_him_look_again() -> None:
    """From other threads: nothing may be left lying."""
    told = Told()
    session, looks = told.wire.a, threading.Semaphore(0)
    session.outbox._waiter = counting = Counting()
    counting.wake = looks.release  # type: ignore[method-assign]

    def talk() -> None:
        for number in range(3000):
            told.tell(number, force=True)

    threads = [threading.Thread(target=talk) for _ in range(3)]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < 9000:
        assert looks.acquire(timeout=20)
        before = session.outbox.frames_out
        session.outbox.take()
        taken += session.outbox.frames_out - before
    for thread in threads:
        thread.join()


def test_counters_count() -> None:
    told = Told()
    outbox, other = told.wire.a.outbox, told.wire.b
    before = outbox.bytes_out, outbox.frames_out, other.bytes_in, other.frames_in
    told.tell("x")
    told.wire.settle()
    after = outbox.bytes_out, outbox.frames_out, other.bytes_in, other.frames_in

    assert after[1] - before[1] == after[3] - before[3] == 1
    assert after[0] - before[0] == after[2] - before[2] > 10


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"handshake": 0},
        {"closing": -1},
        {"sessions": float("inf")},
        {"links": float("nan")},
        {"calls": "many"},
        {"frame": 4095},
        {"outbox_hard": (2 << 20) - 1},
    ],
    ids=str,
)
def test_limits_that_are_none_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Limits\("):
        Limits(**values)


def test_limits_may_be_at_their_edges() -> None:
    assert Limits(frame=4096, outbox=1, outbox_hard=4097).outbox_hard == 4097
    assert Limits(outbox_hard=2 << 20).frame == 1 << 20
