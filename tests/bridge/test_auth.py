"""Who is there: nobody comes up who cannot prove it, in this very connection, in his role."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import Device
from backplane.bridge._auth import accepts, check_name, is_name, proof, transcript
from backplane.bridge._errors import (
    REFUSALS,
    AuthError,
    FrameError,
    FullError,
    NameTakenError,
    NotConnectedError,
    ProofRefusedError,
    RefusedError,
    VersionError,
)
from backplane.bridge._exports import Right
from backplane.bridge._frames import (
    AnyFrame,
    Call,
    Cancel,
    Close,
    Find,
    Fire,
    Found,
    Frame,
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
    encode,
)
from backplane.bridge._identity import Identity
from backplane.bridge._limits import Limits
from backplane.bridge._session import Session
from backplane.bridge._states import TAKES, State

if TYPE_CHECKING:
    from liar import SECRET, Liar, packed
    from wire import End, Quiet, Wire, pair
else:
    from .liar import SECRET, Liar, packed
    from .wire import End, Quiet, Wire, pair

OTHER = b"another secret of more bytes"
RAW = msgspec.Raw(b"\xc0")


def meet(a: End, b: End, **of_dialler: Any) -> Wire:
    """Whatever comes of it when ``a`` dials ``b``."""
    wire = Wire(a, b, **of_dialler)
    wire.settle()
    return wire


def refused(wire: Wire) -> tuple[object, object]:
    """Why neither has come up."""
    for session in (wire.a, wire.b):
        assert session.state is State.DOWN
        assert not session.setup.exports._tokens
        assert len(session.mirror) == len(session.calls) == len(session.mirror.ear) == 0
    return type(wire.a.reason), type(wire.b.reason)


# -- secrets ------------------------------------------------------------------------------


def test_two_with_the_same_secret_come_up() -> None:
    wire = meet(End("a"), End("b"))

    assert wire.a.state is wire.b.state is State.UP
    assert (wire.a.peer_name, wire.b.peer_name) == ("b", "a")


def test_another_secret_is_refused_by_the_one_who_answers() -> None:
    wire = meet(End("a", secrets=(OTHER,)), End("b"))

    assert refused(wire) == (ProofRefusedError, AuthError)
    assert "secret" in str(wire.a.reason)


def test_an_answerer_with_another_secret_is_refused_by_the_one_who_dials() -> None:
    liar = Liar(End("a"), dials=False)
    liar.hear()
    liar.say(liar.hello, liar.proof(OTHER))

    assert isinstance(liar.session.reason, AuthError)


def test_two_without_a_secret_trust_each_other() -> None:
    wire = meet(End("a", secrets=()), End("b", secrets=()))

    assert wire.a.state is wire.b.state is State.UP


@pytest.mark.parametrize("without", ["a", "b"])
def test_one_without_a_secret_does_not_meet_one_who_has_one(without: str) -> None:
    ends = [End(name, secrets=() if name == without else (SECRET,)) for name in "ab"]

    refused(meet(*ends))


def test_a_secret_can_be_changed_one_node_after_the_other() -> None:
    old, both, new = (SECRET,), (OTHER, SECRET), (OTHER,)
    for first, second in [
        (old, old),
        (old, (SECRET, OTHER)),
        (both, both),
        (new, both),
        (new, new),
    ]:
        wire = meet(End("a", secrets=first), End("b", secrets=second))
        assert wire.a.state is wire.b.state is State.UP, (first, second)


def test_a_dialler_proves_the_first_of_its_secrets() -> None:
    refused(meet(End("a", secrets=(OTHER, SECRET)), End("b")))


def test_a_peer_may_have_a_secret_of_its_own() -> None:
    a = End("a", secrets=(OTHER,))
    b = End("b", secrets_of={"a": (OTHER,)})

    assert meet(a, b).b.state is State.UP
    assert meet(End("a", secrets_of={"b": (OTHER,)}), b).b.state is State.UP


def test_who_has_a_secret_of_its_own_cannot_speak_for_others() -> None:
    b = End("b", secrets_of={"a": (OTHER,)})

    refused(meet(End("c", secrets=(OTHER,)), b))
    refused(meet(End("a"), b))  # nor is the common one good for it any longer


def test_the_one_dialled_must_be_the_one_expected() -> None:
    wire = meet(End("a"), End("b"), expect="c")

    assert refused(wire)[0] is AuthError
    assert str(wire.a.reason) == "'c' was expected at a stream, the peer is 'b'"
    assert meet(End("a"), End("b"), expect="b").a.state is State.UP


def test_a_node_does_not_meet_itself() -> None:
    assert refused(meet(End("a"), End("a")))[1] is AuthError


def test_a_certificate_must_hold_the_name() -> None:
    wire = meet(End("a"), End("b"), certified=frozenset({"c", "d"}))

    assert refused(wire)[0] is AuthError
    assert "its certificate calls it ['c', 'd']" in str(wire.a.reason)
    assert meet(End("a"), End("b"), certified=frozenset({"b"})).a.state is State.UP


def test_both_must_be_bound_to_the_same_connection() -> None:
    assert refused(meet(End("a"), End("b"), binding=b"a certificate"))[1] is AuthError


def test_a_proof_is_good_for_its_secret_and_its_role_alone() -> None:
    said = transcript(b"one", b"two", b"plain")
    mac = proof(SECRET, True, said)

    assert accepts((OTHER, SECRET), True, said, mac) == SECRET
    assert accepts((OTHER,), True, said, mac) is None
    assert accepts((SECRET,), False, said, mac) is None
    assert accepts((SECRET,), True, transcript(b"onet", b"wo", b"plain"), mac) is None
    assert accepts((SECRET,), True, said, mac[:-1]) is None


@pytest.mark.parametrize("name", ["", "x" * 256, "a b", "a\n", "ä", "a/b", 7, None])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="a node's name is 1 to 255"):
        check_name(name)


def test_names_are_of_a_few_safe_characters() -> None:
    assert check_name("node-1.x_y@Z") == "node-1.x_y@Z"
    assert is_name("x" * 255)


# -- a man in the middle ---------------------------------------------------------------------


class Middle:
    """Carries what two real sessions say, and does with it what it likes."""

    def __init__(self, **of_answerer: Any) -> None:
        self.a = Session(End("a").setup, dialled=True, now=0.0, waiter=Quiet())
        self.b = Session(End("b", **of_answerer).setup, dialled=False, now=0.0, waiter=Quiet())

    def carry(self, change: Callable[[Frame], Frame] = lambda frame: frame) -> list[AnyFrame]:
        """Until both are silent."""
        seen: list[AnyFrame] = []
        moved = True
        while moved:
            moved = False
            for here, there in ((self.a, self.b), (self.b, self.a)):
                for frame in Parser(1 << 30).feed(here.outbox.take()):
                    moved = True
                    seen.append(frame)
                    there.receive(packed(change(frame)), 0.0)
        return seen


def changed(hello: Hello, field: str) -> Hello:
    new: dict[str, Any] = {
        "versions": [1, 2],
        "name": "c",
        "incarnation": bytes(16),
        "nonce": bytes(32),
        "heartbeat": 1.5,
        "frame": 5000,
        "features": ["x"],
    }
    assert set(new) == set(Hello.__struct_fields__)
    return msgspec.structs.replace(hello, **{field: new[field]})


@pytest.mark.parametrize("whose", ["a", "b"])
@pytest.mark.parametrize("field", Hello.__struct_fields__)
def test_nothing_in_a_hello_can_be_changed_on_the_way(whose: str, field: str) -> None:
    middle = Middle()

    middle.carry(
        lambda frame: (
            changed(frame, field) if isinstance(frame, Hello) and frame.name == whose else frame
        )
    )

    assert middle.a.state is not State.UP
    assert middle.b.state is State.DOWN
    assert isinstance(middle.b.reason, AuthError)


def test_versions_cannot_be_taken_away_on_the_way() -> None:
    middle = Middle()

    def downgrade(frame: Frame) -> Frame:
        if isinstance(frame, Hello):
            return msgspec.structs.replace(frame, versions=[0, *frame.versions])
        return frame

    middle.carry(downgrade)

    assert isinstance(middle.b.reason, AuthError)


@given(st.integers(0, 255), st.integers(1, 255))
def test_no_byte_of_a_proof_can_be_changed(place: int, change: int) -> None:
    middle = Middle()

    def bend(frame: Frame) -> Frame:
        if isinstance(frame, Proof):
            mac = bytearray(frame.mac)
            mac[place % len(mac)] ^= change
            return Proof(bytes(mac))
        return frame

    middle.carry(bend)

    assert isinstance(middle.b.reason, AuthError)


def test_a_proof_cannot_be_sent_back_to_who_made_it() -> None:
    """The one in the middle answers a dialler with what that says itself."""
    a = Session(End("a").setup, dialled=True, now=0.0, waiter=Quiet())
    hello = next(Parser(1 << 20).feed(a.outbox.take()))
    assert isinstance(hello, Hello)
    a.receive(packed(msgspec.structs.replace(hello, name="b")), 0.0)
    own = a.outbox.take()
    a.receive(own, 0.0)

    assert isinstance(a.reason, AuthError)


def test_two_diallers_do_not_prove_themselves_to_each_other() -> None:
    a = Session(End("a").setup, dialled=True, now=0.0, waiter=Quiet())
    b = Session(End("b").setup, dialled=True, now=0.0, waiter=Quiet())
    for _ in range(3):
        to_b, to_a = a.outbox.take(), b.outbox.take()
        a.receive(to_a, 0.0)
        b.receive(to_b, 0.0)

    assert isinstance(a.reason, AuthError)
    assert isinstance(b.reason, AuthError)


def test_an_answer_to_another_connection_is_worth_nothing() -> None:
    """One who waits for two connections proves nothing in one with the other's proof."""
    b = End("b")
    first, second = Liar(b), Liar(b, name="liar")
    second.hello = first.hello
    for liar in (first, second):
        liar.say(liar.hello)
        liar.hear()
    second.say(first.proof())

    assert isinstance(second.session.reason, AuthError)


@pytest.mark.parametrize("replayed", ["to the one who answers", "to the one who dials"])
def test_a_recorded_handshake_cannot_be_played_again(replayed: str) -> None:
    a, b = End("a"), End("b")
    record: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
    wire = Wire(a, b)
    for _ in range(4):
        for here, there in ((wire.a, wire.b), (wire.b, wire.a)):
            data = here.outbox.take()
            record[here.dialled] += data
            there.receive(data, 0.0)
    assert wire.b.state is State.UP

    to_answerer = replayed == "to the one who answers"
    victim = Session(
        (b if to_answerer else a).setup, dialled=not to_answerer, now=0, waiter=Quiet()
    )
    victim.receive(bytes(record[to_answerer]), 0.0)

    assert isinstance(victim.reason, AuthError)


# -- what a stranger learns ------------------------------------------------------------------


def test_a_stranger_gets_no_byte_that_depends_on_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backplane.bridge._handshake.random.token_bytes", bytes)
    said = []
    for secret in (SECRET, OTHER):
        end = End("b", secrets=(secret,))
        end.setup = dataclasses.replace(end.setup, me=Identity("b", bytes(16)))
        liar = Liar(end)
        liar.hello = msgspec.structs.replace(liar.hello, nonce=bytes(32), incarnation=bytes(16))
        liar.say(liar.hello)
        answer = liar.session.outbox.take()
        liar.session.receive(packed(Proof(bytes(32))), 0.0)
        said.append((answer, liar.session.outbox.take()))

    assert said[0] == said[1]
    assert said[0][1] == b""


def test_one_who_dials_in_is_told_nothing_before_his_hello() -> None:
    session = Session(End("b").setup, dialled=False, now=0.0, waiter=Quiet())

    assert session.outbox.take() == b""


def test_before_the_proof_a_frame_is_of_4_kib_at_most() -> None:
    liar = Liar(End("b"))
    liar.session.receive((4097).to_bytes(4, "big"), 0.0)

    assert isinstance(liar.session.reason, FrameError)

    liar = Liar(End("b"))
    liar.say(liar.hello)
    liar.session.receive((4097).to_bytes(4, "big"), 0.0)

    assert isinstance(liar.session.reason, FrameError)


@pytest.mark.parametrize("state", [State.HELLO, State.PROOF, State.READY])
def test_who_does_not_come_up_in_time_is_out(state: State) -> None:
    liar = Liar(End("b", limits=Limits(handshake=5.0)))
    if state is not State.HELLO:
        liar.say(liar.hello)
        liar.hear()
    if state is State.READY:
        liar.say(liar.proof())
    assert liar.session.state is state

    assert liar.session.tick(4.9) == 5.0
    assert liar.session.state is state
    liar.session.receive(b"\0", 4.95)  # a byte is no progress
    liar.session.tick(5.0)

    assert isinstance(liar.session.reason, TimeoutError)
    assert state.value in str(liar.session.reason)


def test_a_heartbeat_that_is_too_slow_for_the_other_is_refused() -> None:
    wire = meet(End("a", heartbeat=5.0), End("b", heartbeat=1.0, dead_after=3.0))

    assert refused(wire)[1] is VersionError
    assert "it must be a third of that at most" in str(wire.b.reason)


def test_a_heartbeat_may_be_a_whole_number() -> None:
    assert meet(End("a", heartbeat=5), End("b", heartbeat=2)).a.state is State.UP


@pytest.mark.parametrize(
    "change",
    [
        {"versions": []},
        {"versions": [2, 3]},
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 256},
        {"incarnation": b""},
        {"incarnation": bytes(17)},
        {"nonce": bytes(31)},
        {"heartbeat": 0.0},
        {"heartbeat": -1.0},
        {"heartbeat": float("nan")},
        {"heartbeat": float("inf")},
        {"frame": 4095},
        {"frame": 0},
        {"frame": -1},
        {"frame": 1 << 32},
    ],
    ids=str,
)
def test_a_hello_with_impossible_fields_is_refused(change: dict[str, Any]) -> None:
    liar = Liar(End("b"))
    liar.say(msgspec.structs.replace(liar.hello, **change))

    assert isinstance(liar.session.reason, VersionError if "versions" in change else FrameError)
    assert liar.session.outbox.take() == b""


# -- states and frames --------------------------------------------------------------------------

LINE = Liar(End("nobody")).line()
ONE_OF_EACH: dict[type[Frame], Frame] = {
    Hello: Liar(End("nobody")).hello,
    Proof: Proof(bytes(32)),
    Ready: Ready(),
    Ping: Ping(7),
    Pong: Pong(0),
    Close: Close("bye"),
    Find: Find(1, "x"),
    Found: Found(1, None),
    Watch: Watch(bytes(12)),
    Unwatch: Unwatch(bytes(12)),
    Listen: Listen(bytes(12), LINE),
    Unlisten: Unlisten(bytes(12), bytes(12)),
    Fire: Fire(bytes(12), None),
    Send: Send(bytes(12), None),
    Tell: Tell(bytes(12), RAW),
    Call: Call(bytes(12), 1, None, RAW),
    Reply: Reply(1, RAW),
    Refuse: Refuse(1, True, None),
    Cancel: Cancel(1),
}
LEGAL: dict[State, set[type[Frame]]] = {
    State.HELLO: {Hello, Close},
    State.PROOF: {Proof, Close},
    State.READY: {Ready, Close},
    State.UP: set(ONE_OF_EACH) - {Hello, Proof, Ready},
    State.DOWN: set(),
}


def test_the_table_of_states_says_what_this_one_does() -> None:
    assert {state: set(takes) for state, takes in TAKES.items()} == LEGAL
    assert set(ONE_OF_EACH) == set(AnyFrame.__args__)


def reach_state(state: State, dials: bool) -> Liar:
    """A real session in a state."""
    liar = Liar(End("b"), dials=dials)
    liar.hear()
    if state in (State.PROOF, State.READY):
        liar.say(liar.hello)
        liar.hear()
    if state is State.READY:
        liar.say(liar.proof())
    if state is State.UP:
        liar.shake()
    if state is State.DOWN:
        liar.session.eof()
    assert liar.session.state is state
    return liar


# Only the one who answers waits to be taken into use.
PLACES = [(state, dials) for state in State for dials in (True, False)]
PLACES.remove((State.READY, False))


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("state", "dials"), PLACES)
def test_each_state_takes_its_frames_and_is_ended_by_any_other(
    state: State, kind: type[Frame], dials: bool
) -> None:
    liar = reach_state(state, dials)
    session = liar.session
    frame = ONE_OF_EACH[kind]
    if kind is Proof and state is State.PROOF:
        frame = liar.proof()
    if kind is Found and state is State.UP:
        session.lookups.find("x", lambda _: None)
    if kind is Listen and state is State.UP:
        frame = Listen(bytes(12), liar.line())

    liar.say(frame)

    if state is State.DOWN:
        assert isinstance(session.reason, NotConnectedError)
        assert session.outbox.take() == b""
    elif kind is Close:
        assert isinstance(session.reason, NotConnectedError)
    elif kind in LEGAL[state]:
        assert session.reason is None
        assert session.state is not State.DOWN
    else:
        assert isinstance(session.reason, FrameError)
        assert str(session.reason) == f"a {kind.__name__} from a peer that is {state.value}"
        assert session.outbox.take() == b""


def test_nothing_of_a_session_that_failed_is_left() -> None:
    end = End("b")
    device = Device()
    end.exports.name("x", device.line(), ["*"], Right.ALL, None)
    tokens = len(end.exports)
    for step in range(4):
        liar = Liar(end)
        frames: list[Frame] = [liar.hello]
        liar.session.receive(packed(liar.hello), 0.0)
        liar.hear()
        frames = [Proof(os.urandom(32)), Find(1, "x"), Watch(bytes(12)), Ready()]
        liar.say(frames[step])

        session = liar.session
        assert session.is_down
        assert len(session.mirror) == len(session.calls) == len(session.mirror.ear) == 0
        assert len(session.lookups._asked) == len(session.outbox._out) == 0
        assert session.outbox.waiting == 0
    assert len(end.exports) == tokens
    assert len(end.downs) == 4
    assert end.ups == []


# -- one connection with each -------------------------------------------------------------------


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("kind", REFUSALS.values())
def test_whom_a_node_does_not_admit_is_told_why(kind: type[RefusedError], who: str) -> None:
    ends = {name: End(name) for name in "ab"}
    ends[who].refuses = lambda _: kind("x", "connect", "one is enough")

    wire = meet(ends["a"], ends["b"])

    assert refused(wire) == (kind, kind)
    here, there = (wire.a, wire.b) if who == "a" else (wire.b, wire.a)
    assert str(here.reason) == "cannot connect: one is enough"
    assert str(there.reason).startswith(f"cannot connect with node {who!r}: ")
    assert wire.a.outbox.waiting == wire.b.outbox.waiting == 0


def test_the_dialler_is_told_what_he_can_do() -> None:
    told = {}
    for kind in (NameTakenError, FullError):
        a, b = End("a"), End("b")
        b.refuses = lambda _, kind=kind: kind("a")  # type: ignore[misc]
        told[kind] = str(meet(a, b).a.reason)

    assert told == {
        NameTakenError: "cannot connect with node 'b': another node called 'a' is connected with "
        "it and alive: give each node a name of its own",
        FullError: "cannot connect with node 'b': it has as many connections as it may",
    }


def test_of_crossing_connections_the_order_is_the_same_at_both_ends() -> None:
    a, b = End("a"), End("b")
    one, other = meet(a, b), meet(b, a)

    assert one.a.order == one.b.order == ("a", a.me.incarnation)
    assert other.a.order == other.b.order == ("b", b.me.incarnation)


def test_a_proof_does_not_travel_twice() -> None:
    _, _, wire = pair()
    wire.b.receive(packed(Ready()), 0.0)

    assert isinstance(wire.b.reason, FrameError)


def test_the_wire_keeps_what_encode_makes() -> None:
    """The proof is over bytes that both sides make anew, so each frame has one form."""
    hello = Liar(End("a")).hello

    assert encode(next(Parser(4096).feed(encode(hello, 4096))), 4096) == encode(hello, 4096)
