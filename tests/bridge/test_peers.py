"""Which of a node's connections may be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backplane.bridge import DuplicateError, FullError, NameTakenError
from backplane.bridge._errors import PerhapsTakenError
from backplane.bridge._identity import Identity
from backplane.bridge._peers import Peers

ONE, TWO = b"1" * 16, b"2" * 16


class Session:
    """As much of a session as is asked for: node ``m`` has it with a peer."""

    def __init__(
        self, peers: Peers, name: str, dialled: bool, incarnation: bytes = ONE, up: bool = False
    ) -> None:
        self.peer = Identity(name, incarnation)
        self.is_up = up
        self.order = ("m", ONE) if dialled else (name, incarnation)
        self.reason: Any = None
        self.probed: list[float] = []
        self.pulse = SimpleNamespace(now=7.0, has_shown_life=False)
        self.source = f"where {incarnation[:1].decode()} is"
        self._peers: Any = peers

    def down(self, reason: BaseException) -> None:
        self.reason, self.is_up = reason, False
        self._peers.forget(self)

    def probe(self, now: float) -> None:
        self.probed.append(now)


@pytest.fixture
def peers() -> Any:
    return Peers(2)


def test_the_first_connection_with_a_node_is_admitted_and_found_once_it_is_up(peers: Any) -> None:
    session = Session(peers, "z", dialled=True)

    assert peers.admit(session) is None
    assert peers.get("z") is None
    session.is_up = True
    assert peers.get("z") is session
    assert peers.get("y") is None
    assert (len(peers), peers.all()) == (1, [session])


def test_there_are_as_many_as_may_be(peers: Any) -> None:
    for name in "xy":
        assert peers.admit(Session(peers, name, dialled=True)) is None

    refusal = peers.admit(Session(peers, "z", dialled=True))
    assert isinstance(refusal, FullError)
    assert str(refusal) == (
        "cannot connect with node 'z': this node has 2 connections, as many as its Limits allow"
    )
    assert len(peers) == 2


@pytest.mark.parametrize("old_up", [True, False])
@pytest.mark.parametrize("new_dialled", [True, False])
def test_another_node_of_the_name_is_refused_and_the_one_that_is_there_has_to_show_life(
    peers: Any, new_dialled: bool, old_up: bool
) -> None:
    old = Session(peers, "x", dialled=False, up=old_up)
    peers.admit(old)
    new = Session(peers, "x", new_dialled, incarnation=TWO)

    perhaps = peers.admit(new)
    old.pulse.has_shown_life = True
    surely = peers.admit(new)

    assert type(perhaps) is PerhapsTakenError
    assert type(surely) is NameTakenError
    assert str(perhaps) == (
        "cannot connect with node 'x': another node called 'x' is connected, at where 1 is, and "
        "is asked whether it lives"
    )
    assert "at where 1 is, and alive: give each node a name of its own" in str(surely)
    assert (old.probed, old.reason) == ([7.0, 7.0], None)
    assert peers.all() == [old]


def test_one_that_is_full_still_lets_a_new_incarnation_in_when_the_old_one_is_dead(
    peers: Any,
) -> None:
    old = Session(peers, "x", dialled=False, up=True)
    peers.admit(old)
    peers.admit(Session(peers, "y", dialled=False))
    new = Session(peers, "x", dialled=False, incarnation=TWO, up=True)
    assert isinstance(peers.admit(new), NameTakenError)
    old.down(TimeoutError())

    assert peers.admit(new) is None

    assert peers.get("x") is new
    assert len(peers) == 2


@pytest.mark.parametrize("name", ["a", "z"])
@pytest.mark.parametrize("old_dialled", [True, False])
@pytest.mark.parametrize("new_dialled", [True, False])
def test_one_that_is_in_use_stays_and_has_to_show_that_it_lives(
    peers: Any, name: str, old_dialled: bool, new_dialled: bool
) -> None:
    old = Session(peers, name, old_dialled, up=True)
    peers.admit(old)

    refusal = peers.admit(Session(peers, name, new_dialled))

    assert isinstance(refusal, DuplicateError)
    assert refusal.why == "it has a connection with this node already"
    assert (old.probed, old.reason) == ([7.0], None)


@pytest.mark.parametrize(
    ("name", "old_dialled", "new_dialled", "new_stays"),
    [
        ("a", True, False, True),  # a is smaller than m: what a has dialled stays
        ("a", False, True, False),
        ("z", True, False, False),
        ("z", False, True, True),
        ("a", True, True, False),  # in the same direction, the first
        ("a", False, False, False),
        ("z", True, True, False),
        ("z", False, False, False),
    ],
)
def test_of_two_that_are_not_in_use_the_smaller_node_has_dialled_the_one_that_stays(
    peers: Any, name: str, old_dialled: bool, new_dialled: bool, new_stays: bool
) -> None:
    old, new = Session(peers, name, old_dialled), Session(peers, name, new_dialled)
    peers.admit(old)

    refusal = peers.admit(new)

    if new_stays:
        assert refusal is None
        assert isinstance(old.reason, DuplicateError)
        assert peers.all() == [new]
    else:
        assert isinstance(refusal, DuplicateError)
        assert refusal.why == "it is about to have a connection already"
        assert old.reason is None
        assert peers.all() == [old]


def test_only_the_connection_itself_is_forgotten(peers: Any) -> None:
    old = Session(peers, "x", dialled=True, up=True)
    peers.admit(old)
    stranger = Session(peers, "x", dialled=True)
    nobody = Session(peers, "x", dialled=True)
    nobody.peer = None  # type: ignore[assignment]

    peers.forget(stranger)
    peers.forget(nobody)
    assert peers.all() == [old]
    peers.forget(old)
    assert peers.all() == []
