"""A stream of bytes made of datagrams, without anything that carries them.

What carries datagrams may lose them, repeat them or change their order: a
messaging engine does when a consumer is slow, or when it fails over. A datagram
has a header: whose it is and in which direction it goes, its number, and how
much of what came the other way was taken. Any one that is not the next breaks
the stream, so a loss is a fault and never a hole that nobody sees. Who is slow
to take bytes is sent no more than a window of them.

A datagram of another connection, or one that is not sealed with its keys, is
foreign: it changes nothing.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol, final

from ._errors import FrameError

MOST: Final = 1 << 19
"""Bytes of a datagram, at most."""
WINDOW: Final = 1 << 20
"""Bytes that may be under way in one direction, by default."""
SESSION: Final = 16
"""Bytes of a connection's identity."""

_HEADER = struct.Struct(">B16sQQ")
_DIALLER, _ANSWERER = 0xB4, 0xB5
_LAST: Final = 0x02
"""Of the first byte: no bytes come after those of this one."""
_COST: Final = 64
"""What a datagram costs of the window beside its bytes: more than its header and seal."""


class ForeignError(FrameError):
    """A datagram is not of this connection: leave it."""


class Seal(Protocol):
    """Keeps what datagrams carry from being read, and datagrams from being made by others."""

    overhead: int

    def seal(self, number: int, header: bytes, data: bytes) -> bytes:
        """What is to be sent after the header."""
        ...

    def unseal(self, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """What was sealed; None if it is not of the peer's making."""
        ...


@final
class NoSeal:
    """Carries everything as it is."""

    overhead = 0

    def seal(self, number: int, header: bytes, data: bytes) -> bytes:
        """The same."""
        return data

    def unseal(self, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """The same."""
        return sealed


def session_of(datagram: bytes) -> bytes | None:
    """Which connection a datagram says that it is of; None if it is none."""
    if len(datagram) < _HEADER.size or not _DIALLER <= datagram[0] <= _ANSWERER + _LAST:
        return None
    return datagram[1 : 1 + SESSION]


@final
class Datagrams:
    """One connection's datagrams, of both directions, at one of its ends.

    Its methods are for one thread. After a `FrameError` that is no
    `ForeignError` it is of no more use.

    Example:
        >>> here = Datagrams(bytes(16), dialled=True)
        >>> there = Datagrams(bytes(16), dialled=False)
        >>> first, second = here.pack(b"one"), here.pack(b"two")
        >>> there.take(first)
        b'one'
        >>> there.take(here.pack(b"three"))
        Traceback (most recent call last):
        ...
        backplane.bridge.FrameError: datagram 2 came instead of 1
    """

    def __init__(
        self,
        session: bytes,
        *,
        dialled: bool,
        seal: Seal | None = None,
        window: int = WINDOW,
        peer_window: int = WINDOW,
        most: int = MOST,
    ) -> None:
        """Make one end.

        Args:
            session: The same at both ends, and never again.
            dialled: Whether this is the end that has begun.
            seal: Made of keys that only the two ends have.
            window: How much the peer may send before this end has taken it.
            peer_window: How much this end may.
            most: Bytes of a datagram that is to be sent.
        """
        self.session: Final = session
        self._seal = seal or NoSeal()
        self._mine, self._theirs = (_DIALLER, _ANSWERER) if dialled else (_ANSWERER, _DIALLER)
        self._chunk = min(most, MOST) - _HEADER.size - self._seal.overhead
        if self._chunk < 1:
            raise ValueError(f"a datagram of {most} bytes has no room for any of a stream")
        # -- what this end sends
        self._number = 0
        self._peer_window = peer_window
        self._sent = self._acknowledged = 0
        self.said_last = False
        """No more bytes are to be sent."""
        # -- what comes
        self._expected = 0
        self._window = window
        self._came = self._taken = self._told = 0
        self.ended = False
        """The peer has sent its last bytes."""

    # -- sending -------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that the next datagram may carry now."""
        left = self._peer_window - (self._sent - self._acknowledged) - _COST
        return max(0, min(left, self._chunk))

    def pack(self, data: bytes = b"", *, last: bool = False) -> bytes:
        """The next datagram. It says also how much was taken.

        Args:
            data: No more than there is room for.
            last: No more bytes will be sent. What was taken may still be told.
        """
        assert len(data) <= self.room or not data
        assert not (self.said_last and (data or last))
        if data:
            self._sent += len(data) + _COST
        self._told = self._taken
        self.said_last = self.said_last or last
        kind = self._mine | (_LAST if last else 0)
        header = _HEADER.pack(kind, self.session, self._number, self._taken)
        datagram = header + self._seal.seal(self._number, header, data)
        self._number += 1
        return datagram

    # -- receiving -----------------------------------------------------------------------

    def take(self, datagram: bytes) -> bytes:
        """The bytes in a datagram that has come; perhaps none.

        Raises:
            ForeignError: It is not the peer's. Nothing has changed.
            FrameError: It is the peer's, but not the next.
        """
        if session_of(datagram) != self.session or datagram[0] & ~_LAST != self._theirs:
            raise ForeignError("a datagram of another connection")
        kind, _, number, acknowledged = _HEADER.unpack_from(datagram)
        header, body = datagram[: _HEADER.size], datagram[_HEADER.size :]
        data = self._seal.unseal(number, header, body)
        if data is None:
            raise ForeignError("a datagram that was not sealed by the peer")
        if number != self._expected:
            raise FrameError(f"datagram {number} came instead of {self._expected}")
        if self.ended and (data or kind & _LAST):
            raise FrameError("bytes came after the last")
        if not self._acknowledged <= acknowledged <= self._sent:
            raise FrameError(f"the peer has taken {acknowledged} of {self._sent} bytes")
        self._expected += 1
        self._acknowledged = acknowledged
        self.ended = self.ended or bool(kind & _LAST)
        if data:
            self._came += len(data) + _COST
            if self._came - self._taken > self._window:
                raise FrameError(f"the peer sends more than the window of {self._window} bytes")
        return data

    def free(self, data: bytes) -> bool:
        """What a datagram carried has been taken; tell whether the peer is to hear of it now."""
        self._taken += len(data) + _COST
        return self._taken - self._told >= self._window // 4
