"""How connections of datagrams begin: who knows the secret, and what comes of it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from backplane.bridge import _seal
from backplane.bridge._seal import Answer, ChaCha, Open

SECRET = b"a secret of sixteen bytes"
OTHER = b"another secret, not that one"
OPEN = Open(b"s" * 16, b"i" * 16, b"n" * 32, 1 << 20, [1], "a", "b", True)
ANSWER = Answer(b"s" * 16, b"j" * 16, b"m" * 32, 1 << 20, 1)


def test_what_is_said_at_the_beginning_is_read_as_it_was_said() -> None:
    opening = _seal.pack_open(OPEN, SECRET)
    answer = _seal.pack_answer(ANSWER, SECRET, opening)

    assert _seal.is_open(opening)
    assert _seal.is_answer(answer)
    assert not _seal.is_open(answer)
    assert not _seal.is_answer(opening)
    assert _seal.read_open(opening) == OPEN
    assert _seal.read_answer(answer) == ANSWER


def test_of_several_secrets_the_one_is_told_that_was_proved() -> None:
    opening = _seal.pack_open(OPEN, SECRET)

    assert _seal.proved_open(opening, (OTHER, SECRET)) == SECRET
    assert _seal.proved_open(opening, (OTHER,)) is None
    assert _seal.proved_open(opening, ()) is None


def test_an_answer_is_proved_to_the_one_call_that_it_answers() -> None:
    opening = _seal.pack_open(OPEN, SECRET)
    later = _seal.pack_open(msgspec.structs.replace(OPEN, nonce=b"o" * 32), SECRET)
    answer = _seal.pack_answer(ANSWER, SECRET, opening)

    assert _seal.is_proved_answer(answer, SECRET, opening)
    assert not _seal.is_proved_answer(answer, OTHER, opening)
    assert not _seal.is_proved_answer(answer, SECRET, later)


def test_a_proof_of_one_kind_is_none_of_the_other() -> None:
    opening = _seal.pack_open(OPEN, SECRET)
    reflected = b"\xb2" + opening[1:]

    assert not _seal.is_proved_answer(reflected, SECRET, opening)
    assert not _seal.is_proved_answer(reflected, SECRET, b"")
    assert _seal._mac(SECRET, b"open", b"body") != _seal._mac(SECRET, b"answer", b"body")


@given(position=st.integers(1, 300), bit=st.integers(0, 7))
def test_a_beginning_with_any_bit_changed_proves_nothing(position: int, bit: int) -> None:
    opening = _seal.pack_open(OPEN, SECRET)
    answer = _seal.pack_answer(ANSWER, SECRET, opening)

    assert _seal.proved_open(_flip(opening, position, bit), (SECRET,)) is None
    assert not _seal.is_proved_answer(_flip(answer, position, bit), SECRET, opening)
    assert not _seal.is_proved_answer(answer, SECRET, _flip(opening, position, bit))


def _flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[1 + position % (len(data) - 1)] ^= 1 << bit
    return bytes(changed)


@given(st.binary(max_size=400))
def test_whatever_bytes_come_are_a_beginning_or_nothing(data: bytes) -> None:
    for first in (b"", b"\xb1", b"\xb2"):
        _seal.read_open(first + data)
        _seal.read_answer(first + data)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a short session": {"session": b"short"},
    "a long incarnation": {"incarnation": bytes(17)},
    "no nonce": {"nonce": b""},
    "no window": {"window": 0},
    "an endless window": {"window": 1 << 60},
    "a sender without a name": {"sender": ""},
    "a subject for a name": {"to": "b.>\r\nPUB"},
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_beginning_with_an_impossible_field_is_nothing(change: dict[str, Any]) -> None:
    opening = _seal.pack_open(msgspec.structs.replace(OPEN, **change), SECRET)

    assert _seal.read_open(opening) is None


def test_a_beginning_that_is_too_long_is_not_looked_at() -> None:
    long = msgspec.structs.replace(OPEN, versions=list(range(2000)))

    assert not _seal.is_open(_seal.pack_open(long, SECRET))


def test_the_transcript_tells_apart_all_that_both_can_have_said() -> None:
    said = [(b"", b""), (b"ab", b"c"), (b"a", b"bc"), (b"c", b"ab"), (b"abc", b"")]

    assert len({_seal.transcript(*each) for each in said}) == len(said)


def test_keys_are_derived_by_hkdf_and_a_number_is_the_nonce() -> None:
    extracted = hmac.digest(b"said", SECRET, "sha256")
    info = b"backplane/1 datagrams seal"
    first = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    second = hmac.digest(extracted, first + info + b"\x02", hashlib.sha256)

    for dialled, key in ((True, first), (False, second)):
        sealed = ChaCha(SECRET, b"said", dialled=dialled).seal(7, b"header", b"data")
        nonce = (7).to_bytes(12, "big")
        assert ChaCha20Poly1305(key).decrypt(nonce, sealed, b"header") == b"data"


@given(data=st.binary(max_size=200), header=st.binary(max_size=50), number=st.integers(0, 2**64))
def test_what_was_sealed_is_unsealed_by_the_peer_alone(
    data: bytes, header: bytes, number: int
) -> None:
    a, b = ChaCha(SECRET, b"said", dialled=True), ChaCha(SECRET, b"said", dialled=False)
    sealed = a.seal(number, header, data)

    assert len(sealed) == len(data) + a.overhead
    assert b.unseal(number, header, sealed) == data
    assert b.unseal(number + 1, header, sealed) is None
    assert b.unseal(number, header + b"x", sealed) is None
    assert a.unseal(number, header, sealed) is None  # the directions have different keys


def test_connections_have_keys_of_their_own() -> None:
    sealed = ChaCha(SECRET, b"said", dialled=True).seal(0, b"", b"data")

    assert ChaCha(SECRET, b"said later", dialled=False).unseal(0, b"", sealed) is None
    assert ChaCha(OTHER, b"said", dialled=False).unseal(0, b"", sealed) is None


def test_no_two_datagrams_look_alike() -> None:
    seal = ChaCha(SECRET, b"said", dialled=True)
    sealed = [seal.seal(number, b"", b"the same") for number in range(100)]

    assert all(one != other for one, other in itertools.combinations(sealed, 2))


@given(st.binary(max_size=40))
def test_bytes_that_nobody_has_sealed_are_not_unsealed(data: bytes) -> None:
    assert ChaCha(SECRET, os.urandom(32), dialled=True).unseal(0, b"", data) is None
