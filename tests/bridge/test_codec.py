"""Users' messages: what travels, as what it is opened, and what is refused to whom."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import gc
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import Device, DeviceID, Line
from backplane.bridge._codec import (
    ID,
    LINE,
    Msgspec,
    open_wire_line,
    pack_wire_line,
    reader,
    writer,
)
from backplane.bridge._errors import EncodeError, FrameError, PayloadError
from backplane.bridge._frames import WireID, WireLine

Ext = msgspec.msgpack.Ext


class Color(enum.Enum):
    RED = "red"


class Job(msgspec.Struct):
    name: str
    who: Line | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Ours:
    """A class that nobody knows."""

    def __init__(self, value: bytes) -> None:
        self.value = value


class Lines:
    """Packs Lines as numbers."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def pack(self, line: Line) -> bytes:
        self.lines.append(line)
        return bytes([len(self.lines) - 1])

    def open(self, data: bytes) -> Line:
        return self.lines[data[0]]


def there_and_back(value: Any, as_type: Any = Any, codec: Msgspec | None = None) -> Any:
    codec, lines = codec or Msgspec(), Lines()
    return codec.decode(codec.encode(value, lines.pack), as_type, lines.open)


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_come_out_as_they_went_in(value: Any) -> None:
    assert there_and_back(value) == value


@pytest.mark.parametrize(
    ("value", "as_type"),
    [
        (Job("x"), Job),
        (Point(1, 2), Point),
        (Color.RED, Color),
        (Decimal("1.50"), Decimal),
        (uuid.UUID(int=5), uuid.UUID),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.datetime),
        ((1, "x"), tuple[int, str]),
        ({1, 2}, set[int]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_msgspec_knows_comes_out_as_what_it_is_opened_as(value: Any, as_type: Any) -> None:
    assert there_and_back(value, as_type) == value


def test_without_a_type_a_struct_is_a_dict() -> None:
    assert there_and_back(Job("x")) == {"name": "x", "who": None}


def test_lines_travel_wherever_they_are() -> None:
    device = Device()
    line = device.line()

    assert there_and_back(line, Line) == line
    assert there_and_back([line, {"x": line}]) == [line, {"x": line}]
    assert there_and_back(Job("x", line), Job).who == line
    assert there_and_back({"x": [line]}, dict[str, list[Line]]) == {"x": [line]}


@given(st.integers(1, 2**63 - 1), st.integers(0, 2**64 - 1))
def test_identities_travel(serial: int, realm: int) -> None:
    device = DeviceID(serial, realm)

    assert there_and_back([device], list[DeviceID]) == [device]
    assert there_and_back(device) == device


def test_an_identity_that_there_cannot_be_does_not() -> None:
    with pytest.raises(EncodeError, match="no Device can be"):
        there_and_back(DeviceID(0, 0))
    data = msgspec.msgpack.encode(Ext(ID, msgspec.msgpack.encode(WireID(0, 0))))
    with pytest.raises(PayloadError, match="impossible number"):
        Msgspec().decode(data, Any, Lines().open)


@pytest.mark.parametrize(
    "value",
    [object(), [object()], ValueError("x"), lambda: 0, 1 << 64, -(1 << 63) - 1, "\udc80", Device],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_is_refused_to_the_sender(value: Any) -> None:
    with pytest.raises(EncodeError) as raised:
        there_and_back(value)
    assert "0x" not in str(raised.value)


def test_the_text_says_what_to_do() -> None:
    with pytest.raises(
        EncodeError, match=r"^Ours has no form on the wire: send what msgspec knows"
    ):
        there_and_back(Ours(b""))


def test_who_sends_a_device_is_told_to_send_a_line() -> None:
    with pytest.raises(EncodeError, match=r"Device has no form on the wire: send a Line to it"):
        Msgspec().encode({"from": Device()}, lambda _: b"")


def test_what_is_nested_too_deeply_is_refused_to_the_sender() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EncodeError):
        there_and_back(deep)
    while deep:  # so that it is not taken apart all at once
        deep = deep[0]
    gc.collect()


def test_what_refers_to_itself_is_refused_to_the_sender() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(EncodeError, match="nested too deeply"):
        there_and_back(ring)
    ring.clear()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\x01\x01",
        b"\xa1\xff",
        b"\x91" * 200_000,
        b"\x91" * 200_000 + b"\xc0",
        b"\x81\x80\x01",
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode(Ext(99, b"x")),
        msgspec.msgpack.encode(Ext(-1, b"x")),
        msgspec.msgpack.encode(Ext(LINE, b"\x05")),
        msgspec.msgpack.encode(Ext(ID, b"")),
        msgspec.msgpack.encode(Ext(ID, b"\x91" * 100_000)),
    ],
    ids=lambda data: f"{len(data)} bytes {data[:6].hex()}",
)
def test_what_is_no_message_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError):
        Msgspec().decode(data, Any, Lines().open)


@given(st.binary(max_size=60), st.sampled_from([Any, int, Job, list[Line], dict[str, Any]]))
def test_any_bytes_are_a_message_or_a_payload_error(data: bytes, as_type: Any) -> None:
    with contextlib.suppress(PayloadError):
        Msgspec().decode(data, as_type, Lines().open)


@pytest.mark.parametrize(
    ("value", "as_type", "text"),
    [
        ("x", int, "a message is no int: Expected `int`, got `str`"),
        ({"name": 5}, Job, r"a message is no Job: Expected `str`, got `int` - at `\$.name`"),
        ([1], list[Line], "a message is no "),
        (DeviceID(1, 1), Line, "a Line was expected, not a DeviceID"),
        ("x", Line, "a Line was expected, not a str"),
        ([], dict[str, int] | None, "a message is no "),
    ],
)
def test_what_is_of_another_type_is_a_payload_error(value: Any, as_type: Any, text: str) -> None:
    with pytest.raises(PayloadError, match=text):
        there_and_back(value, as_type)


def test_another_class_travels_if_it_is_added() -> None:
    codec = Msgspec()
    codec.add(Ours, 16, lambda ours: ours.value, Ours)
    codec.add(
        complex, 127, lambda number: repr(number).encode(), lambda data: complex(data.decode())
    )

    opened = there_and_back([Ours(b"abc"), 1 + 2j], codec=codec)
    assert opened[0].value == b"abc"
    assert opened[1] == 1 + 2j
    assert there_and_back(Ours(b"x"), Ours, codec).value == b"x"


@pytest.mark.parametrize("code", [-1, 0, 1, 2, 15, 128, 20])
def test_a_number_that_is_taken_is_refused(code: int) -> None:
    codec = Msgspec()
    codec.add(Ours, 20, lambda ours: ours.value, Ours)

    with pytest.raises(ValueError, match=f"extension {code} is taken, or not between 16 and 127"):
        codec.add(complex, code, lambda _: b"", lambda _: 0j)


def test_what_a_packer_or_opener_raises_is_the_bridges_error() -> None:
    codec = Msgspec()
    codec.add(Ours, 16, lambda ours: ours.value.decode("ascii").encode(), lambda data: 1 / 0)  # type: ignore[arg-type,return-value]

    with pytest.raises(EncodeError, match="a message cannot be encoded: 'ascii' codec"):
        codec.encode(Ours(b"\xff"), Lines().pack)
    with pytest.raises(PayloadError, match="division by zero"):
        there_and_back(Ours(b"x"), codec=codec)


def test_a_line_for_the_wire_has_bytes() -> None:
    line = WireLine(b"t" * 12, "a", b"i" * 16, WireID(5, 6), "name", 15)

    assert open_wire_line(pack_wire_line(line)) == line


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x90", b"\x91" * 100_000, b"\x96\xc0"])
def test_what_is_no_line_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError, match="no Line"):
        open_wire_line(data)


def test_an_error_of_ours_comes_out_as_it_is() -> None:
    def refuses(line: Line) -> bytes:
        raise FrameError("not this one")

    device = Device()
    with pytest.raises(FrameError, match="not this one"):
        Msgspec().encode([device.line()], refuses)


def test_any_number_of_types_can_be_opened_by_one_reader() -> None:
    read = Msgspec().reader(Lines().open)
    data = msgspec.msgpack.encode(5)

    for number in range(1000):
        kind = Annotated[int, msgspec.Meta(ge=number)]
        if number <= 5:
            assert read(data, kind) == 5
        else:
            with pytest.raises(PayloadError, match=f">= {number}"):
                read(data, kind)
    for _ in range(2):
        assert read(data, Annotated[int, msgspec.Meta(examples=[[]])]) == 5
        assert read(data, int) == 5
        with pytest.raises(PayloadError, match="a message is no "):
            read(data, 5)


class Shouting:
    """A codec of the user's own: everything is text."""

    def encode(self, value: Any, pack_line: Callable[[Line], bytes]) -> bytes:
        if isinstance(value, Line):
            value = pack_line(value).hex()
        return msgspec.msgpack.encode(str(value).upper())

    def decode(self, data: bytes, as_type: Any, open_line: Callable[[bytes], Line]) -> Any:
        text = msgspec.msgpack.decode(data, type=str)
        return open_line(bytes.fromhex(text)) if as_type is Line else text


def test_a_codec_of_ones_own_is_given_each_message() -> None:
    lines, line = Lines(), Device().line()
    write, read = writer(Shouting(), lines.pack), reader(Shouting(), lines.open)

    assert read(write("hello"), str) == "HELLO"
    assert read(write(line), Line) == line


def test_what_is_added_to_a_codec_later_travels_too() -> None:
    codec, lines = Msgspec(), Lines()
    write, read = codec.writer(lines.pack), codec.reader(lines.open)
    with pytest.raises(EncodeError):
        write(Ours(b""))
    codec.add(Ours, 16, lambda ours: ours.value, Ours)

    assert read(write(Ours(b"abc")), Any).value == b"abc"
