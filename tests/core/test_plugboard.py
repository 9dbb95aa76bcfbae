"""The shared half of a Device: the interleavings of threads, put into one thread step by step.

A second thread that comes between two steps of the first is played by calling
its step there. What real threads do to each other is tested in test_threads.py.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from backplane import Device, DeviceDownError, Disconnected, Killed, Message, Shutdown
from backplane._plugboard import OPEN, Plugboard, next_serial, serials


class Bell:
    """A waiter that counts how often it is woken, and can do something the first time."""

    def __init__(self, on_wake: Callable[[], object] = lambda: None) -> None:
        self.on_wake = on_wake
        self.woken = 0
        self.woken_soon = 0

    def wake(self) -> None:
        self.woken += 1
        if self.woken == 1:
            self.on_wake()

    def wake_soon(self) -> None:
        self.woken_soon += 1


def board_of(device: Device) -> Plugboard:
    return device._board


def heard(device: Device) -> list[Message]:
    """All that is in the mailbox, taken out."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except anyio.WouldBlock:
            return messages


# -- serial numbers -------------------------------------------------------------------


@pytest.mark.parametrize("gil", [True, False])
def test_serials_count_up_from_one(gil: bool) -> None:
    draw = serials(gil=gil)

    assert [draw(), draw(), draw()] == [1, 2, 3]


def draw_in_threads(draw: Callable[[], int], threads: int, times: int) -> Iterator[int]:
    def draw_many(_: int) -> list[int]:
        return [draw() for _ in range(times)]

    with ThreadPoolExecutor(threads) as pool:
        for batch in pool.map(draw_many, range(threads)):
            yield from batch


def test_threads_without_a_gil_draw_each_serial_once() -> None:
    drawn = list(draw_in_threads(serials(gil=False), threads=8, times=1000))

    assert sorted(drawn) == list(range(1, 8001))


def test_threads_of_this_interpreter_draw_each_serial_once() -> None:
    drawn = list(draw_in_threads(next_serial, threads=8, times=1000))

    assert len(set(drawn)) == 8000


# -- the end --------------------------------------------------------------------------


def test_the_first_cause_of_an_end_wins() -> None:
    device, listener = Device(), Device()
    device.link(listener)

    board_of(device).close(Killed())
    board_of(device).close(None)

    assert heard(listener) == [Disconnected(device.id, Killed())]


def test_of_two_that_end_a_device_at_once_one_is_the_cause_for_all() -> None:
    """The second thread ends it while the first is telling whoever listens."""
    device, first, last = Device(), Device(), Device()
    first.link(device)
    last.link(device)
    bell = Bell(on_wake=device.disconnect)
    assert board_of(first).claim(bell)

    device.disconnect(Killed())

    assert heard(first) == heard(last) == [Disconnected(device.id, Killed())]


def test_an_end_during_an_end_tells_those_who_are_left() -> None:
    """One of those that are told ends another that was about to be told."""
    device, first, last = Device(), Device(), Device()
    first.link(device)
    last.link(device)
    board_of(first).claim(Bell(on_wake=last.disconnect))

    device.disconnect()

    assert heard(first) == [Disconnected(device.id, None)]
    with pytest.raises(DeviceDownError):
        last.receive_nowait()


# -- links against ends ---------------------------------------------------------------


def test_a_link_that_comes_just_after_the_end_tells_at_once() -> None:
    """The speaker ends after `link` has looked, and before it has linked."""
    speaker, listener = Device(), Device()
    speaker.disconnect(Killed())

    board_of(listener).listen(board_of(speaker))

    assert heard(listener) == [Disconnected(speaker.id, Killed())]
    assert board_of(listener) not in board_of(speaker)
    assert speaker.id.serial not in board_of(listener)


def test_of_a_pair_that_comes_just_after_the_end_the_other_one_hears() -> None:
    speaker, listener = Device(), Device()
    speaker.disconnect(Killed())

    board_of(listener).pair(board_of(speaker))

    assert heard(listener) == [Disconnected(speaker.id, Killed())]
    assert board_of(listener) not in board_of(speaker)
    assert board_of(speaker) not in board_of(listener)
    assert speaker.id.serial not in board_of(listener)


def test_who_links_again_just_after_the_end_is_not_told_again() -> None:
    speaker, listener = Device(), Device()
    listener.link(speaker)
    speaker.disconnect(Killed())

    board_of(listener).listen(board_of(speaker))
    board_of(listener).listen(board_of(speaker))

    assert heard(listener) == [Disconnected(speaker.id, Killed())]


def test_a_link_to_a_listener_that_has_just_ended_is_taken_back() -> None:
    speaker, listener = Device(), Device()
    listener.disconnect()

    board_of(listener).listen(board_of(speaker))

    assert not board_of(speaker)
    speaker.disconnect()
    with pytest.raises(DeviceDownError):
        listener.receive_nowait()


def test_a_link_between_two_that_have_just_ended_is_silent() -> None:
    speaker, listener = Device(), Device()
    speaker.disconnect()
    listener.disconnect()
    before = len(board_of(speaker)), len(board_of(listener))

    board_of(listener).listen(board_of(speaker))

    assert (len(board_of(speaker)), len(board_of(listener))) == before


def test_an_unlink_in_the_middle_of_a_link_leaves_no_note() -> None:
    """`listen` has made its entry and not yet the note when another thread unlinks."""
    speaker, listener = board_of(device := Device()), board_of(other := Device())

    speaker[listener] = None
    listener.unlisten(speaker)
    listener[speaker.serial] = speaker  # the step at which the first thread goes on
    speaker._settle(listener)

    assert not speaker
    assert not listener
    device.disconnect()
    assert heard(other) == []


def test_a_link_in_the_middle_of_an_unlink_leaves_its_note() -> None:
    """`unlisten` has taken the entry out and not yet the note when another thread links."""
    speaker, listener = board_of(device := Device()), board_of(other := Device())
    listener.listen(speaker)

    speaker.pop(listener)
    listener.listen(speaker)
    listener.pop(speaker.serial)
    speaker._settle(listener)

    assert listener[speaker.serial] is speaker
    device.disconnect()
    assert heard(other) == [Disconnected(device.id, None)]


class Meddled(Plugboard):
    """A listener of whom another thread's step is played when its note is written or removed."""

    __slots__ = ("meddle",)

    meddle: Callable[[], None] | None

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        self._played()

    def pop(self, key: object, *default: object) -> object:
        try:
            return super().pop(key, *default)
        finally:
            self._played()

    def _played(self) -> None:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()


def meddled(meddle: Callable[[], None]) -> Meddled:
    board = Meddled()
    board.serial = next_serial()
    board.name = None
    board.end = OPEN
    board.inbox = None
    board.waiter = None
    board.meddle = meddle
    return board


def test_who_notes_a_link_while_another_takes_it_back_looks_again() -> None:
    speaker = board_of(_device := Device())
    listener = meddled(lambda: speaker.__delitem__(listener))
    speaker[listener] = None

    speaker._settle(listener)

    assert not listener
    assert not speaker


def test_who_forgets_a_link_while_another_makes_it_looks_again() -> None:
    speaker = board_of(_device := Device())
    listener = meddled(lambda: speaker.__setitem__(listener, None))

    speaker._settle(listener)

    assert listener[speaker.serial] is speaker


# -- the mailbox ----------------------------------------------------------------------


def test_who_is_quicker_gets_the_last_message() -> None:
    """Another thread takes the message between the look and the take."""

    class Contested(deque[Message]):
        def __bool__(self) -> bool:
            self.clear()
            return True

    device = Device()
    board_of(device).inbox = Contested([Shutdown(None)])

    with pytest.raises(anyio.WouldBlock):
        device.receive_nowait()


def test_a_message_that_comes_with_the_end_is_gone_with_the_device() -> None:
    """The receiver ends while a message is being delivered, by the very wake of it."""
    device = Device()
    board_of(device).claim(Bell(on_wake=device.disconnect))

    assert device.line().shutdown()

    assert not board_of(device).inbox
    with pytest.raises(DeviceDownError):
        device.receive_nowait()


def test_a_mailbox_has_one_taker_at_a_time() -> None:
    board, first, second = board_of(_device := Device()), Bell(), Bell()

    assert board.claim(first)
    assert not board.claim(second)
    board.release()
    assert board.claim(second)


def test_the_taker_is_woken_for_each_message_and_for_the_end() -> None:
    device, bell = Device(), Bell()
    board_of(device).claim(bell)

    device.line().shutdown()
    device.line().shutdown()
    device.disconnect()

    assert (bell.woken, bell.woken_soon) == (3, 0)


def test_a_taker_is_woken_out_of_line_by_a_finalizer() -> None:
    device, listener, bell = Device(), Device(), Bell()
    listener.link(device)
    board_of(listener).claim(bell)

    del device

    assert (bell.woken, bell.woken_soon) == (0, 1)


def test_nobody_is_woken_after_the_release() -> None:
    device, bell = Device(), Bell()
    board_of(device).claim(bell)
    board_of(device).release()

    device.line().shutdown()

    assert (bell.woken, bell.woken_soon) == (0, 0)


# -- what is kept ---------------------------------------------------------------------


def test_a_link_that_is_taken_back_leaves_nothing() -> None:
    first, second = Device(), Device()
    first.link(second)

    second.unlink(first)

    assert not board_of(first)
    assert not board_of(second)


@pytest.mark.parametrize("ended", [0, 1])
def test_an_end_leaves_no_link_behind(ended: int) -> None:
    pair = [Device(), Device()]
    pair[0].link(pair[1])

    pair[ended].disconnect()

    survivor = pair[1 - ended]
    assert heard(survivor) == [Disconnected(pair[ended].id, None)]
    assert board_of(pair[ended]) not in board_of(survivor)
    assert pair[ended].id.serial not in board_of(survivor)


def test_links_keep_no_device_alive() -> None:
    first, second = Device(), Device()
    first.link(second)
    before = sys.getrefcount(first)

    third = Device()
    third.link(first)

    assert sys.getrefcount(first) == before
