"""What this end knows of a Device on another node: where it is, and what may be done with it."""

from __future__ import annotations

from typing import Any, final

from backplane import DeviceID, Line
from backplane.lowlevel import Listening, Sent, outpost_of

from ._errors import NotAllowedError
from ._exports import Right
from ._frames import WireLine


@final
class Key:
    """What an outpost has in its ``key``: where it leads."""

    __slots__ = ("line", "session", "speakers", "tokens", "used")

    line: WireLine
    """What leads there on the wire."""
    session: Any
    """The connection with its node, up or not; None if there was none."""
    speakers: set[DeviceID]
    """Devices of ours of whose end it is to hear."""
    tokens: set[bytes]
    """By what they may call it."""
    used: bool
    """A user was given a Line to it: it is not only there to be heard of."""

    def __init__(self, session: Any, line: WireLine, used: bool = True) -> None:
        self.session = session
        self.used = used
        self.line = line
        self.speakers = set()
        self.tokens = {line.token}

    @property
    def rights(self) -> Right:
        """What a Line to it gives a right to."""
        return Right(self.line.rights & Right.ALL.value)


def permit(event: Sent | Listening) -> None:
    """Refuse what a Line gives no right to, before anything is done.

    The node of the Device looks again: it does not rely on this one.

    Raises:
        NotAllowedError: There is no right to that.
    """
    key = event.outpost.key
    right = Right.SEND if isinstance(event, Sent) else Right.LINK
    if right in key.rights:
        return
    name = key.line.name
    whom = "it" if name is None else repr(name)
    if isinstance(event, Sent):
        attempt = f"send {whom} a {type(event.message).__name__}"
    else:
        attempt = f"have {whom} hear of the end of {event.speaker.id!r}"
    raise _refusal(key, event.outpost.id, right, attempt)


def check_rights(line: Line, needed: Right, attempt: str) -> None:
    """See whether rights can be passed on that a Line may not give itself.

    Raises:
        NotAllowedError: It leads to another node, and does not give them.
    """
    outpost = outpost_of(line)
    if outpost is not None and isinstance(outpost.key, Key):
        missing = needed & (Right.LINK | Right.SEND) & ~outpost.key.rights
        if missing:
            raise _refusal(outpost.key, line.id, missing, attempt)


def _refusal(key: Key, device: DeviceID, missing: Right, attempt: str) -> NotAllowedError:
    node = key.line.node
    advice = f"node {node!r} has to export it with rights={_words(key.rights | missing)}"
    if Right.LINK in missing:
        advice += "; to hear of its end alone, link with LinkMode.MONITOR"
    return NotAllowedError(device, attempt, node, _words(missing), advice)


def _words(rights: Right) -> str:
    return " | ".join(map(str, rights))
