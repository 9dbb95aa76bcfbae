"""Peers: nodes at the other end of a connection."""

from __future__ import annotations

from typing import final

from backplane import Device, Fault, Line
from backplane.lowlevel import clock, new_parking

from ._errors import ExportError
from ._frames import WireLine
from ._session import Session


@final
class _Search:
    """A question that is under way."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.parking = new_parking()
        self.over = False
        self.line: Line | None = None

    def hear(self, line: WireLine | None) -> None:
        """Take the answer, at once: should the connection be lost next, so is this Line."""
        if self.over:
            return  # it came too late
        self.over = True
        if line is not None:
            self.line = self._session.mirror.open(line)
        self.parking.wake()


@final
class Peer:
    """A node at the other end of a connection; over when that is."""

    name: str
    incarnation: bytes

    def __init__(self, session: Session) -> None:
        self._session = session
        identity = session.peer
        assert identity is not None
        self.name = identity.name
        self.incarnation = identity.incarnation
        self._device = Device(f"connection with {identity.name}")

    @property
    def connected(self) -> bool:
        """Whether the connection is still there."""
        return self._session.is_up

    def line(self) -> Line:
        """A Line to the connection: it ends with ``NoConnection`` when that is lost.

        All links across the connection have fired by then.
        """
        return self._device.line()

    async def find(self, name: str, timeout: float = 5.0) -> Line:  # noqa: ASYNC109
        """A Line to what the node exports under a name.

        Found again under the same rights, it is an equal Line. One to the same Device that
        came in a message, or is exported with other rights, may be another, as it may do
        other things: ``line.id`` is the same.

        Raises:
            ExportError: It exports nothing under that name, or not to this node.
            NotConnectedError: The connection is gone.
            TimeoutError: No answer came within so many seconds.
            TypeError: The name is no ``str``.
        """
        if not isinstance(name, str):
            raise TypeError(f"things are exported under names, not under a {type(name).__name__}")
        session = self._session
        search = _Search(session)
        session.lookups.find(name, search.hear)
        now = clock()
        deadline = now() + timeout
        try:
            while not search.over:
                if now() >= deadline:
                    raise TimeoutError(
                        f"node {self.name!r} did not say what {name!r} is within {timeout:g} s"
                    )
                await search.parking.park_until(deadline)
        finally:
            search.over = True
        if search.line is not None:
            return search.line
        if not session.is_up:
            raise session.gone(f"find {name!r} on node {self.name!r}")
        raise ExportError(self.name, name)

    def close(self) -> None:
        """End the connection in good order: what was sent before arrives."""
        self._session.close(clock()())

    def end(self, fault: Fault) -> None:
        """Tell those linked with the connection that it is gone. For the node alone."""
        self._device.disconnect(fault)

    def __repr__(self) -> str:
        state = "connected" if self.connected else "gone"
        return f"<Peer {self.name!r} {state}>"
