"""Links across a connection: who is linked hears, once, why, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from anyio import WouldBlock

from backplane import (
    Cancelled,
    Cascaded,
    Device,
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
from backplane.bridge._errors import (
    BridgeError,
    BusyError,
    FrameError,
    GoneError,
    NotAllowedError,
    PayloadError,
    RemoteError,
)
from backplane.bridge._exports import Right
from backplane.bridge._frames import (
    Fire,
    Listen,
    Send,
    Unlisten,
    Unwatch,
    Watch,
    WireFault,
    WireID,
)
from backplane.bridge._limits import Limits
from backplane.bridge._states import State
from backplane.lowlevel import Heard, Listening, Unlistening, outpost_of

if TYPE_CHECKING:
    from liar import Liar
    from wire import End, Wire, pair, reach
else:
    from .liar import Liar
    from .wire import End, Wire, pair, reach

MODES = [LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER]
FORMS: dict[str, Callable[[Device, Line, str, LinkMode], None]] = {
    "from the Device": lambda near, far, verb, mode: getattr(near, verb)(far, mode),
    "from a Line to it": lambda near, far, verb, mode: getattr(near.line(), verb)(far, mode),
    "from the far Line": lambda near, far, verb, mode: getattr(far, verb)(near, mode),
    "between two Lines": lambda near, far, verb, mode: getattr(far, verb)(near.line(), mode),
}


def news(device: Device) -> list[Message]:
    """All that has come."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except WouldBlock:
            return messages


def swapped(mode: LinkMode) -> LinkMode:
    return LinkMode.MONITOR if mode is LinkMode.NOTIFY else LinkMode.NOTIFY


class Two:
    """Device ``a`` here, Device ``b`` there, a Line to ``b`` here, and the wire between."""

    def __init__(self, rights: Right = Right.ALL, **options: Any) -> None:
        self.here, self.there, self.wire = pair(**options)
        self.a, self.b = Device("a"), Device("b")
        self.rights = rights
        self.line = reach(self.here, self.there, self.wire, self.b.line(), rights)
        self.wire.settle()

    def back(self) -> Line:
        """A Line over there to ``a``."""
        return reach(self.there, self.here, self.wire, self.a.line(), self.rights)

    def settle(self) -> None:
        self.wire.settle()

    def rest(self) -> int:
        """What the two sessions hold, when the tests' own Lines are gone."""
        self.line = None  # type: ignore[assignment]
        gc.collect()
        self.settle()
        sessions = (self.wire.a, self.wire.b)
        mirrors = [each.mirror for each in sessions]
        held = sum(len(each) + len(each.ear) + len(each.pairs) for each in mirrors)
        return held + sum(len(each.outbox.events) for each in sessions)


@pytest.fixture
def two() -> Two:
    return Two()


# -- links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["a", "b"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_who_is_linked_hears_and_nobody_else(form: str, mode: LinkMode, ends: str) -> None:
    two = Two()
    FORMS[form](two.a, two.line, "link", mode)
    seen = swapped(mode) if "far" in form or "between" in form else mode
    if mode is LinkMode.PEER:
        seen = mode
    two.settle()

    speaker, listener = (two.a, two.b) if ends == "a" else (two.b, two.a)
    speaker.disconnect(Killed())
    two.settle()

    told = bool(seen & (LinkMode.NOTIFY if ends == "a" else LinkMode.MONITOR))
    assert news(listener) == ([Disconnected(speaker.id, Killed())] if told else [])
    assert two.rest() == 0


@pytest.mark.parametrize("moved", [True, False], ids=["told in between", "all at once"])
@pytest.mark.parametrize("less", MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_modes_subtract(form: str, mode: LinkMode, less: LinkMode, moved: bool) -> None:
    for ends in ("a", "b"):
        two = Two()
        FORMS[form](two.a, two.line, "link", mode)
        if moved:
            two.settle()
        FORMS[form](two.a, two.line, "unlink", less)
        if moved:
            two.settle()
        speaker, listener = (two.a, two.b) if ends == "a" else (two.b, two.a)
        speaker.disconnect()
        two.settle()

        far = "far" in form or "between" in form
        rest = mode & ~less
        told = bool(rest & (LinkMode.NOTIFY if (ends == "a") is not far else LinkMode.MONITOR))
        assert news(listener) == ([Disconnected(speaker.id, None)] if told else [])
        assert two.rest() == 0


@pytest.mark.parametrize("mode", MODES)
def test_linked_twice_is_linked_once(two: Two, mode: LinkMode) -> None:
    for _ in range(3):
        two.a.link(two.line, mode)
        two.settle()
    two.b.disconnect()
    two.settle()

    assert len(news(two.a)) == (mode is not LinkMode.NOTIFY)
    assert two.rest() == 0


@pytest.mark.parametrize("first", ["a", "b", "both at once"])
@pytest.mark.parametrize("ends", ["a", "b", "the connection"])
@pytest.mark.parametrize("known", ["before", "after"])
def test_linked_from_both_sides_is_linked_once(first: str, ends: str, known: str) -> None:
    two = Two()
    back = two.back() if known == "before" else None
    if first != "b":
        two.a.link(two.line)
    if first == "a" or known == "after":
        two.settle()
    back = back or two.back()
    two.b.link(back)
    if first == "b":
        two.settle()
        two.a.link(two.line)
    two.settle()

    if ends == "a":
        two.a.disconnect(Killed())
    elif ends == "b":
        two.b.disconnect(Killed())
    else:
        two.wire.lose()
    two.settle()

    for device, other, node in ((two.a, two.b, "b"), (two.b, two.a, "a")):
        if device.connected:
            fault = NoConnection(node) if ends == "the connection" else Killed()
            assert news(device) == [Disconnected(other.id, fault)]


def test_who_hears_can_unlink_what_the_other_has_linked(two: Two) -> None:
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    back = two.back()
    two.b.unlink(back, LinkMode.MONITOR)
    two.a.disconnect(Killed())
    two.settle()

    assert news(two.b) == []


def test_what_was_unlinked_over_there_can_be_linked_again_from_here(two: Two) -> None:
    back = two.back()
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    two.b.unlink(back, LinkMode.MONITOR)
    two.settle()
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    two.a.disconnect(Killed())
    two.settle()

    assert news(two.b) == [Disconnected(two.a.id, Killed())]


def test_lines_that_are_found_twice_are_equal(two: Two) -> None:
    again = reach(two.here, two.there, two.wire, two.b.line())

    assert again == two.line
    assert again.id == two.b.id


def test_lines_with_other_rights_are_other_lines(two: Two) -> None:
    """One might be refused what is allowed to the other."""
    weak = reach(two.here, two.there, two.wire, two.b.line(), Right.MONITOR)
    two.a.link(weak, LinkMode.MONITOR)
    two.settle()
    assert weak != two.line
    assert weak.id == two.line.id

    two.b.disconnect()
    two.settle()

    assert not weak.connected
    assert not two.line.connected
    assert news(two.a) == [Disconnected(two.b.id, None)]
    del weak
    assert two.rest() == 0


def test_a_listener_is_joined_to_the_first_line_that_is_left() -> None:
    two = Two()
    one = reach(two.there, two.here, two.wire, two.a.line(), Right.MONITOR)
    other = reach(two.there, two.here, two.wire, two.a.line(), Right.ALL)
    del one
    gc.collect()
    two.b.link(other, LinkMode.MONITOR)
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    two.a.disconnect()
    two.settle()

    assert news(two.b) == [Disconnected(two.a.id, None)]


def test_many_listen_to_many(two: Two) -> None:
    ours = [Device() for _ in range(5)]
    theirs = [Device() for _ in range(5)]
    lines = [reach(two.here, two.there, two.wire, each.line()) for each in theirs]
    for one, line in itertools.product(ours, lines):
        one.link(line)
    two.settle()
    ours[0].disconnect(Killed())
    theirs[4].disconnect(Cancelled())
    two.settle()

    for one in ours[1:]:
        assert news(one) == [Disconnected(theirs[4].id, Cancelled())]
    for each in theirs[:4]:
        assert news(each) == [Disconnected(ours[0].id, Killed())]


def test_far_devices_hear_of_each_other_through_here(two: Two) -> None:
    c = Device()
    line = reach(two.here, two.there, two.wire, c.line())
    two.line.link(line)
    two.settle()
    c.disconnect(Killed())
    two.settle()

    assert news(two.b) == [Disconnected(c.id, Killed())]
    two.b.disconnect()  # that it could be heard of through here has kept the Line to it
    del line
    two.here.exports.settle()
    assert two.rest() == 0


def test_a_device_links_no_line_to_itself(two: Two) -> None:
    """Not even through another node that exports it."""
    two.there.exports.name("mirror", two.back(), ["*"], Right.ALL, None)
    found: list[Any] = []
    two.here.session.lookups.find("mirror", found.append)
    two.settle()
    round_trip = two.here.session.mirror.open(found[0])
    round_trip.link(two.a, LinkMode.MONITOR)
    two.settle()

    assert two.wire.a.is_up
    assert two.wire.b.is_up


# -- the end ------------------------------------------------------------------------------------


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


FAR, FARTHER = DeviceID(77, 5), DeviceID(78, 6)
FAULTS: list[Fault | None] = [
    None,
    Dropped(),
    Cancelled(),
    Killed(),
    NoConnection("third"),
    Cascaded(FAR, Killed()),
    Cascaded(FAR, Cascaded(FARTHER, NoConnection("third"))),
]


@pytest.mark.parametrize("way", ["watched", "listened"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_true_fault_crosses(fault: Fault | None, way: str) -> None:
    two = Two()
    two.a.link(two.line)
    two.settle()
    speaker, listener = (two.b, two.a) if way == "watched" else (two.a, two.b)
    speaker.disconnect(fault)
    two.settle()

    assert news(listener) == [Disconnected(speaker.id, fault)]


def test_an_exception_crosses_as_its_text(two: Two) -> None:
    two.a.link(two.line)
    two.settle()
    two.b.disconnect(Cascaded(FAR, Failed(raised(ValueError("a text", 5)))))
    two.settle()

    [message] = news(two.a)
    assert isinstance(message, Disconnected)
    fault = message.fault
    assert isinstance(fault, Cascaded)
    assert fault.path == (FAR,)
    assert isinstance(fault.root, Failed)
    error = fault.root.exception
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text, error.traceback) == (
        "builtins.ValueError",
        "('a text', 5)",
        "",
    )


def test_a_device_that_is_forgotten_is_heard_as_dropped(two: Two) -> None:
    two.a.link(two.line)
    two.settle()
    wanted = [Disconnected(two.b.id, Dropped())]
    two.b = None  # type: ignore[assignment]
    gc.collect()
    two.settle()

    assert news(two.a) == wanted


def test_a_lost_connection_is_heard_by_each_once_at_both_ends(two: Two) -> None:
    two.a.link(two.line)
    two.settle()
    two.wire.lose()

    assert news(two.a) == [Disconnected(two.b.id, NoConnection("b"))]
    assert news(two.b) == [Disconnected(two.a.id, NoConnection("a"))]
    two.a.disconnect(Killed())
    assert news(two.b) == []
    assert two.rest() == 0


def test_a_link_that_has_not_been_told_yet_is_lost_with_the_connection(two: Two) -> None:
    two.a.link(two.line)
    two.wire.lose()

    assert news(two.a) == [Disconnected(two.b.id, NoConnection("b"))]
    assert news(two.b) == []


def test_a_line_over_a_lost_connection_has_ended(two: Two) -> None:
    two.wire.lose()

    assert not two.line.connected
    with pytest.raises(LinkDownError):
        two.a.link(two.line)
    assert two.line.shutdown() is False


def test_a_line_that_is_opened_after_the_connection_was_lost_has_ended(two: Two) -> None:
    wire = two.wire.b.mirror.pack(two.there.exports.mint(Device("c").line(), Right.ALL))
    two.wire.lose()

    line = two.wire.a.mirror.open(wire)

    assert not line.connected
    assert len(two.wire.a.mirror) == 0


def test_a_device_that_has_ended_before_its_line_is_opened_is_heard_with_its_fault(
    two: Two,
) -> None:
    late = Device("late")
    wire = two.wire.b.mirror.pack(two.there.exports.mint(late.line(), Right.ALL))
    late.disconnect(Cancelled())
    line = two.wire.a.mirror.open(wire)
    two.a.link(line)
    two.settle()

    assert news(two.a) == [Disconnected(late.id, Cancelled())]
    del line
    assert two.rest() == 0


def test_a_device_that_ends_while_its_line_is_opened_is_heard_with_its_fault(two: Two) -> None:
    late = Device("late")
    wire = two.wire.b.mirror.pack(two.there.exports.mint(late.line(), Right.ALL))
    line = two.wire.a.mirror.open(wire)
    two.a.link(line)
    data = two.wire.a.outbox.take()
    late.disconnect(Cancelled())
    two.wire.b.receive(data, 0.0)
    two.settle()

    assert news(two.a) == [Disconnected(late.id, Cancelled())]


def test_why_a_device_ended_is_not_known_for_ever(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backplane.bridge._exports._REMEMBERED", 2)
    ended = [Device() for _ in range(3)]
    wires = [two.wire.b.mirror.pack(two.there.exports.mint(e.line(), Right.ALL)) for e in ended]
    for device in ended:
        device.disconnect(Killed())
    two.there.exports.settle()
    for wire in wires:
        two.a.link(two.wire.a.mirror.open(wire))
    two.settle()

    first, *rest = news(two.a)
    assert isinstance(first, Disconnected)
    assert isinstance(first.fault, Failed)
    assert isinstance(first.fault.exception, GoneError)
    assert str(first.fault.exception) == (
        "backplane.bridge.GoneError: "
        "it had ended, or was revoked, before anybody asked to hear of it"
    )
    assert rest == [Disconnected(device.id, Killed()) for device in ended[1:]]


def test_a_listener_that_was_linked_just_before_the_end_hears_why(two: Two) -> None:
    """The other one's link is known already, and has the token of the speaker's former self."""
    c = Device()
    line = reach(two.here, two.there, two.wire, c.line())
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    two.a.link(line, LinkMode.NOTIFY)
    two.a.disconnect(Killed())
    two.settle()

    assert news(two.b) == news(c) == [Disconnected(two.a.id, Killed())]
    assert two.wire.a.is_up


def note_late(two: Two, line: Line) -> None:
    """Do the second half of a link, as the thread that was overtaken by the end."""
    line._board[two.a._board.serial] = two.a._board
    two.a._board._settle(line._board)


def test_a_speaker_that_ends_before_it_is_told_that_it_speaks_is_heard(two: Two) -> None:
    """What two threads can do: the link is half made when the speaker ends."""
    c = Device()
    lines = [two.line, reach(two.here, two.there, two.wire, c.line())]
    for line in lines:
        two.a._board[line._board] = None
    two.a.disconnect(Killed())
    for line in lines:
        note_late(two, line)
    two.settle()

    assert news(two.b) == news(c) == [Disconnected(two.a.id, Killed())]
    lines.clear()
    del line
    assert two.rest() == 0


def test_an_end_that_is_heard_before_its_link_is_told_of_crosses_at_once(two: Two) -> None:
    two.a._board[two.line._board] = None
    two.a.disconnect(Killed())
    two.settle()
    assert news(two.b) == [Disconnected(two.a.id, Killed())]

    note_late(two, two.line)
    two.settle()

    assert news(two.b) == []
    assert two.rest() == 0


def test_too_much_waits_for_a_link_that_is_told_of_with_its_end(two: Two) -> None:
    session = two.wire.a
    two.a._board[two.line._board] = None
    two.a.disconnect(Killed())
    session.outbox.say_bytes(bytes(session.limits.outbox_hard))
    session.outbox.pump()
    two.wire.lose()

    assert isinstance(session.reason, BusyError)
    assert news(two.b) == []
    assert two.rest() == 0


def test_an_unlink_that_is_overtaken_by_the_end_leaves_nothing(two: Two) -> None:
    """The end finds the link no longer, and so tells nobody; the unlink says so afterwards."""
    two.a.link(two.line, LinkMode.NOTIFY)
    two.settle()
    two.a._board.pop(two.line._board)
    two.a.disconnect(Killed())
    two.a._board._settle(two.line._board)
    two.settle()

    assert news(two.b) == []
    assert len(two.wire.a.mirror.speakers) == 0
    assert len(two.wire.b.mirror) == 1  # the other one's watch
    assert two.rest() == 0


@pytest.mark.parametrize("far_first", [True, False])
def test_the_device_that_is_to_hear_has_ended(two: Two, far_first: bool) -> None:
    two.settle()
    two.a.link(two.line, LinkMode.NOTIFY)
    if far_first:
        two.b.disconnect()
        data = two.wire.a.outbox.take()
    else:
        data = two.wire.a.outbox.take()
        two.b.disconnect()
    two.wire.b.receive(data, 0.0)

    assert two.wire.b.is_up
    two.settle()
    assert two.rest() == 0


def ended_since(end: End) -> None:
    """Have Devices that a token leads to end, in another thread, just after they were found."""
    end.exports.get = lambda token: end.exports._tokens.get(token)  # type: ignore[method-assign]


def test_a_device_that_ends_while_it_is_found_tells_why(two: Two) -> None:
    line = two.wire.a.mirror.open(
        two.wire.b.mirror.pack(two.there.exports.mint(two.b.line(), Right.MONITOR))
    )
    ended_since(two.there)
    two.a.link(line, LinkMode.MONITOR)
    two.a.link(two.line, LinkMode.NOTIFY)
    two.b.disconnect(Killed())
    two.settle()

    assert news(two.a) == [Disconnected(two.b.id, Killed())]
    assert two.wire.b.is_up


def test_a_watch_in_the_moment_of_the_end_is_told_why(two: Two) -> None:
    """Another thread has ended the Device, and has not told anybody yet."""
    two.a.link(two.line, LinkMode.MONITOR)
    device = Device()
    line = two.wire.a.mirror.open(
        two.wire.b.mirror.pack(two.there.exports.mint(device.line(), Right.MONITOR))
    )
    two.a.link(line, LinkMode.MONITOR)
    device._board.end = device._board.setdefault("end", Killed())
    two.settle()

    assert news(two.a) == [Disconnected(device.id, Killed())]


def test_a_device_that_ended_before_its_line_was_packed_is_heard_with_its_fault(two: Two) -> None:
    device = Device()
    device.disconnect(Killed())
    line = two.wire.a.mirror.open(
        two.wire.b.mirror.pack(two.there.exports.mint(device.line(), Right.ALL))
    )
    two.a.link(line, LinkMode.MONITOR)
    two.settle()

    assert news(two.a) == [Disconnected(device.id, Killed())]


def test_a_link_with_one_that_ends_while_it_is_found_is_no_trouble(two: Two) -> None:
    ended_since(two.there)
    two.a.link(two.line, LinkMode.NOTIFY)
    data = two.wire.a.outbox.take()
    two.b.disconnect(Killed())
    two.wire.b.receive(data, 0.0)
    two.settle()

    assert two.wire.b.is_up


def test_what_happens_at_an_outpost_after_its_end_is_nothing(two: Two) -> None:
    """What another thread does at that moment."""
    mirror = two.wire.a.mirror
    outpost = outpost_of(two.line)
    assert outpost is not None
    mirror.note(Unlistening(outpost, two.a.line()))
    two.b.disconnect()
    two.settle()
    mirror.note(Heard(outpost, Disconnected(two.a.id, None)))
    mirror.note(Listening(outpost, two.a.line()))

    assert two.wire.a.outbox.take() == b""
    assert len(mirror) == 0


# -- messages of the mesh -------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [None, FAR])
def test_a_shutdown_crosses(two: Two, sender: DeviceID | None) -> None:
    assert two.line.shutdown(sender)
    two.settle()

    assert news(two.b) == [Shutdown(sender)]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_news_of_an_end_cross(two: Two, fault: Fault | None) -> None:
    assert two.line.send(Disconnected(FAR, fault))
    two.settle()

    assert news(two.b) == [Disconnected(FAR, fault)]


def test_what_was_sent_before_the_end_comes_before_it(two: Two) -> None:
    two.a.link(two.line)
    two.line.shutdown(two.a.id)
    two.a.disconnect()
    two.settle()

    assert news(two.b) == [Shutdown(two.a.id), Disconnected(two.a.id, None)]


@pytest.mark.parametrize("id", [DeviceID(0, 5), DeviceID(-3, 5), DeviceID(2**63, 5)])
def test_an_identity_that_no_device_can_have_does_not_cross(two: Two, id: DeviceID) -> None:
    two.line.shutdown(id)
    two.line.send(Disconnected(id, None))
    two.line.send(Disconnected(FAR, Cascaded(id, Cascaded(FARTHER, Killed()))))
    two.settle()

    assert news(two.b) == [Disconnected(FAR, Cascaded(FARTHER, Killed()))]


def test_the_end_of_nobody_is_no_frame() -> None:
    end = End("b")
    device = Device()
    liar = Liar(end).shake()
    token = end.exports.mint(device.line(), Right.ALL).token
    liar.say(Send(token, None, ended=True))

    assert isinstance(liar.session.reason, FrameError)
    assert news(device) == []


# -- rights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_without_the_right_to_link_who_links_is_refused_and_nobody_else(
    form: str, mode: LinkMode
) -> None:
    two = Two(Right.ALL & ~Right.LINK)
    other, near = Device(), two.a
    other.link(two.line, LinkMode.MONITOR)
    two.settle()
    before = dict(near._board), dict(two.line._board)
    hears = LinkMode.MONITOR if "far" in form or "between" in form else LinkMode.NOTIFY
    if not mode & hears:
        FORMS[form](near, two.line, "link", mode)
        two.b.disconnect(Killed())
        two.settle()
        assert news(near) == [Disconnected(two.b.id, Killed())]
        return

    with pytest.raises(NotAllowedError) as caught:
        FORMS[form](near, two.line, "link", mode)

    assert isinstance(caught.value, LinkError)
    assert isinstance(caught.value, BridgeError)
    assert caught.value.device == two.b.id
    assert str(caught.value) == (
        f"cannot have 'b' hear of the end of {near.id!r}: {two.b.id!r} of node 'b' is exported "
        "without Right.LINK: node 'b' has to export it with "
        "rights=Right.MONITOR | Right.LINK | Right.SEND; "
        "to hear of its end alone, link with LinkMode.MONITOR"
    )
    assert (dict(near._board), dict(two.line._board)) == before
    assert two.wire.a.outbox.take() == b""
    near.disconnect(Killed())
    two.settle()
    assert news(two.b) == []
    assert two.line.connected
    two.b.disconnect(Killed())
    two.settle()
    assert news(other) == [Disconnected(two.b.id, Killed())]
    assert two.rest() == 0


def test_without_the_right_to_send_who_sends_is_refused_and_nobody_else() -> None:
    two = Two(Right.ALL & ~Right.SEND)
    two.a.link(two.line, LinkMode.MONITOR)
    two.settle()
    with pytest.raises(NotAllowedError, match=r"cannot send 'b' a Shutdown: .*without Right\.SEND"):
        two.line.shutdown()
    with pytest.raises(NotAllowedError, match="cannot send 'b' a Disconnected: "):
        two.line.send(Disconnected(FAR, None))

    assert two.wire.a.outbox.take() == b""
    assert two.line.connected
    assert news(two.a) == news(two.b) == []
    two.a.unlink(two.line)
    assert two.rest() == 0


def test_a_use_without_the_right_can_be_told_from_others_after_it_was_pickled() -> None:
    two = Two(Right.MONITOR)
    with pytest.raises(NotAllowedError) as caught:
        two.line.shutdown()
    error = pickle.loads(pickle.dumps(caught.value))

    assert type(error) is NotAllowedError
    assert str(error) == str(caught.value)
    assert (error.device, error.node, error.right) == (two.b.id, "b", "Right.SEND")


def test_a_line_that_is_gone_has_ended_before_it_gives_no_right() -> None:
    two = Two(Right.MONITOR)
    two.wire.lose()

    with pytest.raises(LinkDownError):
        two.a.link(two.line)
    assert two.line.shutdown() is False


def test_a_device_of_a_third_node_may_not_be_reached_with_more_rights_than_this_one_has() -> None:
    """This node has exported it all the same, and others rely on that."""
    two = Two(Right.MONITOR)
    liar = Liar(two.here, name="c").shake()
    token = two.here.exports.mint(two.line, Right.ALL).token
    liar.say(Send(token, None), Send(token, WireID(5, 5), True, None), Listen(token, liar.line()))
    two.settle()

    assert liar.session.is_up
    assert liar.session.mirror.unknown == 2
    assert news(two.b) == []
    assert two.line.connected


def test_without_the_right_to_monitor_only_the_connection_is_heard_of() -> None:
    two = Two(Right.ALL & ~Right.MONITOR)
    two.a.link(two.line, LinkMode.MONITOR)
    two.settle()
    two.b.disconnect(Killed())
    two.settle()
    assert news(two.a) == []
    two.wire.lose()

    assert news(two.a) == [Disconnected(two.b.id, NoConnection("b"))]


def test_who_has_no_right_is_refused_whatever_he_says() -> None:
    end = End("b")
    device = Device()
    token = end.exports.mint(device.line(), Right(0)).token
    liar = Liar(end).shake()
    line = liar.line()
    liar.say(
        Watch(token), Listen(token, line), Send(token, None), Send(token, WireID(5, 5), True, None)
    )
    fires = liar.hear_only(Fire)
    liar.say(Fire(line.token, None))
    liar.say(Unlisten(token, line.token), Unwatch(token))

    assert [fire.token for fire in fires] == [token]
    assert fires[0].fault is not None
    assert fires[0].fault.type_name == "backplane.bridge.GoneError"
    assert news(device) == []
    assert liar.session.mirror.unknown == 3
    assert len(liar.session.mirror) == 0


def test_after_a_revocation_nothing_reaches_the_device(two: Two) -> None:
    two.a.link(two.line, LinkMode.MONITOR)
    two.settle()
    two.there.exports.revoke(two.b.line())
    two.line.shutdown()
    two.a.link(two.line, LinkMode.NOTIFY)
    two.a.disconnect(Killed())
    two.settle()

    assert news(two.b) == []
    assert two.wire.b.mirror.unknown == 2
    assert two.rest() == 0


# -- lies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"token": b""},
        {"token": bytes(11)},
        {"token": bytes(13)},
        {"name": "x" * 256},
        {"id": WireID(0, 1)},
        {"id": WireID(-1, 1)},
        {"id": WireID(1 << 63, 1)},
        {"id": WireID(1, -1)},
        {"node": "b"},
        {"node": "c"},
        {"incarnation": bytes(16)},
        {"incarnation": b""},
    ],
    ids=str,
)
def test_a_line_with_a_lie_in_it_ends_the_connection(lie: dict[str, Any]) -> None:
    end = End("b")
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL).token
    liar = Liar(end).shake()
    liar.say(Listen(token, liar.line(**lie)))

    assert isinstance(liar.session.reason, FrameError)
    assert news(device) == []


@pytest.mark.parametrize("rights", [0, -1, 16, 1 << 40, -(1 << 40)])
def test_rights_that_there_are_not_are_of_no_use(rights: int) -> None:
    end = End("b")
    device = Device()
    liar = Liar(end).shake()
    line = liar.session.mirror.open(liar.line(rights=rights))
    if rights & Right.ALL.value:
        device.link(line)
        line.shutdown()
    else:
        device.link(line, LinkMode.MONITOR)
        with pytest.raises(NotAllowedError):
            device.link(line)
        with pytest.raises(NotAllowedError):
            line.shutdown()
    liar.hear()

    assert liar.session.is_up
    liar.session.eof()
    assert len(news(device)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        WireFault("unknown"),
        WireFault(""),
        WireFault("killed", path=[WireID(0, 0)]),
        WireFault("failed", path=[WireID(1, 1), WireID(-1, 1)]),
    ],
    ids=str,
)
def test_an_end_with_a_lie_in_it_is_heard_as_a_lost_connection(fault: WireFault) -> None:
    end = End("b")
    device = Device()
    liar = Liar(end).shake()
    wire = liar.line()
    line = liar.session.mirror.open(wire)
    device.link(line, LinkMode.MONITOR)
    liar.say(Fire(wire.token, fault))

    assert isinstance(liar.session.reason, FrameError)
    assert news(device) == [Disconnected(line.id, NoConnection("liar"))]


def test_a_cascade_through_a_hundred_thousand_is_no_trouble() -> None:
    end = End("b")
    device = Device()
    liar = Liar(end).shake()
    wire = liar.line()
    device.link(liar.session.mirror.open(wire), LinkMode.MONITOR)
    liar.say(Fire(wire.token, WireFault("killed", path=[WireID(5, 5)] * 100_000)))

    [message] = news(device)
    assert isinstance(message, Disconnected)
    assert isinstance(message.fault, Cascaded)
    assert message.fault.root == Killed()
    assert "99999 more" in repr(message)
    del message
    gc.collect()


def test_tokens_that_were_never_given_out_lead_nowhere() -> None:
    end = End("b")
    liar = Liar(end).shake()
    token = os.urandom(12)
    liar.say(Watch(token), Watch(b""), Unwatch(token), Unlisten(token, token), Fire(token, None))
    liar.say(Listen(token, liar.line()), Send(token, None))

    assert len(liar.hear_only(Fire)) == 2
    assert liar.session.mirror.unknown == 2
    assert len(liar.session.mirror) == 0
    assert liar.session.is_up


def test_a_peer_makes_so_many_links_and_no_more() -> None:
    end = End("b", limits=Limits(links=10))
    devices = [Device() for _ in range(11)]
    tokens = [end.exports.mint(device.line(), Right.ALL).token for device in devices]
    liar = Liar(end).shake()
    for token in tokens[:4]:
        liar.say(Watch(token), Watch(token))
    lines = [liar.line() for _ in range(7)]
    for line in lines[:6]:
        liar.say(Listen(tokens[0], line))
    assert liar.session.is_up

    liar.say(Listen(tokens[0], lines[6]))

    assert isinstance(liar.session.reason, FrameError)
    assert str(liar.session.reason) == "more than 10 links"
    assert len(news(devices[0])) == 6

    liar = Liar(end).shake()
    for token in tokens:
        liar.say(Watch(token))
    assert str(liar.session.reason) == "more than 10 links"


def test_aliases_of_one_device_count_as_links() -> None:
    end = End("b", limits=Limits(links=10))
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL).token
    liar = Liar(end).shake()
    for _ in range(11):
        liar.say(Listen(token, liar.line(id=WireID(5, 5))))

    assert str(liar.session.reason) == "more than 10 links"
    assert news(device) == [Disconnected(DeviceID(5, 5), NoConnection("liar"))]


def test_links_are_counted_as_pairs() -> None:
    end = End("b", limits=Limits(links=10))
    devices = [Device() for _ in range(3)]
    tokens = [end.exports.mint(device.line(), Right.ALL).token for device in devices]
    liar = Liar(end).shake()
    lines = [liar.line() for _ in range(4)]
    pairs = list(itertools.product(tokens, lines))
    for token, line in pairs[:10] * 2:
        liar.say(Listen(token, line))
    assert liar.session.is_up

    liar.say(Listen(*pairs[10]))

    assert str(liar.session.reason) == "more than 10 links"


@pytest.mark.parametrize("way", ["taken back", "the speaker ends", "the listener ends"])
def test_links_that_are_over_do_not_count(way: str) -> None:
    end = End("b", limits=Limits(links=10))
    stays = Device()
    liar = Liar(end).shake()
    speaker = liar.line()
    for _ in range(30):
        device = Device() if way == "the listener ends" else stays
        line = speaker if way == "the listener ends" else liar.line()
        token = end.exports.mint(device.line(), Right.ALL).token
        liar.say(Listen(token, line))
        if way == "taken back":
            liar.say(Unlisten(token, line.token))
        elif way == "the speaker ends":
            liar.say(Fire(line.token, None))
        else:
            device.disconnect()
        liar.hear()

    mirror = liar.session.mirror
    assert liar.session.is_up
    assert (len(mirror), len(mirror.pairs), len(mirror.ear)) == (0, 0, 0)


def test_what_this_node_holds_does_not_count_against_the_peer() -> None:
    end = End("b", limits=Limits(links=2))
    device, near = Device(), Device()
    token = end.exports.mint(device.line(), Right.ALL).token
    liar = Liar(end).shake()
    lines = [liar.session.mirror.open(liar.line()) for _ in range(20)]
    for line in lines:
        near.link(line)
    liar.say(Watch(token), Listen(token, liar.line()))
    assert liar.session.is_up

    liar.say(Listen(token, liar.line()))

    assert str(liar.session.reason) == "more than 2 links"


def test_names_for_a_device_that_is_held_do_not_heap_up() -> None:
    end = End("b")
    device = Device()
    token = end.exports.mint(device.line(), Right.ALL).token
    liar = Liar(end).shake()
    mirror = liar.session.mirror
    held = mirror.open(liar.line(id=WireID(5, 5)))
    for _ in range(20):
        line = liar.line(id=WireID(5, 5))
        liar.say(Listen(token, line), Unlisten(token, line.token))
        assert mirror.open(liar.line(id=WireID(5, 5), rights=0)) != held
        liar.hear()

    assert liar.session.is_up
    assert len(mirror) == 1
    assert outpost_of(held).key.tokens == {outpost_of(held).key.line.token}  # type: ignore[union-attr]


def test_one_token_under_several_names_is_one_device() -> None:
    """The one that was said first."""
    liar = Liar(End("b")).shake()
    wire = liar.line()
    line = liar.session.mirror.open(wire)
    again = liar.session.mirror.open(msgspec.structs.replace(wire, id=WireID(9, 9), name="x"))

    assert again == line
    assert again.id == DeviceID(wire.id.serial, wire.id.realm)


# -- Lines in messages ----------------------------------------------------------------------------


def test_a_line_in_a_message_leads_to_its_device(two: Two) -> None:
    raw = two.wire.b.payloads.pack({"who": Device("c").line(), "me": two.b.line()})
    opened = two.wire.a.payloads.open(raw, dict[str, Any])
    two.a.link(opened["me"])
    two.settle()
    two.b.disconnect(Killed())
    two.settle()

    assert news(two.a) == [Disconnected(two.b.id, Killed())]
    assert opened["who"].name == "c"


def test_a_line_comes_home_as_itself(two: Two) -> None:
    back = two.wire.b.payloads.open(two.wire.a.payloads.pack(two.line), Line)

    assert back == two.b.line()


def test_a_line_of_a_third_node_leads_there() -> None:
    """From ``c`` through ``b`` to ``a``, which has a connection with ``c`` of its own."""
    a, b, c = End("a"), End("b"), End("c")
    bc = Wire(b, c)
    bc.settle()
    ac = Wire(a, c)
    ac.settle()
    device, listener = Device("c's"), Device()
    line = reach_over(bc, b, c, device)
    a.setup = dataclasses.replace(a.setup, find_line=lambda wire: ac.a.mirror.open(wire))
    ab = Wire(a, b)
    ab.settle()

    there = ab.a.payloads.open(ab.b.payloads.pack(line), Line)
    listener.link(there)
    ac.settle()
    ab.lose()
    assert news(listener) == []
    device.disconnect(Killed())
    ac.settle()

    assert news(listener) == [Disconnected(device.id, Killed())]


def reach_over(wire: Wire, here: End, there: End, device: Device) -> Line:
    export = there.exports.mint(device.line(), Right.ALL)
    return wire.a.mirror.open(wire.b.mirror.pack(export))


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x91\xc0", b"\x96\xc4\x00\xa0\xc4\x00\x92\x01\x01\xc0\x0f"]
)
def test_what_is_no_line_in_a_message_is_no_message(two: Two, body: bytes) -> None:
    raw = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, body))

    with pytest.raises(PayloadError, match="Line"):
        two.wire.a.payloads.open(raw, Line)
    assert two.wire.a.is_up


# -- nothing is left ------------------------------------------------------------------------------


def test_a_line_that_is_dropped_is_forgotten_at_both_ends(two: Two) -> None:
    assert len(two.wire.a.mirror) == len(two.wire.b.mirror) == len(two.wire.b.mirror.ear) == 1

    assert two.rest() == 0


def test_a_line_that_was_dropped_and_is_found_again_is_watched(two: Two) -> None:
    two.line = None  # type: ignore[assignment]
    gc.collect()
    two.line = reach(two.here, two.there, two.wire, two.b.line())  # before the first is forgotten
    two.a.link(two.line)
    two.settle()
    two.b.disconnect(Killed())
    two.settle()

    assert news(two.a) == [Disconnected(two.b.id, Killed())]


def test_a_long_life_with_many_short_ones_leaves_nothing(two: Two) -> None:
    line = two.line
    for _ in range(100):
        short = Device()
        line = reach(two.here, two.there, two.wire, short.line())
        two.a.link(line)
        two.settle()
        short.disconnect()
        two.settle()
        news(two.a)
    del line

    assert len(two.wire.a.mirror.speakers) == 0
    assert len(two.a._board) <= 2
    assert two.rest() == 0


def count() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.heavy
def test_ten_thousand_links_on_one_session_leave_nothing(two: Two) -> None:
    def cycle() -> None:
        far, near = Device(), Device()
        line = two.wire.a.mirror.open(
            two.wire.b.mirror.pack(two.there.exports.mint(far.line(), Right.ALL))
        )
        near.link(line)
        two.wire.move()
        if far.id.serial % 3 == 0:
            near.unlink(line)
        elif far.id.serial % 3 == 1:
            far.disconnect()

    for _ in range(50):
        cycle()
    two.settle()
    two.there.exports.settle()
    before = count()
    for _ in range(10_000):
        cycle()
    two.settle()
    two.there.exports.settle()

    assert two.rest() == 0
    assert len(two.there.exports._ended) <= 4096
    assert count() - before < 4096 * 3  # the faults of those that ended lately


@pytest.mark.heavy
def test_ten_thousand_connections_leave_nothing() -> None:
    here, there = End("a"), End("b")
    near, far = Device(), Device()
    token = there.exports.mint(far.line(), Right.ALL)

    def cycle() -> None:
        wire = Wire(here, there)
        for _ in range(4):
            wire.move()
        assert wire.a.state is wire.b.state is State.UP
        near.link(wire.a.mirror.open(wire.b.mirror.pack(token)))
        wire.move()
        wire.lose()
        assert len(news(near)) == len(news(far)) == 1
        for end in (here, there):
            end.ups.clear()
            end.downs.clear()

    for _ in range(10):
        cycle()
    before = count()
    for _ in range(10_000):
        cycle()

    assert count() - before < 100
    assert (len(near._board), len(far._board)) <= (3, 3)
    assert len(there.exports) == 1


def test_outposts_are_told_apart_by_what_they_lead_to(two: Two) -> None:
    outpost = outpost_of(two.line)

    assert outpost is not None
    assert outpost.key.session is two.wire.a
    assert outpost_of(two.a.line()) is None
