"""What hears of the ends of a node's own Devices, for one of its peers."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, final

from backplane import Device, DeviceID, Line, LinkMode
from backplane.lowlevel import Outpost


class Waiter(Protocol):
    """Whoever is to look at what has happened."""

    def wake(self) -> None:
        """Look."""

    def wake_soon(self) -> None:
        """The same, from a finalizer."""


@final
class Ear:
    """Hears of the ends of Devices of ours, as long as anybody wants to know."""

    outpost: Outpost

    def __init__(self, events: deque[Any], waiter: Waiter) -> None:
        self.outpost, self._line = Outpost.open(Device().id, None, events, waiter)
        self._wanted: dict[DeviceID, int] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def want(self, line: Line) -> None:
        """One more wants to know.

        Raises:
            LinkDownError: It has ended already.
        """
        if line.id not in self._wanted:
            self._line.link(line, LinkMode.MONITOR)
        self._wanted[line.id] = self._wanted.get(line.id, 0) + 1

    def let_go(self, line: Line) -> None:
        """One does not any longer."""
        left = self._wanted.get(line.id, 0) - 1
        if left > 0:
            self._wanted[line.id] = left
        elif self._wanted.pop(line.id, None) is not None:
            self._line.unlink(line, LinkMode.MONITOR)

    def heard(self, device: DeviceID) -> None:
        """It has ended: there is nothing to let go of any longer."""
        self._wanted.pop(device, None)

    def close(self) -> None:
        """Hear of nobody any longer."""
        self._wanted.clear()
        self.outpost.disconnect(None)
