"""Outposts: Devices that live elsewhere are linked and sent to like any other."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable

import pytest
from anyio import WouldBlock

from backplane import (
    Device,
    DeviceID,
    Disconnected,
    Dropped,
    Killed,
    Line,
    LinkDownError,
    LinkError,
    LinkMode,
    Message,
    NoConnection,
    Shutdown,
)
from backplane.lowlevel import (
    Forgotten,
    Heard,
    Listening,
    Outpost,
    OutpostEvent,
    Sent,
    Unlistening,
    end_of,
    outpost_of,
)

FAR = DeviceID(5, 7)


class Bell:
    """A waiter that counts its wakes."""

    def __init__(self) -> None:
        self.wakes = 0
        self.wakes_soon = 0

    def wake(self) -> None:
        self.wakes += 1

    def wake_soon(self) -> None:
        self.wakes_soon += 1


MODES = [LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER]
FORMS: dict[str, Callable[[Device, Line, LinkMode], None]] = {
    "from the Device": lambda near, far, mode: near.link(far, mode),
    "from a Line to it": lambda near, far, mode: near.line().link(far, mode),
    "from the outpost": lambda near, far, mode: far.link(near, mode),
}


class RefusedError(LinkError):
    """What the maker of an outpost does not permit."""


class Maker:
    """Refuses what happens at its outposts, but for what is in a set."""

    def __init__(self) -> None:
        self.asked: list[OutpostEvent] = []
        self.events: deque[OutpostEvent] = deque()
        self.open_to_all: set[Outpost] = set()

    def make(self, serial: int) -> tuple[Outpost, Line]:
        return Outpost.open(DeviceID(serial, 7), None, self.events, Bell(), None, self.permit)

    def permit(self, event: Sent | Listening) -> None:
        self.asked.append(event)
        if event.outpost not in self.open_to_all:
            raise RefusedError(event.outpost.id, f"do {type(event).__name__}")


def post() -> tuple[Outpost, Line, deque[OutpostEvent], Bell]:
    events: deque[OutpostEvent] = deque()
    bell = Bell()
    outpost, line = Outpost.open(FAR, "far", events, bell)
    return outpost, line, events, bell


def test_a_line_to_an_outpost_has_the_identity_of_the_far_device() -> None:
    outpost, line, _, _ = post()

    assert (line.id, line.name, line.connected) == (FAR, "far", True)
    assert outpost.line() == line
    assert outpost_of(line) is outpost
    assert outpost_of(Device().line()) is None
    assert repr(outpost) == "<Outpost of <DeviceID 5 of 0000000000000007>>"


def test_who_monitors_an_outpost_hears_of_the_end_under_that_identity() -> None:
    outpost, line, events, _ = post()
    device = Device()
    device.link(line, LinkMode.MONITOR)
    assert not events

    outpost.disconnect(NoConnection("b"))
    outpost.disconnect(None)

    assert device.receive_nowait() == Disconnected(FAR, NoConnection("b"))
    assert not line.connected
    with pytest.raises(LinkDownError):
        device.link(line)


@pytest.mark.parametrize("mode", [LinkMode.NOTIFY, LinkMode.PEER])
def test_whom_an_outpost_hears_of_is_told_to_its_maker(mode: LinkMode) -> None:
    outpost, line, events, bell = post()
    device = Device()

    device.link(line, mode)
    device.link(line, mode)
    assert set(events) == {Listening(outpost, device.line())}
    events.clear()

    device.disconnect(Killed())
    assert list(events) == [Heard(outpost, Disconnected(device.id, Killed()))]
    assert bell.wakes >= 2


@pytest.mark.parametrize("mode", [LinkMode.NOTIFY, LinkMode.PEER])
def test_a_link_that_is_taken_back_is_told_too(mode: LinkMode) -> None:
    outpost, line, events, _ = post()
    device = Device()
    device.link(line, mode)
    events.clear()

    device.unlink(line, mode)
    device.disconnect()

    assert list(events) == [Unlistening(outpost, device.line())]


def test_an_unlink_that_is_overtaken_by_the_end_is_told() -> None:
    """The entry is out when another thread ends the Device, and only then the note."""
    outpost, line, events, _ = post()
    device = Device()
    device.link(line, LinkMode.NOTIFY)
    events.clear()

    device._board.pop(line._board)
    device.disconnect(Killed())
    device._board._settle(line._board)

    assert list(events) == [Unlistening(outpost, device.line())]


def test_a_link_that_is_overtaken_by_an_unlink_or_by_the_end_is_taken_back() -> None:
    """The entry is there when another thread takes it out, and only then comes the note."""
    outpost, line, events, _ = post()
    device = Device()
    told = [Listening(outpost, device.line()), Unlistening(outpost, device.line())]

    device._board[line._board] = None
    device.unlink(line, LinkMode.NOTIFY)
    line._board[device._board.serial] = device._board
    assert list(events) == told
    device._board._settle(line._board)
    events.clear()

    device._board[line._board] = None
    device.disconnect(Killed())
    line._board[device._board.serial] = device._board
    assert list(events) == [Heard(outpost, Disconnected(device.id, Killed())), *told]


def test_a_link_that_is_taken_back_and_made_again_meanwhile_is_told_last() -> None:
    device = Device()

    class Meddled(deque[OutpostEvent]):
        """Another thread links again, just when it is told that there is no link."""

        def append(self, event: OutpostEvent) -> None:
            super().append(event)
            if isinstance(event, Unlistening):
                device._board[line._board] = None

    events = Meddled()
    outpost, line = Outpost.open(FAR, None, events, Bell())
    line._board[device._board.serial] = device._board

    yes, no = Listening(outpost, device.line()), Unlistening(outpost, device.line())
    assert list(events) == [yes, no, yes]


def test_messages_go_to_the_maker() -> None:
    outpost, line, events, bell = post()

    assert line.shutdown()
    assert list(events) == [Sent(outpost, Shutdown(None))]
    assert bell.wakes == 1
    outpost.disconnect(None)
    assert not line.shutdown()
    assert len(events) == 1


def test_nothing_happens_at_an_outpost_that_has_ended() -> None:
    outpost, line, events, _ = post()
    device = Device()
    device.link(line)
    events.clear()

    outpost.disconnect(None)
    device.disconnect(Killed())

    assert not events


def test_an_outpost_that_nobody_holds_is_forgotten() -> None:
    outpost, line, events, bell = post()
    device = Device()
    device.link(line)
    events.clear()
    del line
    gc.collect()
    assert not events
    assert outpost.line() is not None

    again = outpost.line()
    assert again is not None
    device.unlink(again)
    del again
    gc.collect()

    assert list(events) == [Unlistening(outpost, device.line()), Forgotten(outpost)]
    assert bell.wakes_soon == 1
    assert outpost.line() is None
    outpost.disconnect(None)


def test_an_outpost_can_hear_of_whom_its_maker_links_it_with() -> None:
    outpost, line, events, _ = post()
    device = Device()

    line.link(device, LinkMode.MONITOR)
    device.disconnect()

    assert list(events) == [
        Listening(outpost, device.line()),
        Heard(outpost, Disconnected(device.id, None)),
    ]


def test_a_device_that_is_collected_is_heard_without_touching_a_loop() -> None:
    outpost, line, events, bell = post()
    device = Device()
    device.link(line, LinkMode.NOTIFY)
    events.clear()
    bell.wakes = 0
    identity = device.id

    del device
    gc.collect()

    assert list(events) == [Heard(outpost, Disconnected(identity, Dropped()))]
    assert (bell.wakes, bell.wakes_soon) == (0, 1)


def test_each_end_is_heard_once_from_many_threads() -> None:
    outpost, line, events, _ = post()
    devices = [Device() for _ in range(400)]

    def end(number: int) -> None:
        for device in devices[number::4]:
            device.link(line)
            device.disconnect(Killed())

    threads = [threading.Thread(target=end, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    heard = [event.message.sender for event in events if isinstance(event, Heard)]
    assert sorted(each.serial for each in heard) == sorted(each.id.serial for each in devices)
    assert outpost.line() == line


def test_an_outpost_that_has_ended_hears_nothing_of_another_thread_that_is_late() -> None:
    outpost, line, events, _ = post()
    outpost.disconnect(None)

    assert not line._board.hear(Disconnected(Device().id, None))
    assert not events


# -- what its maker refuses ---------------------------------------------------------------


def table(it: Device | Line) -> dict[object, object]:
    return dict(it._board)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_a_link_that_is_refused_changes_nothing(form: str, mode: LinkMode) -> None:
    maker = Maker()
    outpost, line = maker.make(5)
    near = Device()
    hears = LinkMode.MONITOR if form == "from the outpost" else LinkMode.NOTIFY
    if not mode & hears:
        FORMS[form](near, line, mode)
        assert maker.asked == []
        assert maker.events == deque()
        return

    with pytest.raises(RefusedError, match="cannot do Listening"):
        FORMS[form](near, line, mode)

    assert maker.asked == [Listening(outpost, near.line())]
    assert maker.events == deque()
    assert table(near) == table(line) == {}
    assert line.connected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_a_link_that_is_refused_leaves_those_that_there_are(form: str, mode: LinkMode) -> None:
    maker = Maker()
    outpost, line = maker.make(5)
    near = Device()
    maker.open_to_all.add(outpost)
    near.link(line)
    maker.open_to_all.clear()
    before = table(near), table(line)
    with pytest.raises(RefusedError):
        FORMS[form](near, line, LinkMode.PEER)

    assert (table(near), table(line)) == before
    near.unlink(line, mode)
    near.unlink(line)
    outpost.disconnect(Killed())
    with pytest.raises(WouldBlock):
        near.receive_nowait()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_between_two_outposts_each_can_refuse(mode: LinkMode, first: bool, second: bool) -> None:
    maker = Maker()
    one, line = maker.make(5)
    other, other_line = maker.make(6)
    maker.open_to_all = {outpost for outpost, it in ((one, first), (other, second)) if it}
    refused = (LinkMode.MONITOR in mode and not first) or (LinkMode.NOTIFY in mode and not second)

    if refused:
        with pytest.raises(RefusedError):
            line.link(other_line, mode)
        assert table(line) == table(other_line) == {}
        assert maker.events == deque()
    else:
        line.link(other_line, mode)
        assert len(table(line)) == len(table(other_line)) == (2 if mode is LinkMode.PEER else 1)


def test_a_message_that_is_refused_is_not_sent() -> None:
    maker = Maker()
    outpost, line = maker.make(5)

    with pytest.raises(RefusedError):
        line.shutdown()
    with pytest.raises(RefusedError):
        line.send(Disconnected(FAR, None))

    news: list[Message] = [Shutdown(None), Disconnected(FAR, None)]
    assert maker.asked == [Sent(outpost, message) for message in news]
    assert maker.events == deque()
    outpost.disconnect(None)
    assert line.shutdown() is False
    assert len(maker.asked) == 2


def test_who_hears_of_it_is_not_asked_whether_that_may_be() -> None:
    maker = Maker()
    outpost, line = maker.make(5)
    near = Device()
    near.link(line, LinkMode.MONITOR)
    near.unlink(line)
    near.link(line, LinkMode.MONITOR)
    outpost.disconnect(Killed())

    assert near.receive_nowait() == Disconnected(outpost.id, Killed())
    assert maker.asked == []


def test_a_link_that_is_refused_stops_nobodys_work() -> None:
    maker = Maker()
    outpost, line = maker.make(5)
    other = Device()
    other.link(line, LinkMode.MONITOR)
    with pytest.raises(RefusedError):
        Device().link(line)
    with pytest.raises(RefusedError):
        line.shutdown()

    assert line.connected
    assert len(other._board) == 1
    outpost.disconnect(None)
    assert other.receive_nowait() == Disconnected(outpost.id, None)


# -- why it has ended ---------------------------------------------------------------------


def test_why_a_device_has_ended_can_be_asked() -> None:
    device, dropped = Device(), Device()
    outpost, far, _, _ = post()
    lines = [device.line(), dropped.line(), far]
    assert [end_of(line) for line in (device, *lines)] == [None] * 4

    device.disconnect(Killed())
    device.disconnect(None)
    gone = dropped.id
    del dropped
    gc.collect()
    outpost.disconnect(NoConnection("b"))

    assert end_of(device) == Disconnected(device.id, Killed())
    assert [end_of(line) for line in lines] == [
        Disconnected(device.id, Killed()),
        Disconnected(gone, Dropped()),
        Disconnected(FAR, NoConnection("b")),
    ]
