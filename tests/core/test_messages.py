"""The values of the mesh: frozen, compared by what they say, and fit to travel."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import (
    Cancelled,
    Cascaded,
    Completed,
    Device,
    DeviceID,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    Messaged,
    NoConnection,
    Shutdown,
)
from backplane._messages import Realm

SENDER = Device("sender")  # kept, so that its id stays that of a living Device
OTHER = Device("other")
ERROR = ValueError("the disk is full")
DEPTH = 100_000

# Each makes equal values that are not the same object.
MAKERS: dict[str, Callable[[], Any]] = {
    "DeviceID": lambda: SENDER.id,
    "DeviceID of another": lambda: OTHER.id,
    "DeviceID of another realm": lambda: DeviceID(SENDER.id.serial, 1),
    "Dropped": Dropped,
    "Failed": lambda: Failed(ERROR),
    "Cascaded": lambda: Cascaded(SENDER.id, Killed()),
    "Cascaded from another": lambda: Cascaded(OTHER.id, Killed()),
    "Cascaded for another reason": lambda: Cascaded(SENDER.id, Dropped()),
    "Cascaded twice": lambda: Cascaded(OTHER.id, Cascaded(SENDER.id, Killed())),
    "Cancelled": Cancelled,
    "Killed": Killed,
    "NoConnection": lambda: NoConnection("node"),
    "NoConnection to another": lambda: NoConnection("another node"),
    "Disconnected well": lambda: Disconnected(SENDER.id, None),
    "Disconnected badly": lambda: Disconnected(SENDER.id, Killed()),
    "Disconnected another": lambda: Disconnected(OTHER.id, None),
    "Shutdown by nobody": lambda: Shutdown(None),
    "Shutdown": lambda: Shutdown(SENDER.id),
    "Messaged": lambda: Messaged(Shutdown(None)),
    "Completed": lambda: Completed("value"),
    "Completed with None": lambda: Completed(None),
}
FIELDS: list[tuple[Any, str]] = [
    (SENDER.id, "serial"),
    (SENDER.id, "realm"),
    (Failed(ERROR), "exception"),
    (Cascaded(SENDER.id, Killed()), "sender"),
    (Cascaded(SENDER.id, Killed()), "fault"),
    (Cascaded(SENDER.id, Killed()), "root"),
    (Cascaded(SENDER.id, Killed()), "path"),
    (NoConnection("node"), "node"),
    (Disconnected(SENDER.id, None), "sender"),
    (Disconnected(SENDER.id, None), "fault"),
    (Shutdown(None), "sender"),
    (Messaged(Shutdown(None)), "message"),
    (Completed(1), "value"),
]

make = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


class Nasty(Exception):
    """An exception that defends itself against everything."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    def __hash__(self) -> int:
        raise RuntimeError("do not hash me")

    def __repr__(self) -> str:
        raise RuntimeError("do not show me")


def cascade(length: int, root: Fault) -> Fault:
    fault = root
    for serial in range(length):
        fault = Cascaded(DeviceID(serial), fault)
    return fault


# -- what all values have in common ---------------------------------------------------


@make
def test_values_are_equal_when_they_say_the_same(make: Callable[[], Any]) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(MAKERS[one](), MAKERS[other](), id=f"{one}, {other}")
        for one, other in itertools.combinations(MAKERS, 2)
    ],
)
def test_values_differ_when_they_say_something_else(one: object, other: object) -> None:
    assert one != other


@make
def test_a_value_equals_nothing_that_is_not_its_like(make: Callable[[], Any]) -> None:
    assert make() != object()
    assert make() != "text"
    assert make() is not None


@pytest.mark.parametrize(("value", "field"), FIELDS)
def test_a_field_cannot_be_set(value: object, field: str) -> None:
    before = getattr(value, field)

    with pytest.raises(AttributeError):
        setattr(value, field, None)

    assert getattr(value, field) == before


@pytest.mark.parametrize(("value", "field"), FIELDS)
def test_a_field_cannot_be_deleted(value: object, field: str) -> None:
    before = getattr(value, field)

    with pytest.raises(AttributeError):
        delattr(value, field)

    assert getattr(value, field) == before


@make
def test_a_value_takes_no_other_attribute(make: Callable[[], Any]) -> None:
    value = make()

    # CPython up to 3.13 words it as a TypeError in a frozen dataclass with slots.
    with pytest.raises((AttributeError, TypeError)):
        value.note = "remember the milk"

    assert not hasattr(value, "note")


@make
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_value_can_be_pickled(make: Callable[[], Any], protocol: int) -> None:
    value = make()

    copied = pickle.loads(pickle.dumps(value, protocol))

    if isinstance(value, Failed):  # equal only for the very same exception
        assert (type(copied.exception), copied.exception.args) == (ValueError, ERROR.args)
    else:
        assert copied == value
        assert hash(copied) == hash(value)


@make
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_value_can_be_copied(make: Callable[[], Any], copier: Callable[[Any], Any]) -> None:
    value = make()

    copied = copier(value)

    assert type(copied) is type(value)
    assert copied == value or isinstance(value, Failed)


# Trees of values: what a program may put together and send.
ids = st.builds(DeviceID, st.integers(1, 5), st.none() | st.integers(0, 2))
faults = st.recursive(
    st.sampled_from([Dropped(), Killed(), Cancelled()]) | st.builds(NoConnection, st.text()),
    lambda inner: st.builds(Cascaded, ids, inner),
)
messages = st.builds(Shutdown, st.none() | ids) | st.builds(Disconnected, ids, st.none() | faults)


@given(messages)
def test_any_message_survives_pickling(message: Message) -> None:
    assert pickle.loads(pickle.dumps(message)) == message


def spelled_out(value: object) -> object:
    match value:
        case DeviceID():
            return value.serial, value.realm
        case Disconnected(sender, fault):
            return "disconnected", spelled_out(sender), spelled_out(fault)
        case Shutdown(sender):
            return "shutdown", spelled_out(sender)
        case Cascaded(sender, fault):
            return "cascaded", spelled_out(sender), spelled_out(fault)
        case _:
            return repr(value)


@given(messages, messages)
def test_messages_are_equal_exactly_when_they_say_the_same(one: Message, other: Message) -> None:
    alike = spelled_out(one) == spelled_out(other)

    assert (one == other) == alike
    assert not alike or hash(one) == hash(other)


# -- matching -------------------------------------------------------------------------


def test_disconnected_is_matched_by_position() -> None:
    match Disconnected(SENDER.id, Killed()):
        case Disconnected(sender, fault):
            assert (sender, fault) == (SENDER.id, Killed())


def test_shutdown_is_matched_by_position() -> None:
    match Shutdown(SENDER.id):
        case Shutdown(sender):
            assert sender == SENDER.id


def test_cascaded_is_matched_by_position() -> None:
    match Cascaded(SENDER.id, Cascaded(OTHER.id, Killed())):
        case Cascaded(sender, Cascaded(origin, fault)):
            assert (sender, origin, fault) == (SENDER.id, OTHER.id, Killed())
        case _:
            pytest.fail("no match")


def test_failed_is_matched_by_position_and_type() -> None:
    match Failed(ERROR):
        case Failed(OSError()):
            pytest.fail("matched another error")
        case Failed(ValueError() as error):
            assert error is ERROR
        case _:
            pytest.fail("no match")


def test_no_connection_is_matched_by_position() -> None:
    match NoConnection("node"):
        case NoConnection(node):
            assert node == "node"


def test_messaged_and_completed_are_matched_by_position() -> None:
    outcomes: list[object] = []
    for outcome in (Messaged(Shutdown(None)), Completed(5)):
        match outcome:
            case Messaged(Shutdown(None)):
                outcomes.append("shutdown")
            case Completed(value):
                outcomes.append(value)
            case _:
                pytest.fail("no match")

    assert outcomes == ["shutdown", 5]


@pytest.mark.parametrize("fault", [f() for f in (Dropped, Cancelled, Killed)], ids=repr)
def test_fault_is_the_type_of_each_fault(fault: object) -> None:
    assert isinstance(fault, Fault)
    assert not isinstance(fault, Message)


@pytest.mark.parametrize("message", [Shutdown(None), Disconnected(SENDER.id, None)], ids=repr)
def test_message_is_the_type_of_each_message(message: object) -> None:
    assert isinstance(message, Message)
    assert not isinstance(message, Fault)


# -- what a repr shows ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (DeviceID(7), "<DeviceID 7>"),
        (DeviceID(7, 255), "<DeviceID 7 of 00000000000000ff>"),
        (Dropped(), "Dropped()"),
        (Failed(ERROR), "Failed(ValueError('the disk is full'))"),
        (NoConnection("node"), "NoConnection(node='node')"),
        (Cascaded(DeviceID(7), Killed()), "Cascaded(<DeviceID 7>, Killed())"),
        (cascade(3, Killed()), "Cascaded(<DeviceID 2>, <2 more, root Killed()>)"),
        (Disconnected(DeviceID(7), None), "Disconnected(sender=<DeviceID 7>, fault=None)"),
        (Shutdown(DeviceID(7)), "Shutdown(sender=<DeviceID 7>)"),
        (Completed(5), "Completed(value=5)"),
    ],
)
def test_a_repr_shows_all_that_a_value_says(value: object, text: str) -> None:
    assert repr(value) == text


# -- identities -----------------------------------------------------------------------


def test_no_two_devices_have_the_same_id() -> None:
    seen = {Device().id for _ in range(1000)}  # each Device has gone before the next one comes

    assert len(seen) == 1000


def test_devices_made_in_several_threads_have_different_ids() -> None:
    def make_many(_: int) -> list[DeviceID]:
        return [Device().id for _ in range(1000)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(itertools.chain.from_iterable(pool.map(make_many, range(8))))

    assert len(set(seen)) == len(seen) == 8000


def test_ids_count_up_in_order_of_creation() -> None:
    first, second = Device(), Device()

    assert first.id.serial < second.id.serial
    assert first.id.realm == second.id.realm


def test_an_id_stays_the_same_as_long_as_it_is_asked_for() -> None:
    device = Device()
    line = device.line()
    before = device.id
    device.disconnect()

    assert device.id == before == line.id
    del device
    assert line.id == before


def python(script: str) -> bytes:
    """Run a script in an interpreter of its own that takes each warning for an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, check=False, timeout=60
    )
    assert done.stderr == b""
    assert done.returncode == 0
    return done.stdout


def test_ids_of_another_process_differ_from_all_of_ours() -> None:
    theirs = pickle.loads(
        python(
            "import pickle, sys; from backplane import Device\n"
            "sys.stdout.buffer.write(pickle.dumps([Device().id for _ in range(100)]))"
        )
    )

    ours = {DeviceID(serial) for serial in range(1, 10_000)}
    assert len(set(theirs)) == 100
    assert ours.isdisjoint(theirs)
    assert SENDER.id.realm not in {their.realm for their in theirs}
    assert f" of {theirs[0].realm:016x}>" in repr(theirs[0])


def test_an_id_that_comes_back_from_another_process_is_the_same() -> None:
    there = pickle.dumps(SENDER.id)

    back = pickle.loads(
        python(
            "import pickle, sys\n"
            f"id = pickle.loads({there!r})\n"
            "sys.stdout.buffer.write(pickle.dumps(id))"
        )
    )

    assert back == SENDER.id
    assert repr(back) == repr(SENDER.id)


FORK = """
import os, pickle, warnings
from backplane import Device
warnings.simplefilter("error")
device, seen = Device(), {}
before = device.id
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, pickle.dumps(([Device().id for _ in range(10)], before)))
    os._exit(0)
os.wait()
ids, echo = pickle.loads(os.read(reader, 100_000))
ours = [Device().id for _ in range(10)]
"""
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


@needs_fork
def test_devices_made_after_a_fork_differ_from_those_of_the_parent() -> None:
    printed = python(FORK + "print(len({*ids, *ours}), ids[0].serial == ours[1].serial)")

    assert printed.split() == [b"20", b"True"]  # the numbers are the same: the realm tells them


@needs_fork
def test_an_id_taken_before_a_fork_still_names_the_same_device_in_the_child() -> None:
    printed = python(FORK + "print(echo == before)")

    assert printed.split() == [b"True"]


def test_a_new_realm_changes_no_id_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fork does in the child, done here."""
    monkeypatch.setattr(Realm, "past", [])
    monkeypatch.setattr(Realm, "number", 1)

    Realm.renew(5)
    second = Realm.number
    Realm.renew(9)

    realms = [DeviceID(serial).realm for serial in (1, 4, 5, 8, 9, 10)]
    assert realms == [1, 1, second, second, Realm.number, Realm.number]
    assert len(set(realms)) == 3


# -- link modes -----------------------------------------------------------------------


def test_link_modes_add_up_and_subtract() -> None:
    assert LinkMode.MONITOR | LinkMode.NOTIFY is LinkMode.PEER
    assert LinkMode.PEER & ~LinkMode.MONITOR is LinkMode.NOTIFY
    assert LinkMode.PEER & ~LinkMode.NOTIFY is LinkMode.MONITOR


@pytest.mark.parametrize("mode", [LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER])
def test_a_link_mode_stays_itself_when_it_is_pickled(mode: LinkMode) -> None:
    assert pickle.loads(pickle.dumps(mode)) is mode


# -- failures -------------------------------------------------------------------------


def test_failures_are_equal_only_for_the_very_same_exception() -> None:
    assert Failed(ERROR) == Failed(ERROR)
    assert Failed(ERROR) != Failed(ValueError(*ERROR.args))


def test_a_failure_never_asks_an_exception_to_compare_or_hash_itself() -> None:
    nasty = Nasty()

    assert Failed(nasty) == Failed(nasty)
    assert Failed(nasty) != Failed(Nasty())
    assert len({Failed(nasty), Failed(nasty)}) == 1


def test_a_failure_can_be_shown_though_its_exception_cannot() -> None:
    assert repr(Failed(Nasty())) == "Failed(<Nasty whose repr raises>)"


def test_whatever_holds_a_nasty_exception_can_be_compared_hashed_and_shown() -> None:
    fault = Cascaded(SENDER.id, Failed(Nasty()))
    message = Disconnected(OTHER.id, fault)

    assert message == Disconnected(OTHER.id, Cascaded(SENDER.id, fault.root))
    assert hash(message) == hash(Disconnected(OTHER.id, Cascaded(SENDER.id, fault.root)))
    assert "<Nasty whose repr raises>" in repr(Messaged(message))


# -- cascades -------------------------------------------------------------------------


def test_the_root_of_a_cascade_is_its_first_cause() -> None:
    error = Failed(ERROR)

    assert Cascaded(SENDER.id, error).root is error
    assert Cascaded(OTHER.id, Cascaded(SENDER.id, error)).root is error


def test_the_path_of_a_cascade_leads_from_the_nearest_device_to_the_origin() -> None:
    fault = Cascaded(OTHER.id, Cascaded(SENDER.id, Killed()))

    assert fault.path == (OTHER.id, SENDER.id)


def test_cascades_differ_when_they_came_another_way() -> None:
    one = Cascaded(OTHER.id, Cascaded(SENDER.id, Killed()))

    assert one != Cascaded(OTHER.id, Cascaded(OTHER.id, Killed()))
    assert one != Cascaded(SENDER.id, Cascaded(SENDER.id, Killed()))
    assert one != Cascaded(OTHER.id, Cascaded(SENDER.id, Dropped()))


@pytest.fixture(scope="module")
def deep() -> Fault:
    return cascade(DEPTH, Killed())


def test_a_deep_cascade_knows_its_root_and_path(deep: Fault) -> None:
    assert isinstance(deep, Cascaded)
    assert deep.root == Killed()
    assert len(deep.path) == DEPTH


def test_a_deep_cascade_can_be_shown(deep: Fault) -> None:
    text = repr(Disconnected(SENDER.id, deep))

    assert f"<{DEPTH - 1} more, root Killed()>" in text
    assert len(text) < 200


def test_a_deep_cascade_can_be_compared(deep: Fault) -> None:
    assert deep == cascade(DEPTH, Killed())
    assert deep != cascade(DEPTH, Dropped())
    assert deep != cascade(DEPTH - 1, Killed())


def test_a_deep_cascade_can_be_hashed(deep: Fault) -> None:
    assert hash(deep) == hash(cascade(DEPTH, Killed()))


def test_a_deep_cascade_can_be_pickled(deep: Fault) -> None:
    assert pickle.loads(pickle.dumps(deep)) == deep


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_deep_cascade_can_be_copied(deep: Fault, copier: Callable[[Fault], Fault]) -> None:
    assert copier(deep) == deep


def test_a_deep_cascade_can_be_freed() -> None:
    # A recursion in C would end the interpreter, so it gets one of its own.
    python(
        "from backplane import Cascaded, DeviceID, Killed\n"
        "fault = Killed()\n"
        f"for serial in range({DEPTH}): fault = Cascaded(DeviceID(serial), fault)\n"
        "del fault"
    )
