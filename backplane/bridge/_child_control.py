"""What a parent and its child process say to each other: frames on their private socket.

A frame is four bytes of length (of what follows), one byte of kind, and a body. Only this
module knows that; a session over the same stream would take its place.

The bodies of some are pickles. Elsewhere the bridge has none, since whoever sends a pickle
runs code where it is opened. Here that gives nothing away: the socket has no name and was
inherited by one process, which the parent started from its own code and with its own
rights; the two are one program, as with multiprocessing.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from typing import final

import anyio
from anyio.abc import ByteStream

from ._errors import FrameError

_HEAD = struct.Struct(">I")
MAX_BODY = 2**32 - 2
"""The longest body: that of a result, or of arguments."""


class Kind(enum.IntEnum):
    """What a frame says."""

    BOOT = 1
    """Parent to child, the first: what to run (a pickle)."""
    READY = 2
    """Child to parent, the first: the function was found and will be called."""
    STOP = 3
    """Parent to child: end, please."""
    STARTED = 4
    """Child to parent: ``task_status.started(value)`` (a pickle)."""
    RETURNED = 5
    """Child to parent, the last: the function returned (a pickle)."""
    RAISED = 6
    """Child to parent, the last: the function raised, or was not found (a pickle)."""
    STOPPED = 7
    """Child to parent, the last: the function ended since it was asked to."""
    JOIN = 8
    """Child to parent: let the two nodes connect."""
    ALIVE = 9
    """Child to parent: the function has reported that it is alive."""


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """The bytes of a frame.

    Raises:
        FrameError: The body is too long.
    """
    if len(body) > MAX_BODY:
        raise FrameError(f"{len(body)} bytes are more than can be sent at once, 4 GiB")
    return _HEAD.pack(len(body) + 1) + bytes([kind]) + body


@final
class FrameReader:
    """Puts frames together, from bytes that come in any pieces."""

    __slots__ = ("_bytes", "_frames")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._frames: deque[tuple[Kind, bytes]] = deque()

    def feed(self, data: bytes) -> None:
        """Take in bytes.

        Raises:
            FrameError: They are no frame.
        """
        self._bytes += data
        while len(self._bytes) >= _HEAD.size + 1:
            end = _HEAD.size + _HEAD.unpack_from(self._bytes)[0]
            try:
                kind = Kind(self._bytes[_HEAD.size])
            except ValueError:
                raise FrameError(f"no frame begins with {bytes(self._bytes[:8])!r}") from None
            if end <= _HEAD.size:
                raise FrameError("a frame has no kind")
            if len(self._bytes) < end:
                return
            self._frames.append((kind, bytes(self._bytes[_HEAD.size + 1 : end])))
            del self._bytes[:end]

    def take(self) -> tuple[Kind, bytes] | None:
        """The next frame, if it is complete."""
        return self._frames.popleft() if self._frames else None


@final
class Conversation:
    """Frames over a byte stream. Cancelling ``receive`` loses nothing."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reader = FrameReader()

    async def receive(self) -> tuple[Kind, bytes] | None:
        """The next frame; None if there will be no more.

        Raises:
            FrameError: What came is no frame.
        """
        while (found := self._reader.take()) is None:
            try:
                self._reader.feed(await self._stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return None
        return found

    async def send(self, data: bytes) -> bool:
        """Send frames; False if nobody is there any more."""
        try:
            await self._stream.send(data)
        except anyio.BrokenResourceError:
            return False
        return True
