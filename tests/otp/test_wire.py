"""What processes send, as bytes and back: types by name, reasons, exceptions, and garbage."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.bridge import EncodeError, Node, PayloadError, RemoteError
from backplane.otp import KILLED, NOPROC, Exit, Pid, Stopped
from backplane.otp._methods import Shape, find
from backplane.otp._reasons import Reason
from backplane.otp._wire import EXIT, PID, Words
from backplane.otp.cluster import Cluster


def no_pid(thing: Any) -> Any:
    raise PayloadError("there are no pids here")


def words(*types: type) -> tuple[Words, Node]:
    """What a node knows."""
    node = Node("a", secret=b"sixteen bytes at least")
    return Words(node, types, no_pid, no_pid), node


def over(value: Any, *types: type) -> Any:
    """A value as another node gets it that knows the same types."""
    (here, a), (_, b) = words(*types), words(*types)
    return b.decode(a.encode(here.say(value)))


@dataclasses.dataclass
class Plain:
    number: int
    inner: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    text: str


@dataclasses.dataclass
class Counted:
    number: int
    twice: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.number


class Renamed(msgspec.Struct, rename="camel"):
    some_number: int
    inner: Plain | None = None


class Listed(msgspec.Struct, array_like=True):
    number: int
    inner: Plain | None = None


class Tagged(msgspec.Struct, tag=True):
    number: int


class TaggedList(msgspec.Struct, tag="t", array_like=True):
    number: int


class Colour(enum.Enum):
    RED = (1, 2)
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


ALL = [Plain, Frozen, Counted, Renamed, Listed, Tagged, TaggedList, Colour, Level, Rights]


@pytest.mark.parametrize(
    "value",
    [
        Plain(1),
        Plain(1, Plain(2, [Frozen("x"), {"k": Frozen("y")}])),
        Frozen("x"),
        Counted(3),
        Renamed(1, Plain(2)),
        Listed(1, Plain(2)),
        Tagged(1),
        TaggedList(1),
        Colour.RED,
        Colour.GREEN,
        Level.LOW,
        Rights.READ,
        Rights.READ | Rights.WRITE,
        {Frozen("a key"): [Colour.RED]},
        {(Frozen("a key"), 1): Level.LOW},
        Stopped(Plain(1)),
        [Stopped(None), KILLED, NOPROC],
        *Reason,
    ],
    ids=repr,
)
def test_what_both_sides_know_arrives_as_what_it_was(value: Any) -> None:
    got = over(value, *ALL)

    assert got == value
    assert type(got) is type(value)


def test_what_only_one_side_knows_arrives_as_its_fields_or_not_at_all() -> None:
    (ignorant, a), (knows, b) = words(), words(Plain)

    assert b.decode(a.encode(ignorant.say(Plain(1, Frozen("x"))))) == {
        "number": 1,
        "inner": {"text": "x"},
    }
    with pytest.raises(PayloadError, match="a 'Plain', which the cluster here was not told of"):
        a.decode(b.encode(knows.say([Plain(1)])))


def test_a_class_of_the_same_name_is_another_one() -> None:
    @dataclasses.dataclass
    class Other:
        number: int

    Other.__qualname__ = "Plain"

    assert over(Other(1), Plain) == {"number": 1}


@pytest.mark.parametrize("kind", [Renamed, Plain, Listed], ids=lambda each: each.__name__)
def test_fields_of_the_wrong_type_are_refused(kind: type) -> None:
    here, a = words(*ALL)
    wrong = kind("no number")

    with pytest.raises(PayloadError, match="Expected `int`, got `str`"):
        a.decode(a.encode(here.say(wrong)))


def test_a_member_that_an_enum_does_not_have_is_refused() -> None:
    here, a = words(Colour)
    data = a.encode(here.say(Colour.RED))

    with pytest.raises(PayloadError):
        a.decode(data.replace(b"RED", b"BLU"))


def test_exceptions_arrive_as_what_stands_for_them() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    far = RemoteError("some.Error", "its text", "its traceback")

    got = over([ValueError("x"), Mute(), far, ValueError("\ud800"), Exit(Stopped(1))])

    assert [type(each) for each in got] == [RemoteError] * 4 + [Exit]
    assert [each.text for each in got[:4]] == ["x", "(it cannot be shown)", "its text", "\\ud800"]
    assert got[0].type_name == "builtins.ValueError"
    assert (got[2].type_name, got[2].traceback) == ("some.Error", "its traceback")
    assert got[4].reason == Stopped(1)


def test_what_has_no_form_is_refused_whole() -> None:
    here, a = words(Plain)
    endless: dict[str, Any] = {}
    endless["self"] = endless
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]

    for wrong in (Plain(1, object()), endless, deep, {"x": KeyboardInterrupt()}, lambda: None):
        with pytest.raises(EncodeError):
            a.encode(here.say(wrong))
    while deep:  # so deep a list cannot even be freed at once everywhere
        deep = deep[0]


def test_a_type_has_one_name_and_a_node_one_cluster() -> None:
    class Plain:
        pass

    node = Node("a", secret=b"sixteen bytes at least")

    with pytest.raises(TypeError, match="it is no dataclass, "):
        words(Plain)
    with pytest.raises(TypeError, match="cannot travel by name"):
        words(1)  # type: ignore[arg-type]
    clash = dataclasses.make_dataclass("Frozen", ["x"])
    with pytest.raises(ValueError, match="two types are called 'Frozen'"):
        words(Frozen, clash)
    words(Frozen, Frozen)
    Cluster(node)
    with pytest.raises(ValueError, match="node 'a' has, or had, a cluster: extension 16 is taken"):
        Cluster(node)


def test_a_node_with_a_codec_of_its_own_cannot_have_a_cluster() -> None:
    class Mine:
        def encode(self, value: Any, pack_line: Any) -> bytes:
            raise AssertionError

        def decode(self, data: bytes, as_type: Any, open_line: Any) -> Any:
            raise AssertionError

    with pytest.raises(TypeError, match="a cluster needs a node with the codec Msgspec"):
        Cluster(Node("a", secret=b"sixteen bytes at least", codec=Mine()))


@given(st.integers(PID, EXIT + 2), st.binary(max_size=60))
@example(17, msgspec.msgpack.encode(["Plain", 1]))
@example(17, msgspec.msgpack.encode(["Plain", {"number": []}]))
@example(17, msgspec.msgpack.encode(["Colour", []]))
@example(17, msgspec.msgpack.encode(["Rights", "x"]))
@example(18, b"\xff")
@example(18, b"no reason")
@example(20, msgspec.msgpack.encode([1, 2, 3]))
def test_garbage_is_refused_and_nothing_else_comes_of_it(code: int, data: bytes) -> None:
    garbage = msgspec.msgpack.encode([msgspec.msgpack.Ext(code, data)])
    _, a = words(*ALL)

    try:
        a.decode(garbage)
    except PayloadError:
        pass


def test_pids_are_for_clusters_that_are_open() -> None:
    from backplane import Device
    from backplane.otp import Process

    node = Node("a", secret=b"sixteen bytes at least")
    cluster = Cluster(node)

    with pytest.raises(EncodeError, match="the cluster of this node is not open"):
        node.encode(Process(Device("lone")).pid)
    assert repr(cluster) == "<Cluster of 'a' with []>"


# -- methods ----------------------------------------------------------------------------------


def test_a_method_whose_types_cannot_be_checked_takes_what_comes() -> None:
    class Custom:
        pass

    class Several:
        def two(self, value: Custom | Pid) -> Custom | Pid:
            raise AssertionError

        def mixed(self, value: Colour) -> None:
            raise AssertionError

    two, mixed = Shape.of(Several.two), Shape.of(Several.mixed)

    assert two.arguments(["anything"], {"value": 1}) == (("anything",), {"value": 1})
    assert two.answer(5) == 5
    assert mixed.arguments([Colour.RED], {}) == ((Colour.RED,), {})
    assert mixed.answer("None says nothing") == "None says nothing"
    assert Shape.of(Several.two) is two


def test_what_is_meant_by_positional_and_named_parameters_in_excess() -> None:
    class Many:
        def many(self, first: int, /, *rest: str, only: float = 1.0, **named: bytes) -> None:
            raise AssertionError

    shape = Shape(Many.many)

    assert shape.arguments([1, "a", "b"], {"only": 2, "x": b"y"}) == (
        (1, "a", "b"),
        {"only": 2.0, "x": b"y"},
    )
    for args, kwargs, name in [
        (["x"], {}, "first"),
        ([1, 2], {}, "rest"),
        ([1], {"only": "x"}, "only"),
        ([1], {"x": "y"}, "x"),
    ]:
        text = f"^argument '{name}' of Many.many is of the wrong type: "
        with pytest.raises(PayloadError, match=text):
            shape.arguments(args, kwargs)  # type: ignore[arg-type]


def test_a_process_that_is_no_server_has_no_methods() -> None:
    with pytest.raises(PayloadError, match="'add' is no method of that process, marked @on_call"):
        find(None, "add", "call")
