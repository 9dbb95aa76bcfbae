"""Frames: whatever bytes come, however they are split, it is frames or one FrameError."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.bridge._errors import EncodeError, FrameError
from backplane.bridge._frames import (
    AnyFrame,
    Call,
    Cancel,
    Close,
    Find,
    Fire,
    Found,
    Hello,
    Listen,
    Parser,
    Ping,
    Pong,
    Proof,
    Ready,
    Refuse,
    Reply,
    Send,
    Tell,
    Unlisten,
    Unwatch,
    Watch,
    WireFault,
    WireID,
    WireLine,
    encode,
)

LIMIT = 1 << 20

NUMBERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(max_size=20)
TOKENS = st.binary(max_size=14)
SECONDS = st.floats(allow_nan=False)
IDS = st.builds(WireID, NUMBERS, NUMBERS)
FAULTS = st.none() | st.builds(
    WireFault, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(IDS, max_size=3)
)
LINES = st.builds(WireLine, TOKENS, TEXTS, TOKENS, IDS, st.none() | TEXTS, NUMBERS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats(allow_nan=False)
    | TEXTS
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = st.builds(lambda value: msgspec.Raw(msgspec.msgpack.encode(value)), VALUES)
BY_TAG: dict[int, st.SearchStrategy[Any]] = {
    1: st.builds(
        Hello, st.lists(NUMBERS, max_size=3), TEXTS, TOKENS, TOKENS, SECONDS, NUMBERS,
        st.lists(TEXTS, max_size=3),
    ),
    2: st.builds(Proof, TOKENS),
    3: st.builds(Ready),
    4: st.builds(Ping, NUMBERS),
    5: st.builds(Pong, NUMBERS),
    6: st.builds(Close, TEXTS),
    7: st.builds(Find, NUMBERS, TEXTS),
    8: st.builds(Found, NUMBERS, st.none() | LINES),
    9: st.builds(Watch, TOKENS),
    10: st.builds(Unwatch, TOKENS),
    11: st.builds(Listen, TOKENS, LINES),
    12: st.builds(Unlisten, TOKENS, TOKENS),
    13: st.builds(Fire, TOKENS, FAULTS),
    14: st.builds(Send, TOKENS, st.none() | IDS, st.booleans(), FAULTS),
    15: st.builds(Tell, TOKENS, PAYLOADS),
    16: st.builds(Call, TOKENS, NUMBERS, st.none() | SECONDS, PAYLOADS),
    17: st.builds(Reply, NUMBERS, PAYLOADS),
    18: st.builds(Refuse, NUMBERS, st.booleans(), FAULTS),
    19: st.builds(Cancel, NUMBERS),
}  # fmt: skip
FRAMES: st.SearchStrategy[Any] = st.one_of(*BY_TAG.values())


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Some bytes, cut at places that may be anywhere."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def parse(parts: Iterable[bytes], limit: int = LIMIT) -> tuple[list[AnyFrame], str | None]:
    """The frames of some bytes, and what the error says that ends them."""
    parser = Parser(limit)
    frames: list[AnyFrame] = []
    try:
        for part in parts:
            frames.extend(parser.feed(part))
            assert len(parser) <= limit + 4
    except FrameError as error:
        return frames, str(error)
    return frames, None


CUTS = st.lists(st.integers(0, 2**16), max_size=12)


@pytest.mark.parametrize("tag", BY_TAG)
@given(data=st.data())
def test_a_frame_comes_out_as_it_went_in(tag: int, data: st.DataObject) -> None:
    frame = data.draw(BY_TAG[tag])

    frames, error = parse([encode(frame, LIMIT)])

    assert error is None
    assert frames == [frame]
    assert encode(frames[0], LIMIT) == encode(frame, LIMIT)


def test_every_kind_of_frame_is_among_these() -> None:
    kinds = msgspec.inspect.type_info(AnyFrame)

    assert isinstance(kinds, msgspec.inspect.UnionType)
    tags = {kind.tag for kind in kinds.types if isinstance(kind, msgspec.inspect.StructType)}
    assert tags == set(BY_TAG)


@given(st.lists(FRAMES, max_size=6), CUTS)
def test_frames_are_the_same_wherever_they_are_split(frames: list[Any], cuts: list[int]) -> None:
    data = b"".join(encode(frame, LIMIT) for frame in frames)

    assert parse(pieces(data, cuts)) == (frames, None)


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_are_frames_or_one_error(data: bytes, cuts: list[int]) -> None:
    assert parse(pieces(data, cuts), limit=64) == parse([data], limit=64)


@given(st.lists(st.binary(max_size=40).map(framed), max_size=4), CUTS)
def test_any_bodies_are_frames_or_one_error(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(bodies)

    assert parse(pieces(data, cuts)) == parse([data])


@given(
    st.lists(FRAMES, min_size=1, max_size=4),
    st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(max_size=3), st.integers(0, 3)), max_size=4
    ),
    CUTS,
)
def test_frames_that_were_tampered_with_are_frames_or_one_error(
    frames: list[Any], changes: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    data = bytearray(b"".join(encode(frame, LIMIT) for frame in frames))
    for place, new, less in changes:
        place %= len(data) + 1
        data[place : place + less] = new

    assert parse(pieces(bytes(data), cuts)) == parse([bytes(data)])


@given(FRAMES, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=3), CUTS)
def test_bodies_that_were_tampered_with_are_frames_or_one_error(
    frame: Any, changes: list[tuple[int, int]], cuts: list[int]
) -> None:
    body = bytearray(encode(frame, LIMIT)[4:])
    for place, value in changes:
        body[place % len(body)] = value
    data = framed(bytes(body))

    assert parse(pieces(data, cuts)) == parse([data])


DEEP = 200_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91\x00",
        b"\x91\x14",
        b"\x90",
        b"\x80",
        b"\x93\x07\x01\xa1\xff",
        b"\x92\xc3\x01",
        b"\x91" * DEEP,
        b"\x93\x0f\xc4\x00" + b"\x91" * DEEP,
        b"\x93\x0f\xc4\x00" + b"\x91" * DEEP + b"\xc0",
        b"\x93\x0f\xc4\x00" + b"\x81" * DEEP,
        b"\x93\x0f\xc4\x00" + b"\x81\xc0" * DEEP + b"\xc0",
        b"\x92\x04" + b"\xdd\xff\xff\xff\xff",
        b"\x92\x02" + b"\xc6\xff\xff\xff\xff",
        b"\x92\x06" + b"\xdb\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x93\x0f\xc4\x00" + b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x93\x0f\xc4\x00" + b"\xdf\xff\xff\xff\xff" * 1000,
        b"\x93\x0f\xc4\x00\xc9\xff\xff\xff\xff\x01",
        b"\x93\x0f\xc4\x00\xc0\xc0",
        b"\x93\x0f\xc4\x00\xd7\xff" + b"\xff" * 8,
    ],
    ids=lambda body: f"{len(body)} bytes {body[:12].hex()}",
)
def test_hostile_bodies_are_refused_with_little_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        frames, error = parse([framed(body)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert frames == [] or isinstance(frames[0], Tell)
    assert error is not None or frames
    assert peak < 20 * len(body) + 100_000


@pytest.mark.parametrize("length", [LIMIT + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(length: int) -> None:
    frames, error = parse([length.to_bytes(4, "big")])

    assert frames == []
    assert error == f"a frame of {length} bytes: the limit is {LIMIT}"


def test_a_frame_may_be_as_large_as_the_limit() -> None:
    data = encode(Ping(2**40), LIMIT)
    size = len(data) - 4

    assert parse([data], limit=size) == ([Ping(2**40)], None)
    assert parse([data], limit=size - 1)[1] == f"a frame of {size} bytes: the limit is {size - 1}"
    assert encode(Ping(2**40), size) == data
    with pytest.raises(EncodeError, match=f"{size} bytes is too large: the peer takes {size - 1}"):
        encode(Ping(2**40), size - 1)


def test_millions_of_empty_maps_stay_closed() -> None:
    size = 16 << 20
    payload = b"\xdd" + (size - 5).to_bytes(4, "big") + b"\x80" * (size - 5)
    data = encode(Tell(b"", msgspec.Raw(payload)), size + 100)
    tracemalloc.start()
    try:
        frames, error = parse(pieces(data, range(0, len(data), 1 << 18)), limit=size + 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert error is None
    assert len(frames) == 1
    assert peak < 4 * size  # opened they would be 75 times as large


def test_a_frame_that_comes_byte_by_byte_takes_no_time_in_proportion_to_its_square() -> None:
    data = encode(Close("x" * 600_000), LIMIT)
    began = time.process_time()

    frames, _ = parse([data[at : at + 1] for at in range(len(data))])

    assert len(frames) == 1
    assert time.process_time() - began < 10  # copied anew each time, it is 180 GB


def test_the_limit_may_change_between_frames() -> None:
    parser = Parser(10)
    data = encode(Ping(1), LIMIT) + encode(Close("x" * 100), LIMIT)
    frames = []
    for frame in parser.feed(data):
        frames.append(frame)
        parser.limit = 200

    assert frames == [Ping(1), Close("x" * 100)]
    assert len(parser) == 0


def test_an_unknown_field_is_an_error() -> None:
    frames, error = parse([framed(msgspec.msgpack.encode([4, 1, 2]))])

    assert frames == []
    assert error is not None
    assert error.startswith("no frame: ")
