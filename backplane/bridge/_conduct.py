"""What a peer does that is no breach yet, but must not fill the log, nor go on for ever."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from ._errors import FrameError
from ._exports import Export
from ._news import Hush

if TYPE_CHECKING:
    from ._session import Session

_FAILURES, _PERIOD = 30, 60.0
"""Of how many failures of ports that a peer has caused the log tells, in how many seconds."""
_STRAY: Final = (
    "node %r: a message from %r reached nobody: its Device has no port, or %r may not "
    "talk to it, or it was revoked"
)


@final
class Conduct:
    """Tells of a peer in the log, and counts what it sends to nobody."""

    __slots__ = ("_counted", "_failed", "_most", "_session", "_since", "_strayed", "_unknown")

    def __init__(self, session: Session, now: float) -> None:
        self._session = session
        self._most = session.limits.unknown
        self._failed = Hush(_FAILURES, _PERIOD)
        self._strayed = Hush(1, _PERIOD)
        self._since = now
        """When the second began that counts."""
        self._unknown = self._counted = 0
        """What had come for nobody by then, and when it was counted last."""

    def failed(self, export: Export | None, error: Exception) -> None:
        """Tell of what a user's port has raised: of so much of it as leaves the log of use."""
        session = self._session
        name = "a port" if export is None else f"the port of {export.line!r}"
        text, now, peer = "%s failed for a message from %r", session.pulse.now, session.peer_name
        self._failed.log(now, logging.ERROR, text, name, peer, exc_info=error)

    def strayed(self, token: bytes) -> None:
        """Count a user's message that has come for nobody, and tell of it now and then."""
        session = self._session
        if session.mirror.count_unknown(token):
            now, me, peer = session.pulse.now, session.setup.me.name, session.peer_name
            self._strayed.log(now, logging.WARNING, _STRAY, me, peer, peer)

    def check(self, now: float) -> None:
        """Count what has come for nobody; to be called after whatever has come.

        Raises:
            FrameError: It was too much in a second.
        """
        count = self._session.mirror.unknown
        if now - self._since >= 1:
            self._since, self._unknown = now, self._counted
        self._counted = count
        if count - self._unknown > self._most:
            raise FrameError(f"more than {self._most} messages for nobody in a second")
