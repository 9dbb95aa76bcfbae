"""Links in all their forms, and what a Line can do."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import MagicMock, Mock

import anyio
import pytest

from backplane import (
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
    Shutdown,
)
from backplane.lowlevel import Outpost

MONITOR, NOTIFY, PEER = LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER
MODES = [MONITOR, NOTIFY, PEER]

# How the two ends of a link may be given. The Devices are made by the test.
Form = Callable[[Device, Device], tuple[Device | Line, Device | Line]]
FORMS: dict[str, Form] = {
    "Device-Device": lambda a, b: (a, b),
    "Device-Line": lambda a, b: (a, b.line()),
    "Line-Device": lambda a, b: (a.line(), b),
    "Line-Line": lambda a, b: (a.line(), b.line()),
}
ENDS: dict[str, tuple[Callable[[list[Device]], None], Fault | None]] = {
    "dropped": (list.clear, Dropped()),
    "disconnected well": (lambda owner: owner[0].disconnect(), None),
    "disconnected badly": (lambda owner: owner[0].disconnect(Killed()), Killed()),
}

form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
mode = pytest.mark.parametrize("mode", MODES, ids=str)
end = pytest.mark.parametrize(("end", "fault"), ENDS.values(), ids=ENDS.keys())


def heard(device: Device) -> list[Message]:
    """All that is in the mailbox, taken out."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except anyio.WouldBlock:
            return messages


# -- who hears of whose end -----------------------------------------------------------


# Steps of linking and unlinking, from one mode to the next.
HISTORIES: list[tuple[tuple[str, LinkMode], ...]] = [
    *((("link", first),) for first in MODES),
    *(
        (("link", first), (verb, second))
        for first, verb, second in itertools.product(MODES, ["link", "unlink"], MODES)
    ),
    *((("link", first), ("unlink", PEER), ("link", last)) for first in MODES for last in MODES),
    *((("unlink", first),) for first in MODES),
]
history = pytest.mark.parametrize(
    "history", HISTORIES, ids=[", ".join(f"{v} {m.name}" for v, m in h) for h in HISTORIES]
)


def remaining(history: tuple[tuple[str, LinkMode], ...]) -> LinkMode:
    """The mode that is left when modes add up and subtract."""
    mode = LinkMode(0)
    for verb, change in history:
        mode = mode | change if verb == "link" else mode & ~change
    return mode


@form
@end
@history
def test_the_first_hears_of_the_second_by_monitor(
    form: Form,
    end: Callable[[list[Device]], None],
    fault: Fault | None,
    history: tuple[tuple[str, LinkMode], ...],
) -> None:
    first, second = Device("first"), [Device("second")]
    sender = second[0].id
    one, other = form(first, second[0])
    for verb, mode in history:
        getattr(one, verb)(other, mode)
    del one, other

    end(second)

    told = MONITOR in remaining(history)
    assert heard(first) == ([Disconnected(sender, fault)] if told else [])


@form
@end
@history
def test_the_second_hears_of_the_first_by_notify(
    form: Form,
    end: Callable[[list[Device]], None],
    fault: Fault | None,
    history: tuple[tuple[str, LinkMode], ...],
) -> None:
    first, second = [Device("first")], Device("second")
    sender = first[0].id
    one, other = form(first[0], second)
    for verb, mode in history:
        getattr(one, verb)(other, mode)
    del one, other

    end(first)

    told = NOTIFY in remaining(history)
    assert heard(second) == ([Disconnected(sender, fault)] if told else [])


@form
@mode
def test_the_one_who_ends_hears_nothing_of_the_other_any_longer(form: Form, mode: LinkMode) -> None:
    first, second = Device(), Device()
    one, other = form(first, second)
    one.link(other, mode)

    first.disconnect()
    second.disconnect()

    with pytest.raises(DeviceDownError):
        first.receive_nowait()


@form
def test_a_link_is_a_peer_link_unless_said_otherwise(form: Form) -> None:
    first, second, third = Device(), Device(), Device()
    one, other = form(first, second)
    one.link(other)
    one, other = form(third, second)
    one.link(other)

    second.disconnect()
    third.disconnect()

    assert heard(first) == [Disconnected(second.id, None)]


@form
def test_unlink_takes_a_whole_link_back_unless_said_otherwise(form: Form) -> None:
    first, second = Device(), Device()
    one, other = form(first, second)
    one.link(other)

    one.unlink(other)
    second.disconnect()

    assert heard(first) == []


@pytest.mark.parametrize(("mine", "theirs"), [(MONITOR, NOTIFY), (NOTIFY, MONITOR), (PEER, PEER)])
def test_a_link_made_on_one_side_can_be_taken_back_on_the_other(
    mine: LinkMode, theirs: LinkMode
) -> None:
    first, second, third = Device(), Device(), Device()
    first.link(second, mine)
    third.link(second, mine)
    third.link(first, PEER)

    second.unlink(first, theirs)
    second.line().unlink(third, theirs)
    second.disconnect()
    first.disconnect()

    assert heard(third) == [Disconnected(first.id, None)]


def test_links_made_from_both_sides_are_one_link() -> None:
    first, second = Device(), Device()
    first.link(second, MONITOR)
    second.link(first, NOTIFY)
    second.link(first, PEER)

    second.disconnect()

    assert heard(first) == [Disconnected(second.id, None)]


def test_an_end_is_told_to_everybody_who_is_linked() -> None:
    device = Device()
    listeners = [Device() for _ in range(100)]
    for listener in listeners:
        listener.link(device, MONITOR)

    device.disconnect(Killed())

    assert [heard(listener) for listener in listeners] == [
        [Disconnected(device.id, Killed())]
    ] * 100


def test_ends_are_heard_in_the_order_in_which_they_came() -> None:
    listener = Device()
    devices = [Device() for _ in range(100)]
    for device in devices:
        listener.link(device, MONITOR)

    for device in reversed(devices):
        device.disconnect()

    assert heard(listener) == [Disconnected(device.id, None) for device in reversed(devices)]


def test_an_end_is_not_handed_on_by_itself() -> None:
    first, middle, last = Device(), Device(), Device()
    first.link(middle, PEER)
    middle.link(last, PEER)

    last.disconnect(Killed())

    assert middle.connected
    assert heard(first) == []


def test_a_message_that_is_in_the_mailbox_outlives_the_link() -> None:
    listener, device = Device(), Device()
    listener.link(device, MONITOR)
    device.disconnect()

    listener.unlink(device, MONITOR)

    assert heard(listener) == [Disconnected(device.id, None)]


# -- ends that are too late to link ---------------------------------------------------


@form
@mode
@end
def test_linking_after_the_own_end_is_a_device_down_error(
    form: Form, mode: LinkMode, end: Callable[[list[Device]], None], fault: Fault | None
) -> None:
    first, second = [Device()], Device()
    one, other = form(first[0], second)
    down = first[0].id
    if isinstance(one, Device) and fault == Dropped():
        one = one.line()  # nobody can call a Device that is gone
    end(first)

    with pytest.raises(DeviceDownError) as caught:
        one.link(other, mode)

    assert caught.value.device == down
    assert caught.value.attempt == f"link with {second.id!r}"
    assert heard(second) == []


@form
@mode
@end
def test_linking_after_the_others_end_is_a_link_down_error(
    form: Form, mode: LinkMode, end: Callable[[list[Device]], None], fault: Fault | None
) -> None:
    first, second = Device(), [Device()]
    one, other = form(first, second[0])
    down = second[0].id
    if isinstance(other, Device) and fault == Dropped():
        other = other.line()
    end(second)

    with pytest.raises(LinkDownError) as caught:
        one.link(other, mode)

    assert caught.value.device == down
    assert caught.value.attempt == f"link {first.id!r} with it"
    assert heard(first) == []


@form
@mode
def test_linking_when_both_have_ended_is_told_of_the_own_end(form: Form, mode: LinkMode) -> None:
    first, second = Device(), Device()
    one, other = form(first, second)
    first.disconnect()
    second.disconnect()

    with pytest.raises(DeviceDownError):
        one.link(other, mode)


@form
@mode
def test_a_link_that_fails_leaves_nothing_behind(form: Form, mode: LinkMode) -> None:
    survivor, ended = Device(), Device()
    ended.disconnect()
    there = weakref.ref(ended)
    before = dict(survivor._board)

    for one, other in (form(survivor, ended), form(ended, survivor)):
        with pytest.raises(LinkError):
            one.link(other, mode)

    assert dict(survivor._board) == before
    del ended, one, other
    assert there() is None


@form
@mode
@end
def test_unlinking_what_has_ended_changes_nothing(
    form: Form, mode: LinkMode, end: Callable[[list[Device]], None], fault: Fault | None
) -> None:
    first, second, third = Device(), [Device()], Device()
    first.link(third, MONITOR)
    one, other = form(first, second[0])
    if isinstance(other, Device) and fault == Dropped():
        other = other.line()
    end(second)

    one.unlink(other, mode)
    other.unlink(one, mode)
    third.disconnect()

    assert heard(first) == [Disconnected(third.id, None)]


# -- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["link", "unlink"])
@form
@mode
def test_a_device_cannot_be_linked_with_itself(verb: str, form: Form, mode: LinkMode) -> None:
    device = Device("narcissus")
    one, other = form(device, device)

    with pytest.raises(ValueError, match=rf"cannot {verb} <Device \d+ 'narcissus' .*> with itself"):
        getattr(one, verb)(other, mode)

    assert heard(device) == []


def test_an_ended_device_cannot_be_linked_with_itself_either() -> None:
    device = Device()
    device.disconnect()

    with pytest.raises(ValueError, match="with itself"):
        device.link(device)


class Impostor:
    """Has the attribute by which a Device is known, but not its value."""

    _board = "not a plugboard"


class Grumpy:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("do not show me")


NO_DEVICES: dict[str, Any] = {
    "None": None,
    "a str": "worker",
    "an int": 5,
    "a DeviceID": DeviceID(5),
    "the class Device": Device,
    "a Mock": Mock(),
    "a MagicMock": MagicMock(),
    "a Mock of a Device": Mock(spec=Device),
    "an impostor": Impostor(),
    "a grumpy thing": Grumpy(),
}
no_device = pytest.mark.parametrize("thing", NO_DEVICES.values(), ids=NO_DEVICES.keys())


@pytest.mark.parametrize("verb", ["link", "unlink"])
@no_device
@mode
def test_only_devices_and_lines_can_be_linked(verb: str, thing: Any, mode: LinkMode) -> None:
    device = Device("mine")
    kind = "None" if thing is None else f"a {type(thing).__qualname__}"

    with pytest.raises(TypeError) as caught:
        getattr(device, verb)(thing, mode)

    assert str(caught.value) == (
        f"cannot {verb} <Device {device.id.serial} 'mine' connected> with {kind}: "
        "pass a Device or Line"
    )


def test_an_error_about_no_device_hides_how_it_was_found_out() -> None:
    device = Device()

    with pytest.raises(TypeError) as caught:
        device.link(None)  # type: ignore[arg-type]

    assert caught.value.__context__ is None or caught.value.__suppress_context__


NO_MODES: dict[str, tuple[Any, type[Exception]]] = {
    "empty": (LinkMode(0), ValueError),
    "an int": (1, TypeError),
    "a str": ("peer", TypeError),
    "None": (None, TypeError),
    "the class": (LinkMode, TypeError),
    "grumpy": (Grumpy(), TypeError),
}


@pytest.mark.parametrize("verb", ["link", "unlink"])
@pytest.mark.parametrize(("mode", "kind"), NO_MODES.values(), ids=NO_MODES.keys())
def test_a_mode_that_is_none_is_refused_and_nothing_changes(
    verb: str, mode: Any, kind: type[Exception]
) -> None:
    linked, unlinked, device = Device(), Device(), Device()
    linked.link(device, PEER)

    with pytest.raises(kind, match=r"LinkMode\.MONITOR, LinkMode\.NOTIFY or LinkMode\.PEER"):
        getattr(linked, verb)(device, mode)
    with pytest.raises(kind):
        getattr(unlinked, verb)(device, mode)

    device.disconnect()
    assert heard(linked) == [Disconnected(device.id, None)]
    assert heard(unlinked) == []


# -- messages through a Line ----------------------------------------------------------


@pytest.mark.parametrize(
    "message", [Shutdown(None), Shutdown(DeviceID(5)), Disconnected(DeviceID(5), Killed())]
)
def test_a_message_that_is_sent_is_received(message: Message) -> None:
    device = Device()

    assert device.line().send(message)

    assert heard(device) == [message]


def test_a_request_to_shut_down_says_who_asks() -> None:
    boss, device = Device(), Device()

    assert device.line().shutdown()
    assert device.line().shutdown(boss.id)

    assert heard(device) == [Shutdown(None), Shutdown(boss.id)]


def test_messages_of_one_sender_keep_their_order_and_its_end_is_the_last() -> None:
    sender, receiver = Device(), Device()
    receiver.link(sender, MONITOR)
    line = receiver.line()

    for serial in range(100):
        line.send(Disconnected(DeviceID(serial), None))
    line.shutdown(sender.id)
    sender.disconnect()

    assert heard(receiver) == [
        *(Disconnected(DeviceID(serial), None) for serial in range(100)),
        Shutdown(sender.id),
        Disconnected(sender.id, None),
    ]


@end
def test_sending_to_an_ended_device_says_that_it_is_gone(
    end: Callable[[list[Device]], None], fault: Fault | None
) -> None:
    owner = [Device()]
    line = owner[0].line()

    end(owner)

    assert not line.send(Shutdown(None))
    assert not line.shutdown()
    assert not line.connected


@pytest.mark.parametrize(
    "thing",
    ["stop", None, 5, Killed(), Shutdown, Mock(spec=Shutdown), Grumpy()],
    ids=object.__repr__,
)
def test_only_messages_can_be_sent(thing: Any) -> None:
    device = Device("mine")
    kind = "None" if thing is None else f"a {type(thing).__qualname__}"

    with pytest.raises(TypeError) as caught:
        device.line().send(thing)

    assert f"cannot send {kind} to <Line to Device {device.id.serial} 'mine'" in str(caught.value)
    assert "queue or a stream" in str(caught.value)
    assert heard(device) == []


def test_sending_something_else_to_an_ended_device_is_refused_too() -> None:
    device = Device()
    device.disconnect()

    with pytest.raises(TypeError):
        device.line().send("stop")  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", ["boss", 5, Device(), Grumpy()], ids=object.__repr__)
def test_only_a_device_id_asks_for_a_shutdown(thing: Any) -> None:
    device = Device()

    with pytest.raises(TypeError, match=r"must be a DeviceID or None, not a .*; pass device\.id"):
        device.line().shutdown(thing)

    assert heard(device) == []


# -- the handle itself ----------------------------------------------------------------


def test_a_line_knows_the_device_that_it_leads_to() -> None:
    device = Device("worker")
    line = device.line()

    assert (line.id, line.name, line.connected) == (device.id, "worker", True)


def test_a_line_outlives_its_device() -> None:
    device = Device("worker")
    line, identity = device.line(), device.id

    del device

    assert (line.id, line.name, line.connected) == (identity, "worker", False)


def test_a_line_does_not_keep_its_device_alive() -> None:
    device = Device()
    line = device.line()
    there = weakref.ref(device)

    del device

    assert there() is None
    assert not line.connected


def test_lines_to_the_same_device_are_equal() -> None:
    device, other = Device(), Device()

    assert device.line() == device.line()
    assert hash(device.line()) == hash(device.line())
    assert device.line() != other.line()
    assert {device.line(), device.line(), other.line()} == {device.line(), other.line()}


def test_a_line_is_not_its_device() -> None:
    device = Device()

    assert device.line() != device
    assert device.line() != device.id


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_line_leads_to_the_same_device(copier: Callable[[Line], Line]) -> None:
    device = Device()

    copied = copier(device.line())

    assert copied == device.line()
    assert copied.shutdown()
    assert heard(device) == [Shutdown(None)]


def test_a_line_in_a_structure_survives_a_deep_copy() -> None:
    device = Device()

    copied = copy.deepcopy({"workers": [device.line()]})

    assert copied == {"workers": [device.line()]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_line_cannot_be_pickled(protocol: int) -> None:
    device = Device("worker")

    with pytest.raises(TypeError, match=r"<Line to Device \d+ 'worker' .*> cannot be pickled"):
        pickle.dumps(device.line(), protocol)


@pytest.mark.parametrize("thing", [Device(), DeviceID(5), None, {}], ids=object.__repr__)
def test_a_line_is_not_made_by_hand(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"call Device\.line\(\)"):
        Line(thing)


def test_a_line_can_be_referred_to_weakly() -> None:
    line = Device().line()
    there = weakref.ref(line)

    assert there() is line
    del line
    gc.collect()
    assert there() is None


def test_a_line_takes_no_other_attribute() -> None:
    line = Device().line()

    with pytest.raises(AttributeError):
        line.note = "remember the milk"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        line.id = DeviceID(5)  # type: ignore[misc]


def test_a_repr_shows_the_device_that_a_line_leads_to() -> None:
    device, anonymous = Device("worker"), Device()
    device.disconnect()

    assert repr(device.line()) == f"<Line to Device {device.id.serial} 'worker' disconnected>"
    assert repr(anonymous.line()) == f"<Line to Device {anonymous.id.serial} connected>"


def test_a_repr_shows_the_id_that_a_device_has_where_it_lives() -> None:
    _, line = Outpost.open(DeviceID(5, 7), "far", deque(), Mock())

    assert repr(line) == "<Line to Device 5 'far' connected>"


def test_a_failure_is_told_with_the_very_exception() -> None:
    listener, device, error = Device(), Device(), ValueError()
    listener.link(device, MONITOR)

    device.disconnect(Failed(error))

    [message] = heard(listener)
    match message:
        case Disconnected(_, Failed(exception)):
            assert exception is error
        case _:
            pytest.fail(f"heard {message!r}")


# -- what is inside a message ---------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Disconnected(cast(Any, "me"), None), "not a str"),
        (Disconnected(Device().id, cast(Any, ValueError())), r"wrap an exception as Failed"),
        (Shutdown(cast(Any, 3)), "not a int"),
    ],
    ids=["sender", "fault", "shutdown"],
)
def test_a_message_with_something_else_inside_is_refused(message: Message, text: str) -> None:
    device = Device()

    with pytest.raises(TypeError, match=text):
        device.line().send(message)

    with pytest.raises(anyio.WouldBlock):
        device.receive_nowait()
