"""A peer that a test speaks for: it says whatever it likes, and knows what it is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from backplane.bridge._auth import NONCE, PLAIN, proof, transcript
from backplane.bridge._frames import (
    VERSION,
    AnyFrame,
    Frame,
    Hello,
    Parser,
    Proof,
    Ready,
    WireID,
    WireLine,
    encode,
)
from backplane.bridge._session import Session
from backplane.bridge._states import State

if TYPE_CHECKING:
    from wire import End, Quiet
else:
    from .wire import End, Quiet

F = TypeVar("F", bound=Frame)
SECRET = b"a secret of sixteen bytes"


def packed(*frames: Frame) -> bytes:
    return b"".join(encode(frame, 1 << 30) for frame in frames)


class Liar:
    """One end of a connection with a real session, by hand.

    ``dials``: the connection was made from this side.
    """

    def __init__(
        self,
        end: End,
        *,
        dials: bool = True,
        name: str = "liar",
        now: float = 0.0,
        **of_session: Any,
    ) -> None:
        self.now = now
        self.dials = dials
        self.session = Session(end.setup, dialled=not dials, now=now, waiter=Quiet(), **of_session)
        self.hello = Hello([VERSION], name, os.urandom(16), os.urandom(NONCE), 1.0, 1 << 20)
        self._parser = Parser(1 << 30)
        self.theirs: Hello | None = None

    def hear(self) -> list[AnyFrame]:
        """All that the session has said since."""
        frames = list(self._parser.feed(self.session.outbox.take(1 << 30)))
        self.session.pulse.wrote(self.now)
        for frame in frames:
            if isinstance(frame, Hello):
                self.theirs = frame
        return frames

    def hear_only(self, kind: type[F]) -> list[F]:
        """Those of one kind."""
        return [frame for frame in self.hear() if isinstance(frame, kind)]

    def say(self, *frames: Frame) -> None:
        self.session.receive(packed(*frames), self.now)

    def proof(
        self, secret: bytes = SECRET, binding: bytes = PLAIN, dials: bool | None = None
    ) -> Proof:
        """The proof of one who knows a secret."""
        assert self.theirs is not None
        dials = self.dials if dials is None else dials
        hellos = (self.hello, self.theirs) if self.dials else (self.theirs, self.hello)
        said = transcript(encode(hellos[0], 1 << 20), encode(hellos[1], 1 << 20), binding)
        return Proof(proof(secret, dials, said))

    def shake(self) -> Liar:
        """Come up, without a lie."""
        self.hear()
        self.say(self.hello)
        self.hear()
        self.say(self.proof())
        if self.dials:
            self.say(Ready())
        assert self.session.state is State.UP, self.session.reason
        self.hear()
        return self

    def line(self, **changes: Any) -> WireLine:
        """A Line to a Device that it says to have."""
        fields: dict[str, Any] = {
            "token": os.urandom(12),
            "node": self.hello.name,
            "incarnation": self.hello.incarnation,
            "id": WireID(int.from_bytes(os.urandom(4), "big") + 1, 7),
            "name": None,
            "rights": 15,
        }
        return WireLine(**(fields | changes))
