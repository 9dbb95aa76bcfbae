"""The mesh against a model of two dictionaries and a set, by Hypothesis.

Everything that can be done without waiting is done in any order, on a handful
of Devices that are linked, ended, dropped and lost, through Devices and Lines.
After each step the tables of all plugboards must hold what the model says, and
nothing else. That is the one access to the inside of a Device: ``_board``, its
plugboard, is a dict of links (see ``backplane._plugboard``); no public name shows
what a Device would still tell, or what it keeps of those that have ended.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backplane import (
    Cancelled,
    Cascaded,
    Device,
    DeviceDownError,
    DeviceID,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    Line,
    LinkDownError,
    LinkError,
    LinkMode,
    Message,
    NoConnection,
    Shutdown,
)
from backplane._plugboard import Plugboard

MONITOR, NOTIFY, PEER = LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER
MOST = 7  # few enough for them to meet often

modes = st.sampled_from([MONITOR, NOTIFY, PEER])
root_faults = st.one_of(
    st.sampled_from([Dropped(), Cancelled(), Killed()]),
    st.builds(Failed, st.builds(ValueError, st.integers())),
    st.builds(NoConnection, st.text(max_size=3)),
)
ids = st.builds(DeviceID, st.integers(1, 99), st.just(0))
faults: st.SearchStrategy[Fault | None] = st.one_of(
    st.none(), root_faults, st.builds(Cascaded, ids, root_faults)
)


def by_line(line: Line, device: Device | None) -> Device | Line:
    return line


def by_device(line: Line, device: Device | None) -> Device | Line:
    """As a Device if it is there: after its owner forgot it, only its Line is."""
    return line if device is None else device


Form = Callable[[Line, Device | None], Device | Line]
forms = st.sampled_from([by_line, by_device])


def error_of(call: Callable[[], object]) -> tuple[type[Exception] | None, DeviceID | None]:
    """What a call raised, and whom that was about.

    The error itself is not kept: its traceback refers to Devices.
    """
    try:
        call()
    except LinkError as error:
        return type(error), error.device
    except (ValueError, KeyError, anyio.WouldBlock) as error:
        return type(error), None
    return None, None


class Mesh(RuleBasedStateMachine):
    """Devices by number, and what each of them should be."""

    def __init__(self) -> None:
        super().__init__()
        # The real ones. Nobody else refers to a Device.
        self.devices: dict[int, Device] = {}
        self.lines: list[Line] = []
        self.boards: list[Plugboard] = []
        # The model. Who has no mail has ended.
        self.mail: dict[int, list[Message]] = {}
        self.links: set[tuple[int, int]] = set()
        self.lost: int | None = None
        self.sent = 0
        gc.disable()  # a lost Device ends when the rule says so

    def teardown(self) -> None:
        gc.enable()
        if self.lost is not None:
            self.collect()
        for number in sorted(self.mail):
            self.receive_all(number)
            self.end(number, None)
            self.the_tables_hold_the_links_and_nothing_else()
        assert not self.links
        assert not self.mail

    # -- rules ---------------------------------------------------------------
    # They draw from what there is, and more often what changes something: a
    # mesh in which all have ended, or nobody is linked, has little to show.

    @initialize(count=st.integers(2, MOST))
    def start(self, count: int) -> None:
        for _ in range(count):
            self.create()

    @precondition(lambda self: len(self.mail) < MOST)
    @rule()
    def create(self) -> None:
        number = len(self.lines)
        device = Device(f"number {number}")
        self.devices[number] = device
        self.lines.append(device.line())
        self.boards.append(device._board)
        self.mail[number] = []

    @precondition(lambda self: len(self.mail) >= 2)
    @rule(data=st.data(), mode=modes, my_form=forms, their_form=forms)
    def link(self, data: st.DataObject, mode: LinkMode, my_form: Form, their_form: Form) -> None:
        alive = st.sampled_from(sorted(self.mail))
        mine, theirs = data.draw(st.lists(alive, min_size=2, max_size=2, unique=True))
        self.end_of(mine, my_form).link(self.end_of(theirs, their_form), mode)
        self.links |= self.directions(mine, theirs, mode)

    @rule(data=st.data(), mode=modes)
    def link_with_all(self, data: st.DataObject, mode: LinkMode) -> None:
        mine = self.draw_alive(data)
        for theirs in sorted(self.mail.keys() - {mine}):
            self.devices[mine].link(self.lines[theirs], mode)
            self.links |= self.directions(mine, theirs, mode)

    @rule(data=st.data(), mode=modes, my_form=forms, their_form=forms)
    def link_whatever_state_they_are_in(
        self, data: st.DataObject, mode: LinkMode, my_form: Form, their_form: Form
    ) -> None:
        mine, theirs = self.draw_any(data), self.draw_any(data)
        one, other = self.end_of(mine, my_form), self.end_of(theirs, their_form)
        result = error_of(lambda: one.link(other, mode))
        if mine == theirs:
            assert result == (ValueError, None)
        elif mine not in self.mail:
            assert result == (DeviceDownError, one.id)
        elif theirs not in self.mail:
            assert result == (LinkDownError, other.id)
        else:
            assert result == (None, None)
            self.links |= self.directions(mine, theirs, mode)

    @precondition(lambda self: self.links)
    @rule(data=st.data(), mode=modes, my_form=forms, their_form=forms)
    def unlink(self, data: st.DataObject, mode: LinkMode, my_form: Form, their_form: Form) -> None:
        mine, theirs = data.draw(st.sampled_from(sorted(self.links)))
        self.end_of(mine, my_form).unlink(self.end_of(theirs, their_form), mode)
        self.links -= self.directions(mine, theirs, mode)

    @rule(data=st.data(), mode=modes, my_form=forms, their_form=forms)
    def unlink_whatever_state_they_are_in(
        self, data: st.DataObject, mode: LinkMode, my_form: Form, their_form: Form
    ) -> None:
        mine, theirs = self.draw_any(data), self.draw_any(data)
        one, other = self.end_of(mine, my_form), self.end_of(theirs, their_form)
        result = error_of(lambda: one.unlink(other, mode))
        assert result == ((ValueError, None) if mine == theirs else (None, None))
        self.links -= self.directions(mine, theirs, mode)

    @precondition(lambda self: len(self.mail) > 2)
    @rule(data=st.data(), fault=faults)
    def disconnect(self, data: st.DataObject, fault: Fault | None) -> None:
        self.end(self.draw_alive(data), fault)

    @rule(data=st.data(), fault=faults)
    def disconnect_again(self, data: st.DataObject, fault: Fault | None) -> None:
        """The first cause counts."""
        number = self.draw_any(data)
        if number in self.devices and number not in self.mail:
            self.end(number, fault)

    @precondition(lambda self: len(self.mail) > 2)
    @rule(data=st.data(), error=st.none() | st.builds(KeyError, st.text(max_size=3)))
    def leave_block(self, data: st.DataObject, error: KeyError | None) -> None:
        number = self.draw_alive(data)

        def block() -> None:
            with self.devices[number]:
                if error is not None:
                    raise error

        assert error_of(block) == (None if error is None else KeyError, None)
        self.ends(number, None if error is None else Failed(error))

    @precondition(lambda self: len(self.mail) > 2)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Forget the only reference."""
        number = self.draw_alive(data)
        del self.devices[number]
        self.ends(number, Dropped())

    @precondition(lambda self: len(self.mail) > 2 and self.lost is None)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Forget it, but in a reference cycle: it stays until that is collected.

        Only one at a time: the collector may take several in any order.
        """
        number = self.draw_alive(data)
        cycle: list[object] = [self.devices.pop(number)]
        cycle.append(cycle)
        self.lost = number

    @precondition(lambda self: self.lost is not None)
    @rule()
    def collect(self) -> None:
        assert self.lost is not None
        gc.collect()
        self.ends(self.lost, Dropped())
        self.lost = None

    @rule(data=st.data(), with_sender=st.booleans())
    def shut_down(self, data: st.DataObject, with_sender: bool) -> None:
        number = self.draw_any(data)
        sender = self.lines[self.draw_any(data)].id if with_sender else None
        assert self.lines[number].shutdown(sender) == (number in self.mail)
        self.comes(number, Shutdown(sender))

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """A message that no other one equals, so that the order shows."""
        number, sender = self.draw_any(data), self.draw_any(data)
        self.sent += 1
        message = Disconnected(self.lines[sender].id, NoConnection(f"message {self.sent}"))
        assert self.lines[number].send(message) == (number in self.mail)
        self.comes(number, message)

    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        self.take(self.draw_any(data))

    @rule(data=st.data())
    def receive_everything(self, data: st.DataObject) -> None:
        self.receive_all(self.draw_any(data))

    # -- what always holds ---------------------------------------------------

    @invariant()
    def who_has_ended_is_known(self) -> None:
        for number, line in enumerate(self.lines):
            assert line.connected == (number in self.mail)
        for number, device in self.devices.items():
            assert device.connected == (number in self.mail)
            assert device.line() == self.lines[number]

    @invariant()
    def the_tables_hold_the_links_and_nothing_else(self) -> None:
        for number, board in enumerate(self.boards):
            told = {key for key in board if isinstance(key, Plugboard)}
            if number not in self.mail:
                # What it keeps of its end must keep nobody else's plugboard alive.
                assert not told
                assert not any(isinstance(value, Plugboard | deque) for value in board.values())
                continue
            heard = {key for key in board if isinstance(key, int)}
            assert told == {self.boards[to] for of, to in self.links if of == number}
            assert heard == {self.boards[of].serial for of, to in self.links if to == number}
            assert len(board) - len(told) - len(heard) <= 1  # the mailbox, once used

    # -- what the rules are made of -------------------------------------------------

    def draw_any(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.lines) - 1))

    def draw_alive(self, data: st.DataObject) -> int:
        """One that is connected, and whose owner has not lost it."""
        return data.draw(st.sampled_from(sorted(self.mail.keys() & self.devices)))

    def end(self, number: int, fault: Fault | None) -> None:
        self.devices[number].disconnect(fault)
        self.ends(number, fault)

    def take(self, number: int) -> None:
        """Receive as the model says."""
        if number not in self.devices:
            return
        device = self.devices[number]
        if number not in self.mail:
            assert error_of(device.receive_nowait) == (DeviceDownError, device.id)
        elif not self.mail[number]:
            assert error_of(device.receive_nowait) == (anyio.WouldBlock, None)
        else:
            assert device.receive_nowait() == self.mail[number].pop(0)

    def receive_all(self, number: int) -> None:
        while self.mail.get(number) and number in self.devices:
            self.take(number)
        self.take(number)

    def end_of(self, number: int, form: Form) -> Device | Line:
        return form(self.lines[number], self.devices.get(number))

    def directions(self, mine: int, theirs: int, mode: LinkMode) -> set[tuple[int, int]]:
        """Who tells whom."""
        each = {MONITOR: (theirs, mine), NOTIFY: (mine, theirs)}
        return {direction for part, direction in each.items() if part in mode}

    def comes(self, number: int, message: Message) -> None:
        if number in self.mail:
            self.mail[number].append(message)

    def ends(self, number: int, fault: Fault | None) -> None:
        """Tell whoever hears this one, once; it is linked with nobody any longer."""
        if self.mail.pop(number, None) is None:
            return
        for speaker, listener in self.links:
            if speaker == number:
                self.comes(listener, Disconnected(self.lines[number].id, fault))
        self.links = {link for link in self.links if number not in link}


@pytest.mark.heavy
def test_the_mesh_does_what_a_plain_model_of_it_does() -> None:
    run_state_machine_as_test(Mesh)
