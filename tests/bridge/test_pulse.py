"""The time of one connection: what is due, and when a peer is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.bridge._frames import Ping, Pong
from backplane.bridge._pulse import PROBE, Pulse

HEARTBEAT, DEAD_AFTER, HANDSHAKE = 1.0, 3.0, 5.0
QUESTION, ANSWER, SIGN = Ping(0), Pong(0), Pong(1)
PROBED, SHOWN = Ping(2), Pong(2)


def made(now: float = 0.0) -> Pulse:
    return Pulse(now, HEARTBEAT, DEAD_AFTER, HANDSHAKE)


def up(now: float = 0.0) -> Pulse:
    """One that is in use."""
    pulse = made(now)
    pulse.come_up()
    return pulse


def look(pulse: Pulse, now: float) -> str | None:
    return pulse.look(now, "it was saying hello for too long")


def quick(pulse: Pulse, until: float, act: Callable[[float], object] = lambda now: None) -> None:
    """Look as often as an idle loop does: nothing is late."""
    while pulse.now < until:
        now = min(pulse.due, until)
        act(now)
        assert look(pulse, now) is None


@pytest.mark.parametrize("act", [Pulse.heard, Pulse.wrote, Pulse.probe, look])
def test_it_knows_the_time_that_it_was_told_with_anything(
    act: Callable[[Pulse, float], object],
) -> None:
    pulse = up()

    act(pulse, 2.0)

    assert pulse.now == 2.0


# -- what has its time, whatever comes ------------------------------------------------------------


def test_it_must_come_up_by_a_time_though_bytes_come() -> None:
    pulse = made(7.0)
    assert pulse.due == 7.0 + HANDSHAKE
    assert look(pulse, 11.9) is None
    pulse.heard(11.9)

    assert pulse.sign(waits=False) is None
    assert pulse.due == 12.0
    assert look(pulse, 12.0) == "it was saying hello for too long"


def test_what_is_closed_must_be_over_by_a_time_though_bytes_come() -> None:
    pulse = up()
    pulse.close(2.0)
    pulse.heard(1.9)

    assert look(pulse, 1.9) is None
    assert pulse.sign(waits=False) is None
    assert pulse.due == 2.0
    assert look(pulse, 2.0) == "it was saying hello for too long"


def test_how_long_the_handshake_took_is_not_held_against_the_peer() -> None:
    pulse = made()
    pulse.wrote(4.0)
    pulse.come_up()

    assert pulse.due == 4.0 + HEARTBEAT / 2
    assert pulse.sign(waits=False) is None
    quick(pulse, 6.99)
    assert look(pulse, 7.0) == "nothing was heard of the peer for 3.0 seconds"


# -- silence --------------------------------------------------------------------------------------


def test_a_peer_that_is_silent_is_given_up_and_not_before() -> None:
    pulse = up()
    quick(pulse, 2.99)

    assert look(pulse, 3.0) == "nothing was heard of the peer for 3.0 seconds"


def test_any_byte_puts_that_off() -> None:
    pulse = up()
    quick(pulse, 2.9)
    pulse.heard(2.9)
    quick(pulse, 5.89)

    assert look(pulse, 5.9) == "nothing was heard of the peer for 3.0 seconds"


def test_a_silent_peer_is_asked_once_until_it_answers() -> None:
    pulse = up()
    signs = []
    for now in (0.4, 0.5, 1.0, 1.5):
        look(pulse, now)
        signs.append(pulse.sign(waits=True))
    assert signs == [None, QUESTION, None, None]

    pulse.heard(1.5)
    pulse.answered(ANSWER)
    look(pulse, 2.0)
    assert pulse.sign(waits=True) == QUESTION


def test_a_peer_that_is_never_silent_is_asked_each_heartbeat() -> None:
    pulse = up()
    asked = []
    for quarter in range(1, 17):
        pulse.heard(quarter / 4)
        look(pulse, quarter / 4)
        if pulse.sign(waits=True) == QUESTION:
            asked.append(pulse.now)
            pulse.answered(ANSWER)

    assert asked == [1.0, 2.0, 3.0, 4.0]


def test_one_with_nothing_to_say_gives_a_sign_of_life_each_half_heartbeat() -> None:
    pulse = up()
    signs = []
    for tenth in range(1, 11):
        pulse.heard(tenth / 10)
        pulse.answered(ANSWER)
        look(pulse, tenth / 10)
        sign = pulse.sign(waits=False)
        if sign is not None:
            signs.append((pulse.now, sign))
            pulse.wrote(pulse.now)

    assert signs == [(0.5, SIGN), (1.0, SIGN)]


def test_what_waits_to_be_written_is_as_good_a_sign_of_life() -> None:
    pulse = up()
    pulse.heard(0.5)
    look(pulse, 0.5)

    assert pulse.sign(waits=True) is None
    assert pulse.sign(waits=False) == SIGN


# -- a peer that takes or answers nothing ---------------------------------------------------------


def test_a_peer_that_takes_nothing_is_given_up_though_it_is_heard() -> None:
    pulse = up()
    pulse.writing()
    quick(pulse, 2.99, pulse.heard)
    pulse.heard(3.0)

    assert look(pulse, 3.0) == "the peer takes no bytes any longer"


def test_a_peer_that_takes_some_has_as_long_for_the_rest() -> None:
    pulse = up()
    pulse.writing()
    quick(pulse, 2.0, pulse.heard)
    pulse.wrote(2.0, all_=False)
    quick(pulse, 4.99, pulse.heard)
    pulse.heard(5.0)

    assert look(pulse, 5.0) == "the peer takes no bytes any longer"
    pulse.wrote(5.0)
    assert look(pulse, 5.0) is None


def test_it_is_idle_when_all_that_was_taken_is_written() -> None:
    pulse = up()
    idle = [pulse.is_idle]
    for act in (pulse.writing, lambda: pulse.wrote(1.0, all_=False), lambda: pulse.wrote(1.0)):
        act()
        idle.append(pulse.is_idle)

    assert idle == [True, False, False, True]


def test_a_peer_that_does_not_answer_has_twice_as_long() -> None:
    pulse = up()
    look(pulse, 0.5)
    assert pulse.sign(waits=True) == QUESTION
    pulse.answered(SIGN)  # that is no answer
    quick(pulse, 6.49, pulse.heard)
    pulse.heard(6.5)

    assert look(pulse, 6.5) == "the peer reads nothing any longer, though it writes"


# -- probes ---------------------------------------------------------------------------------------


def test_a_probe_is_one_question_with_a_time_of_its_own() -> None:
    pulse = up()

    assert pulse.probe(0.75) == PROBED
    assert pulse.probe(1.0) is None
    assert look(pulse, 1.5) is None
    assert pulse.due == 0.75 + PROBE
    assert look(pulse, 1.75) == "the peer did not answer while another of its name was there"


def test_an_answer_to_a_probe_is_a_sign_of_life_for_a_while() -> None:
    pulse = up()
    pulse.answered(SHOWN)  # nobody has asked
    shown = [pulse.has_shown_life]
    pulse.probe(1.0)
    pulse.heard(1.5)
    for answer in (ANSWER, SHOWN):
        pulse.answered(answer)
        shown.append(pulse.has_shown_life)
    assert pulse.due == 1.5 + HEARTBEAT / 2
    for now in (1.5 + HANDSHAKE, 1.5 + HANDSHAKE + 0.1):
        pulse.heard(now)
        shown.append(pulse.has_shown_life)

    assert shown == [False, False, True, True, False]


@pytest.mark.parametrize("is_closed", [True, False])
def test_one_that_is_not_in_use_is_asked_nothing_but_has_no_longer_than_a_probe(
    is_closed: bool,
) -> None:
    pulse = made()
    if is_closed:
        pulse.come_up()
        pulse.close(HANDSHAKE)

    assert pulse.probe(0.5) is None
    assert pulse.due == 1.5
    assert pulse.probe(4.5) is None
    assert pulse.due == 1.5


# -- a loop that was late -------------------------------------------------------------------------


@pytest.mark.parametrize("is_late", [True, False])
def test_a_late_look_gives_the_peer_as_much_time_again(is_late: bool) -> None:
    pulse = up()
    pulse.writing()
    if not is_late:
        quick(pulse, 2.99)

    assert (look(pulse, 3.5) is None) is is_late
    if is_late:
        quick(pulse, 3.5 + DEAD_AFTER - 0.01)
        assert look(pulse, 3.5 + DEAD_AFTER) == "nothing was heard of the peer for 6.5 seconds"


def test_but_only_once_until_something_is_heard() -> None:
    pulse = up()
    assert look(pulse, 10.0) is None
    pulse.heard(10.0)
    assert look(pulse, 20.0) is None

    assert look(pulse, 30.0) == "nothing was heard of the peer for 20.0 seconds"


def test_a_look_that_is_late_by_half_a_heartbeat_is_no_excuse() -> None:
    pulse = up()

    assert [look(pulse, now) for now in (1.0, 2.0)] == [None, None]
    assert look(pulse, 3.0) == "nothing was heard of the peer for 3.0 seconds"


# -- whatever happens -----------------------------------------------------------------------------

GAPS = st.floats(0.01, HEARTBEAT / 2)


@given(st.lists(st.tuples(GAPS, st.sampled_from(["look", "heard", "wrote", "probe"])), max_size=80))
def test_a_peer_that_answers_at_once_is_never_given_up(steps: list[tuple[float, str]]) -> None:
    pulse = up()
    now = 0.0
    for gap, what in steps:
        now += gap
        match what:
            case "heard":
                pulse.heard(now)
            case "wrote":
                pulse.writing()
                pulse.wrote(now)
            case "probe" if pulse.probe(now) is not None:
                pulse.answered(SHOWN)
        assert look(pulse, now) is None
        assert now < pulse.due <= now + HEARTBEAT / 2
        if pulse.sign(waits=False) == QUESTION:
            pulse.heard(now)
            pulse.answered(ANSWER)


@given(st.lists(st.tuples(GAPS, st.booleans()), max_size=20))
def test_a_peer_that_falls_silent_is_given_up_in_time(steps: list[tuple[float, bool]]) -> None:
    pulse = up()
    now = heard_at = 0.0
    for gap, hears in steps:
        now += gap
        if hears:
            pulse.heard(now)
            pulse.answered(ANSWER)
            heard_at = now
        elif now - heard_at >= DEAD_AFTER:
            break
        look(pulse, now)
        pulse.sign(waits=False)
    while look(pulse, now) is None:
        now = pulse.due

    assert DEAD_AFTER <= now - heard_at <= DEAD_AFTER + HEARTBEAT / 2 + 0.001
