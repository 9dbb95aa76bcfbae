"""How much a node takes: every limit of the bridge, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, final

LEAST_FRAME: Final = 4096
"""Bytes that each peer takes: so whatever the bridge itself has to say fits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a node allows others, and itself. All are finite; a breach ends the connection.

    Seconds and bytes. A frame's limit is also one of memory: a hostile frame can
    become some 75 times its size in objects once it is opened.
    """

    handshake: float = 5.0
    """Seconds from the first byte until a connection is up: who says nothing is no longer a
    pending one then."""
    closing: float = 2.0
    """Seconds for the last bytes of a connection that is closed in good order: a peer that reads
    nothing would else hold up the end of this node."""
    pending_handshakes: int = 64
    """Connections that have not proved themselves yet: each costs a descriptor and some memory,
    and anybody can make one. One more is closed at once."""
    pending_per_source: int = 8
    """Of these, from one address (over a Unix socket, from one process): so that one stranger does
    not keep all others out."""
    sessions: int = 256
    """Connections that are up: what one may take of this node, all may together. One more is
    refused with a ``FullError``."""
    frame: int = 1 << 20
    """Bytes of one frame, either way: it is held in memory as a whole, and whatever comes after it
    waits, be it a sign of life. What is larger is to be sent in pieces."""
    frame_before_auth: int = 4096
    """Bytes of one frame of a peer that has not proved itself: so much memory anybody gets."""
    outbox: int = 1 << 20
    """Bytes that wait to be written to one peer; beyond, ``tell`` and ``call`` raise ``BusyError``,
    and ``wait_tell`` waits. It is also how much can be said at once, before the loop has a turn."""
    outbox_hard: int = 8 << 20
    """Bytes that wait to be written, what links and answers cause among them, which cannot wait:
    beyond, the connection is lost, for the peer is too slow."""
    links: int = 100_000
    """Devices of this node that one peer watches, and pairs that it has linked. What this node
    holds of the peer's Devices does not count."""
    calls: int = 10_000
    """Calls of one peer that are not answered yet: each holds a place in a table, however long its
    answer takes."""
    text: int = 4096
    """Characters of an exception's text, and of a traceback 16 times as many: a fault goes to each
    that is linked, and has to fit into a frame."""
    path: int = 64
    """Steps of a cascade that are told, for the same reason; the first cause always is."""
    unknown: int = 1000
    """Messages a second for Devices that are not there: some are on their way when one ends; who
    sends more does not listen, or guesses."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"Limits({each.name}={value!r}): must be positive and finite")
        if self.frame < LEAST_FRAME:
            raise ValueError(f"Limits(frame={self.frame}): must be at least {LEAST_FRAME}")
        if self.outbox_hard < self.outbox + self.frame:
            raise ValueError(
                f"Limits(outbox_hard={self.outbox_hard}): must hold outbox and a frame, "
                f"so be at least {self.outbox + self.frame}"
            )
