"""The Devices of a peer to which somebody here has a Line, or of which one is to hear.

A Device of theirs that has one of ours told of its end, and a Line to that Device
which somebody here holds, have different tokens, but one outpost: so a pair that
links each other from both sides is linked once, and either side can unlink it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, final

from backplane import DeviceID, Line, NoConnection
from backplane.lowlevel import Outpost

from ._ear import Waiter
from ._faults import open_id
from ._key import Key, permit


@final
class Outposts:
    """Devices of theirs, by their tokens and by their identities.

    A Device has several outposts if there are Lines to it that give different rights.
    Since Lines are opened in whatever thread, whoever changes something here holds the
    lock of the node's exports.
    """

    def __init__(self, events: deque[Any], waiter: Waiter) -> None:
        self._events = events
        self._waiter = waiter
        self._outposts: dict[bytes, Outpost] = {}
        self._of: dict[DeviceID, list[Outpost]] = {}
        self._lost: NoConnection | None = None
        """What there is to hear once the connection is gone."""

    def __len__(self) -> int:
        return len(self._outposts)

    def __contains__(self, token: bytes) -> bool:
        return token in self._outposts

    def get(self, token: bytes) -> Outpost | None:
        """The one that a token leads to."""
        return self._outposts.get(token)

    def line(self, token: bytes) -> Line | None:
        """A Line to it; None if there is none, or nobody has had a Line to it for a while."""
        outpost = self._outposts.get(token)
        return None if outpost is None else outpost.line()

    def open(self, key: Key) -> Line:
        """A Line to the Device that a key is for, if its token leads to none."""
        return self._join(key) or self._make(key)

    def _join(self, new: Key) -> Line | None:
        """The outpost that is there by another token, if that is the same for the user."""
        wire = new.line
        for outpost in self._of.get(open_id(wire.id), ()):
            key, line = outpost.key, outpost.line()
            if line is not None and not (new.used and key.used):
                if new.used:
                    key.line, key.used = wire, True
                key.tokens.add(wire.token)
                self._outposts[wire.token] = outpost
                return line
        return None

    def _make(self, key: Key) -> Line:
        wire = key.line
        device = open_id(wire.id)
        outpost, line = Outpost.open(device, wire.name, self._events, self._waiter, key, permit)
        if self._lost is None:
            self._outposts[wire.token] = outpost
            self._of.setdefault(device, []).append(outpost)
        else:
            outpost.disconnect(self._lost)
        return line

    def remove(self, outpost: Outpost) -> list[bytes]:
        """Forget an outpost; return the tokens that led to it still."""
        removed = []
        for token in outpost.key.tokens:
            if self._outposts.get(token) is outpost:
                del self._outposts[token]
                removed.append(token)
        same = self._of.get(outpost.id, [])
        if outpost in same:
            same.remove(outpost)
            if not same:
                del self._of[outpost.id]
        return removed

    def forget_alias(self, token: bytes) -> None:
        """Forget by what else a Device was called; not the token that its Lines have."""
        outpost = self._outposts.get(token)
        if outpost is not None and token != outpost.key.line.token:
            del self._outposts[token]
            outpost.key.tokens.discard(token)

    def lose(self, lost: NoConnection) -> list[Outpost]:
        """Forget all, and return them. What is opened from now on has ended."""
        self._lost = lost
        outposts = list(self._outposts.values())
        self._outposts.clear()
        self._of.clear()
        return outposts
