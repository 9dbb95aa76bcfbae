"""Which of a node's connections may be used: one with each other node, at most.

All decisions are made here, from what the sessions say, and at once. Both ends
of two connections that cross come to the same one, since they go by the same
rule; and neither gives up one that is in use for one that is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from ._errors import (
    DuplicateError,
    FullError,
    NameTakenError,
    PerhapsTakenError,
    RefusedError,
)

if TYPE_CHECKING:
    from ._session import Session


@final
class Peers:
    """The connections of a node whose peers have proved themselves."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """All of them."""
        return list(self._sessions.values())

    def get(self, name: str) -> Session | None:
        """The connection with a node, if it is in use."""
        session = self._sessions.get(name)
        return session if session is not None and session.is_up else None

    def admit(self, new: Session) -> RefusedError | None:
        """Let a peer in that has proved itself; else return why not.

        * A connection that is there stays, and the new one is refused; but it has to
          show that it lives. If it is dead, the next one gets in. So it is with another
          node of the same name, be it the next life of the one that is connected.
        * Of two with the same node that are not in use yet, the one stays that the
          smaller node has dialled; of two in the same direction, the first.
        """
        assert new.peer is not None
        name = new.peer.name
        old = self._sessions.get(name)
        if old is None:
            if len(self._sessions) >= self._most:
                why = f"this node has {self._most} connections, as many as its Limits allow"
                return _refuse(FullError, new, why)
        else:
            assert old.peer is not None
            if old.peer.incarnation != new.peer.incarnation:
                return _refuse(*_rivals(old, new))
            if old.is_up:
                old.probe(new.pulse.now)
                return _refuse(DuplicateError, new, "it has a connection with this node already")
            if new.order >= old.order:
                return _refuse(DuplicateError, new, "it is about to have a connection already")
            old.down(_refuse(DuplicateError, old, "it has dialled, too"))
        self._sessions[name] = new
        return None

    def forget(self, session: Session) -> None:
        """It is down."""
        if session.peer is not None and self._sessions.get(session.peer.name) is session:
            del self._sessions[session.peer.name]


def _rivals(old: Session, new: Session) -> tuple[type[RefusedError], Session, str]:
    """Two nodes have one name. The first has to show that it lives, if it has not just done so."""
    assert new.peer is not None
    lives = old.pulse.has_shown_life
    old.probe(new.pulse.now)
    another = f"another node called {new.peer.name!r} is connected, at {old.source}"
    if lives:
        return NameTakenError, new, f"{another}, and alive: give each node a name of its own"
    return PerhapsTakenError, new, f"{another}, and is asked whether it lives"


def _refuse(kind: type[RefusedError], session: Session, why: str) -> RefusedError:
    assert session.peer is not None
    return kind(session.peer.name, f"connect with node {session.peer.name!r}", why)
