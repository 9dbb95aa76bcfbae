"""The questions of both sides of a connection: what is exported under a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from ._errors import FrameError
from ._frames import Find, Found, WireLine

if TYPE_CHECKING:
    from ._session import Session


@final
class Lookups:
    """Asks, and answers. It is for the node's loop alone."""

    __slots__ = ("_asked", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: dict[int, Callable[[WireLine | None], object]] = {}
        """Who waits for the answer to a question of ours, by its number."""

    def find(self, name: str, hear: Callable[[WireLine | None], object]) -> None:
        """Ask for what the peer exports under a name; ``hear`` gets it, or None.

        Raises:
            NotConnectedError: The session is not up.
            EncodeError: The name is too large.
        """
        session = self._session
        if not session.is_up:
            raise session.gone(f"find {name!r} on node {session.peer_name!r}")
        frame = Find(session.outbox.next_ref(), name)
        session.outbox.pack(frame)
        self._asked[frame.ref] = hear
        session.outbox.put(frame)

    def on_find(self, frame: Find) -> None:
        """The peer asks. It is not told whether there is none, or none for it."""
        session = self._session
        export = session.exports.find(frame.name, session.peer_name)
        line = None if export is None else session.mirror.pack(export)
        session.outbox.put(Found(frame.ref, line))

    def on_found(self, frame: Found) -> None:
        """It answers."""
        if frame.line is not None:
            self._session.mirror.check_own(frame.line)
        hear = self._asked.pop(frame.ref, None)
        if hear is None:
            raise FrameError("an answer to no question")
        hear(frame.line)

    def close(self) -> None:
        """The connection is gone: no answer comes."""
        asked, self._asked = self._asked, {}
        for hear in asked.values():
            hear(None)
