"""What users send across one connection, and faults: as bytes, and opened again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from backplane import Fault, Line

from ._codec import Reader, Writer, open_wire_line, pack_wire_line, reader, writer
from ._faults import pack_fault
from ._frames import WireFault

if TYPE_CHECKING:
    from ._session import Session


@final
class Payloads:
    """Packs and opens. A Line in a message leads to the same Device at either end."""

    __slots__ = ("_session", "open", "pack")

    pack: Final[Writer]
    """Makes bytes of what a user sends."""
    open: Final[Reader]
    """Opens what a user has sent."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.pack = writer(session.setup.codec, self._pack_line)
        self.open = reader(session.setup.codec, self._open_line)

    def pack_fault(self, fault: Fault | None) -> WireFault | None:
        """A fault for the wire."""
        setup = self._session.setup
        return pack_fault(fault, setup.limits, setup.tracebacks)

    def _pack_line(self, line: Line) -> bytes:
        wire_line = self._session.setup.wire_line
        assert wire_line is not None
        return pack_wire_line(wire_line(line))

    def _open_line(self, data: bytes) -> Line:
        wire = open_wire_line(data)
        session = self._session
        peer, find_line = session.peer, session.setup.find_line
        if peer is not None and (wire.node, wire.incarnation) == (peer.name, peer.incarnation):
            return session.mirror.open(wire)
        assert find_line is not None
        return find_line(wire)
