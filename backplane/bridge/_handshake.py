"""How two nodes come to know who is at the other end, and why they may not.

Both say hello, and then prove that they know the secret; what that is worth, see
``_auth``. A stranger's frames come here and nowhere else: until his proof is
believed, they change nothing but what he is called, and the session's state.
"""

from __future__ import annotations

import secrets as random
from typing import TYPE_CHECKING, Final, final

from ._auth import INCARNATION, NONCE, accepts, is_name, proof, transcript
from ._errors import (
    AuthError,
    DuplicateError,
    FrameError,
    FullError,
    NameTakenError,
    NotConnectedError,
    PerhapsTakenError,
    ProofRefusedError,
    RefusedError,
    VersionError,
)
from ._frames import VERSION, Hello, Proof, Ready, encode
from ._identity import Identity
from ._limits import LEAST_FRAME
from ._states import State

if TYPE_CHECKING:
    from ._session import Session

_UNKNOWN: Final = (
    "it closed without a word before it said who it is: if that is a node, and tls:// or tcp:// is "
    "as it listens, then its log says why"
)
_DISBELIEVED: Final = (
    "it closed without a word when it saw this node's proof, as one does whose secret is another: "
    "its log says more"
)

_REFUSED: Final[dict[type[RefusedError], str]] = {
    DuplicateError: "it has a connection with this node already",
    NameTakenError: "another node called {!r} is connected with it and alive: give each node a "
    "name of its own",
    PerhapsTakenError: "another node called {!r} was connected with it, and is asked whether it "
    "lives: try again in a second",
    FullError: "it has as many connections as it may",
}
"""What a peer has refused, by its ``Close``."""


@final
class Handshake:
    """Leads a session from ``HELLO`` to ``UP``, or raises why it cannot be.

    It says who the session's ``peer`` is, moves its ``state``, and has it ``admit`` the
    peer and ``come_up``. What ends the session is not looked for here.
    """

    __slots__ = ("_binding", "_certified", "_hello", "_nonce", "_said", "_secret", "_session")

    def __init__(self, session: Session, binding: bytes, certified: frozenset[str] | None) -> None:
        """Make it; nothing is said yet.

        Args:
            session: Whose it is.
            binding: What the connection is bound to.
            certified: The names in the peer's certificate, if it has shown one.
        """
        self._session = session
        self._binding = binding
        self._certified = certified
        self._nonce = random.token_bytes(NONCE)
        self._hello: Hello | None = None
        """What this side has said."""
        self._said = b""
        """What both have, in short."""
        self._secret = b""
        """What a dialler proves that it knows, and its peer has to."""

    def begin(self) -> None:
        """Say hello, as the one does who has dialled."""
        self._session.setup.dialling[self._nonce] = self._session
        self._say_hello()

    def forget(self) -> None:
        """Wait for no hello any longer."""
        self._session.setup.dialling.pop(self._nonce, None)

    def _say_hello(self) -> None:
        setup = self._session.setup
        me = setup.me
        hello = Hello(
            [VERSION],
            me.name,
            me.incarnation,
            self._nonce,
            float(setup.heartbeat),  # an int would have other bytes over there
            setup.limits.frame,
        )
        self._hello = hello
        self._session.outbox.put(hello)

    # -- what comes ------------------------------------------------------------------------

    def on_hello(self, hello: Hello) -> None:
        """The peer says who it is. From now on it may have to prove that."""
        self._check(hello)
        self._recognise(hello)
        session = self._session
        session.peer = Identity(hello.name, hello.incarnation)
        if not session.dialled:
            self._say_hello()
        session.outbox.peer_frame = hello.frame
        mine = self._hello
        assert mine is not None
        first, second = (mine, hello) if session.dialled else (hello, mine)
        self._said = transcript(encode(first, 1 << 20), encode(second, 1 << 20), self._binding)
        session.state = State.PROOF
        if session.dialled:
            self._secret = (*self._secrets(), b"")[0]
            session.outbox.put(Proof(proof(self._secret, True, self._said)))

    def _check(self, hello: Hello) -> None:
        """Refuse what no node of this kind says."""
        setup = self._session.setup
        if VERSION not in hello.versions:
            whom = self._session.whom
            raise VersionError(f"{whom} speaks versions {hello.versions[:8]}, not {VERSION}")
        if (
            not is_name(hello.name)
            or len(hello.incarnation) != INCARNATION
            or len(hello.nonce) != NONCE
            or not 0 < hello.heartbeat < float("inf")
            or not LEAST_FRAME <= hello.frame < 1 << 32
        ):
            raise FrameError("a hello with impossible fields")
        if hello.heartbeat > setup.dead_after / 3:
            raise VersionError(
                f"the heartbeat of node {hello.name!r}, {hello.heartbeat} s, is too slow for "
                f"dead_after={setup.dead_after} s here: it must be a third of that at most"
            )

    def _recognise(self, hello: Hello) -> None:
        """Refuse this node itself, or one of its name, or another than was expected."""
        session = self._session
        me, dialling = session.setup.me, session.setup.dialling
        self.forget()
        itself = dialling.get(hello.nonce)
        if itself is not None and hello.incarnation == me.incarnation:
            itself.down(AuthError(f"{itself.whom} is node {me.name!r} itself"))
        if hello.name == me.name:
            raise AuthError(f"{session.whom} is called {hello.name!r}, like this node")
        if session.expect is not None and hello.name != session.expect:
            raise AuthError(
                f"{session.expect!r} was expected at {session.source or 'a stream'}, the peer is "
                f"{hello.name!r}"
            )

    def _secrets(self) -> tuple[bytes, ...]:
        setup = self._session.setup
        return setup.secrets_of.get(self._session.peer_name, setup.secrets)

    def on_proof(self, frame: Proof) -> None:
        """The peer proves what it has said: the node decides whether it may stay."""
        session = self._session
        accepted = (self._secret,) if session.dialled else self._secrets() or (b"",)
        secret = accepts(accepted, not session.dialled, self._said, frame.mac)
        name = session.peer_name
        if secret is None:
            raise AuthError(f"the peer that calls itself {name!r} has another secret")
        if self._certified is not None and name not in self._certified:
            raise AuthError(
                f"the peer calls itself {name!r}, its certificate calls it "
                f"{sorted(self._certified)}"
            )
        session.admit()
        if session.dialled:
            session.outbox.put(Ready(), urgent=True)  # else a Ping might overtake it
            session.come_up()
        else:
            session.outbox.put(Proof(proof(secret, False, self._said)))
            session.state = State.READY

    def on_ready(self, frame: Ready) -> None:
        """The one who has dialled takes the connection into use."""
        self._session.come_up()

    # -- why it cannot be ------------------------------------------------------------------

    def refusal(self, kind: type[RefusedError]) -> RefusedError:
        """The error of one whom the peer does not want, and says so."""
        session = self._session
        why = _REFUSED[kind].format(session.setup.me.name)
        return kind(session.peer_name, f"connect with {session.whom}", why)

    def loss(self, why: str) -> NotConnectedError:
        """The error of one whose stream has ended before it was up; ``why``, if that is known."""
        session = self._session
        name, attempt = session.peer_name, f"connect with {session.whom}"
        if why or not session.dialled:
            why = why or f"it went away, {session.state.value}"
            return NotConnectedError(name, attempt, why)
        if session.state is State.PROOF:
            return ProofRefusedError(name, attempt, _DISBELIEVED)
        return NotConnectedError(name, attempt, _UNKNOWN)
