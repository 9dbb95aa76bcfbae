"""Lines across more than two nodes: where they lead, and what is said of them on the wire."""

from __future__ import annotations

from collections import deque
from typing import final

from backplane import Line, NoConnection
from backplane.lowlevel import Outpost, outpost_of

from ._exports import QUIET, Exports, Right
from ._faults import open_id, pack_id
from ._frames import WireLine
from ._identity import Identity
from ._key import Key
from ._peers import Peers


@final
class Reach:
    """What Lines lead to, as a node knows it."""

    def __init__(self, me: Identity, exports: Exports, peers: Peers) -> None:
        self._me = me
        self._exports = exports
        self._peers = peers

    def wire_line(self, line: Line) -> WireLine:
        """A Line for the wire: whoever gets it goes straight to the node where its Device lives."""
        outpost = outpost_of(line)
        if outpost is not None and isinstance(outpost.key, Key):
            return outpost.key.line
        export = self._exports.mint(line, Right.ALL)
        name = line.name if line.name is None else line.name[:255]
        return WireLine(
            export.token, self._me.name, self._me.incarnation,
            pack_id(line.id), name, export.offers.value,
        )  # fmt: skip

    def find_line(self, wire: WireLine) -> Line:
        """What a Line leads to that came from a node which its Device does not live on.

        If there is no connection with the node where it lives, it has ended
        here; but it can be sent on, to somebody who has one.
        """
        if (wire.node, wire.incarnation) == (self._me.name, self._me.incarnation):
            export = self._exports.get(wire.token)
            if export is not None:
                return export.line
        else:
            session = self._peers.get(wire.node)
            if session is not None and session.peer == Identity(wire.node, wire.incarnation):
                return session.mirror.open(wire)
        outpost, line = Outpost.open(open_id(wire.id), wire.name, deque(), QUIET, Key(None, wire))
        outpost.disconnect(NoConnection(wire.node))
        return line
