"""Datagrams as the byte stream that a node takes: the only place that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, final

import anyio
from anyio.abc import ByteStream

from backplane.lowlevel import checkpoint, new_parking

from ._datagrams import Datagrams, ForeignError
from ._errors import FrameError

_OVERHEAD = 128
"""What a datagram that waits takes of the memory, beside its bytes."""


@final
class DatagramStream(ByteStream):
    """A stream over datagrams, for one loop; ``feed`` and ``lose`` are for any thread.

    A datagram that is lost, repeated or out of its order breaks it at both
    ends. One task may send and one may receive at a time.
    """

    def __init__(
        self,
        datagrams: Datagrams,
        post: Callable[[bytes], bool],
        *,
        most_waiting: int,
        on_over: Callable[[], object],
        on_foreign: Callable[[], object] = lambda: None,
        attributes: Mapping[Any, Callable[[], Any]] | None = None,
    ) -> None:
        """Make the stream of one end.

        Args:
            datagrams: What they are made of; it belongs to the stream from now on.
            post: Has a datagram carried; False if it is surely lost.
            most_waiting: Bytes of datagrams that may wait to be looked at.
            on_over: Called once, when nothing more is to be fed.
            on_foreign: Called for each datagram that is not the peer's.
            attributes: What the stream tells of itself.
        """
        self._datagrams = datagrams
        self._post = post
        self._most_waiting = most_waiting
        self._on_over = on_over
        self._on_foreign = on_foreign
        self._attributes = attributes or {}
        self._coming: deque[bytes] = deque()
        # Each is changed by one thread alone, so their difference needs no lock.
        self._fed = self._drained = 0
        self._ready: deque[bytes] = deque()
        self._start = 0
        """How much of the first that is ready was received."""
        self._receiver = new_parking()
        self._sender = new_parking()
        self._sender_waits = False
        self._lost: str | None = None
        self._error: BaseException | None = None
        self._closed = False

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What the session is bound to, and where it leads."""
        return self._attributes

    # -- from any thread -----------------------------------------------------------------

    def feed(self, datagram: bytes) -> bool:
        """A datagram has come; False if it cannot be kept, which will break the stream."""
        size = len(datagram) + _OVERHEAD
        if self._fed - self._drained + size > self._most_waiting:
            return False
        self._fed += size
        self._coming.append(datagram)
        self._wake()
        return True

    def lose(self, why: str) -> None:
        """Nothing can be carried any longer."""
        self._lost = why
        self._wake()

    def _wake(self) -> None:
        self._receiver.wake()
        if self._sender_waits:
            self._sender.wake()

    # -- in its loop ---------------------------------------------------------------------

    def _look(self) -> None:
        """Take in what has come, and find out whether it is broken."""
        coming = self._coming
        while coming and self._error is None:
            datagram = coming.popleft()
            self._drained += len(datagram) + _OVERHEAD
            try:
                data = self._datagrams.take(datagram)
            except ForeignError:
                self._on_foreign()
            except FrameError as error:
                self._break(error)
            else:
                if data:
                    self._ready.append(data)
        if self._lost is not None and self._error is None:
            self._break(ConnectionError(self._lost))

    def _break(self, error: BaseException) -> None:
        self._error = error
        self._end()
        self._wake()

    def _end(self) -> None:
        """Tell the peer, if it does not know; and be fed no more."""
        if not self._datagrams.said_last:
            self._post(self._datagrams.pack(last=True))
        self._on_over()

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._error is not None:
            raise anyio.BrokenResourceError from self._error

    def _tell(self, datagram: bytes) -> None:
        if not self._post(datagram) and self._error is None:
            self._break(ConnectionError("nothing more can wait to be carried"))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for bytes. What is broken delivers none that came before."""
        await checkpoint()
        while True:
            if not self._closed:
                self._look()
            self._check()
            if self._ready:
                return self._receive(max_bytes)
            if self._datagrams.ended:
                raise anyio.EndOfStream
            await self._receiver.park()

    def _receive(self, max_bytes: int) -> bytes:
        first, start = self._ready[0], self._start
        data = first[start : start + max_bytes]
        self._start += len(data)
        if self._start == len(first):
            self._ready.popleft()
            self._start = 0
            if self._datagrams.free(first):
                self._tell(self._datagrams.pack())
        return data

    async def send(self, item: bytes) -> None:
        """Have bytes carried; wait while the peer takes none.

        Cancelled, it has sent some, and the stream is of no more use.
        """
        await checkpoint()
        start = 0
        while start < len(item):
            room = await self._wait_for_room()
            self._tell(self._datagrams.pack(item[start : start + room]))
            start += room
        self._check()

    async def _wait_for_room(self) -> int:
        self._sender_waits = True  # before the look: what comes after it wakes this task
        try:
            while True:
                if not self._closed:
                    self._look()
                self._check()
                if self._datagrams.said_last:
                    raise anyio.ClosedResourceError
                if room := self._datagrams.room:
                    return room
                await self._sender.park()
        finally:
            self._sender_waits = False

    async def send_eof(self) -> None:
        """Say that no more bytes come."""
        self._check()
        if not self._datagrams.said_last:
            self._tell(self._datagrams.pack(last=True))
        await checkpoint()

    async def aclose(self) -> None:
        """Close it. The peer hears of that at once, if nothing is lost."""
        if not self._closed:
            if self._error is None:
                self._end()
            self._closed = True
            self._wake()
        await checkpoint()
