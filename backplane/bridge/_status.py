"""What a node tells of itself."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final


@final
@dataclass(frozen=True, slots=True)
class Retry:
    """How long to wait between attempts to connect: random waits, which grow."""

    initial: float = 0.1
    maximum: float = 30.0
    attempts: float = float("inf")

    def __post_init__(self) -> None:
        if not (self.initial > 0 and self.maximum > 0):
            raise ValueError(f"{self!r}: the waits must be positive")

    def delays(self) -> Iterable[float]:
        """The seconds to wait after each attempt that has failed."""
        bound, left = self.initial, self.attempts
        while left > 1:
            left -= 1
            bound = min(bound, self.maximum)
            yield random.uniform(0, bound)
            bound *= 2


@final
@dataclass(frozen=True, slots=True)
class NodeUp:
    """There is a connection with a node."""

    name: str
    incarnation: bytes


@final
@dataclass(frozen=True, slots=True)
class NodeDown:
    """It is gone: all links across it have fired. The node itself may live."""

    name: str
    incarnation: bytes
    reason: BaseException | None
    """Why, for the log; its text says it all.

    * ``NotConnectedError``: one of the two has closed it or ended, or the stream broke, for
      which the system's ``OSError`` is the ``__cause__``.
    * ``TimeoutError``: the peer was silent for ``dead_after``, took nothing for as long, or did
      not answer when it had to show that it lives.
    * ``BusyError``: it took too little; more than ``Limits(outbox_hard=...)`` waited.
    * ``FrameError``: it said what has no place here, or broke a limit.
    * ``DuplicateError``: both have dialled, and the other connection stays.
    """


NodeEvent: TypeAlias = NodeUp | NodeDown


@final
@dataclass(frozen=True, slots=True)
class PeerStats:
    """What a connection has done."""

    name: str
    source: str
    bytes_in: int
    bytes_out: int
    frames_in: int
    frames_out: int
    waiting: int
    """Bytes that are still to be written."""
    links: int
    """Devices of either side that the other one knows."""
    calls: int
    """Requests under way, either way."""
    unheard: int
    """Messages that came for nobody: their Device has no port, or may not be talked to, or is
    not there. What has crossed with its end is not counted."""


@final
@dataclass(frozen=True, slots=True)
class NodeStats:
    """What a node has, and what it has refused."""

    peers: tuple[PeerStats, ...]
    handshakes: int
    """Connections that have not proved themselves yet."""
    exports: int
    """Devices that tokens lead to."""
    refused: Mapping[str, int]
    """How many connections ended before they were up, by the kind of reason."""
