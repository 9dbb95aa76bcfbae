"""Secrets: which are good enough, and where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.bridge import Node, from_passphrase
from backplane.bridge._secrets import load, load_all

GOOD = b"sixteen bytes at least"
OTHER = b"sixteen bytes as well"


def written(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_no_secret_is_none() -> None:
    assert load(None) == ()


def test_one_and_several_are_loaded_in_their_order() -> None:
    assert load(GOOD) == (GOOD,)
    assert load([GOOD, OTHER]) == (GOOD, OTHER)
    assert load((OTHER, GOOD)) == (OTHER, GOOD)


@pytest.mark.parametrize("wrong", ["a text of some length", 16, [], (), bytearray(GOOD), {GOOD}])
def test_what_is_no_secret_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="a secret is bytes or a"):
        load(wrong)  # type: ignore[arg-type]


def test_neither_is_one_among_several() -> None:
    with pytest.raises(TypeError, match="not a str"):
        load([GOOD, "text"])  # type: ignore[list-item]


@pytest.mark.parametrize("short", [b"", b"x", b"fifteen bytes.."])
def test_a_short_secret_is_refused_and_not_shown(short: bytes) -> None:
    with pytest.raises(ValueError, match=f"of {len(short)} bytes can be guessed") as caught:
        load(short)
    assert len(short) < 2 or short.decode() not in str(caught.value)


def test_a_secret_may_be_in_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    path = written(tmp_path / "secret", GOOD + b"\n")

    assert load(path) == (GOOD,)
    assert load([OTHER, path]) == (OTHER, GOOD)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "secret", GOOD, mode)

    with pytest.raises(ValueError, match=f"{path}: chmod 600 it"):
        load(path)


def test_a_file_that_is_too_short_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of 5 bytes can be guessed"):
        load(written(tmp_path / "short", b"short \n"))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def test_secrets_of_certain_peers_are_loaded_by_their_names() -> None:
    assert load_all(None) == {}
    assert load_all({"b": GOOD, "c": [OTHER, GOOD]}) == {"b": (GOOD,), "c": (OTHER, GOOD)}


def test_a_peer_cannot_be_given_none() -> None:
    with pytest.raises(TypeError, match=r"secrets\['b'\] is None"):
        load_all({"b": None})  # type: ignore[dict-item]


def test_a_passphrase_makes_the_same_secret_each_time_and_another_makes_another() -> None:
    first = from_passphrase("correct horse battery")

    assert first == from_passphrase("correct horse battery")
    assert first != from_passphrase("correct horse batterz")
    assert len(first) == 32
    assert load(first) == (first,)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 12 characters"):
        from_passphrase("elevenchars")


def test_a_node_refuses_what_is_no_secret() -> None:
    with pytest.raises(ValueError, match="can be guessed"):
        Node("a", secret=b"short")
    with pytest.raises(TypeError, match="is None"):
        Node("a", secrets={"b": None})  # type: ignore[dict-item]
