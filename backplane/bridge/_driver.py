"""What moves a session's bytes: the only place of the bridge that waits for a stream."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any, final

import anyio
from anyio.abc import ByteStream

from backplane.lowlevel import Alarm, Parking, clock, new_parking, set_alarm

from ._errors import AuthError, RefusedError
from ._session import Session
from ._sockets import Prompt

CHUNK = 1 << 16
"""Bytes that are read at once."""
_PIECE = 1 << 15
"""Bytes that are written at once: as soon as a slow peer has taken so many, it lives."""
_LATE = 0.05
"""Seconds by which an alarm may be late without anybody being to blame."""
_TURN = 0.005
"""Seconds in which other tasks have their turn."""

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)

_logger = logging.getLogger("backplane.bridge")


@final
class Driver:
    """Moves the bytes of one session over one stream, until either is over.

    The task that calls ``run`` writes; another one reads. What is said while it
    writes goes out together in the next write. Time is looked at by an alarm,
    since both tasks may stand still.

    A little that has nothing before it is written at once, by whoever is there, if the
    stream is a ``Prompt`` one: what bytes that came are answered with, and a request or
    an answer that is alone.
    """

    def __init__(self, stream: ByteStream, make: Callable[[Any, float], Session]) -> None:
        """Make it, and the session. Nothing moves until ``run`` is called.

        Args:
            stream: Moves the bytes; it is closed at the end.
            make: Makes the session, given whom it is to wake and the time.
        """
        self._stream = stream
        self._now = clock()
        self._alarm: Alarm | None = None
        self._scope = anyio.CancelScope()
        self._parking: Parking | None = None
        self._failed: Exception | None = None
        self._late = False
        self._prompt = stream if isinstance(stream, Prompt) else None
        self.session = make(self, self._now())
        self.session.driver = self

    def wake(self) -> None:
        """There is something to write, or an end to see. From any thread."""
        if self._parking is not None:  # else the first look is still to come
            self._parking.wake()

    def wake_soon(self) -> None:
        """The same, from a finalizer."""
        if self._parking is not None:
            self._parking.wake_soon()

    async def run(self) -> None:
        """Move bytes; returns when the session is down and the stream is closed."""
        session = self.session
        self._parking = new_parking()
        self.look()
        try:
            with self._scope:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self._read)
                    await self._write(self._parking)
                    tg.cancel_scope.cancel()
            if self._failed is not None:
                self._lose(self._failed)
        finally:
            session.eof(why="this node has ended")
            if self._alarm is not None:
                self._alarm.cancel()
            await self._close()

    async def _write(self, parking: Parking) -> None:
        session, stream, now = self.session, self._stream, self._now
        try:
            while data := await self._next(parking):
                for start in range(0, len(data), _PIECE):
                    await stream.send(data[start : start + _PIECE])
                    session.pulse.wrote(now(), start + _PIECE >= len(data))
        except Exception as error:  # noqa: BLE001 - see `_lose`
            # What the peer has said before, faults perhaps, may not have been read yet.
            self._failed = error
            self._scope.deadline = self._now() + session.limits.closing
            await anyio.sleep_forever()

    async def _next(self, parking: Parking) -> bytes:
        """What is to be written next; nothing if nothing will be.

        When all has been said, the peer still has to hear it. If the stream were
        closed while something of the peer's is on its way here, the system would
        take that for an error, and throw away what it has not delivered. So it is
        for the peer to close, and for the session to see when it takes too long.
        """
        session = self.session
        while True:
            data = session.outbox.take()
            if data or session.is_down:
                return data
            await parking.park()

    async def _read(self) -> None:
        session, stream, now = self.session, self._stream, self._now
        try:
            while not session.is_down:
                session.receive(await stream.receive(CHUNK), now())
                if session.outbox.has_any():
                    self._answer()
        except Exception as error:  # noqa: BLE001 - see `_lose`
            self._lose(error)

    def _answer(self) -> None:
        """Write what was said while bytes came; the other task does, if this cannot be at once."""
        session, outbox = self.session, self.session.outbox
        if session.pulse.is_idle and self._can_send(outbox.waiting):
            data = outbox.take()
            if data:
                self._send_at_once(data)
        if outbox.has_any():
            self.wake()

    def write_alone(self, data: bytes) -> bool:
        """Write this without anything else, at once; False if that cannot be. From any thread."""
        if not self._can_send(len(data)):
            return False
        self._send_at_once(data)
        return True

    def _can_send(self, size: int) -> bool:
        return size <= _PIECE and self._prompt is not None and self._prompt.can_send()

    def _send_at_once(self, data: bytes) -> None:
        assert self._prompt is not None
        self._prompt.send_at_once(data)
        self.session.pulse.wrote(self._now())

    def _lose(self, error: Exception) -> None:
        """The stream is of no use any longer; its way to fail must not be the node's."""
        session = self.session
        if isinstance(error, ssl.SSLError) and not session.is_up:
            refused = AuthError(f"the peer refused this node's certificate, perhaps: {error}")
            refused.__cause__ = error
            session.down(refused)
            return
        if not isinstance(error, _BROKEN):
            _logger.error("a connection with %r failed", session.peer_name, exc_info=error)
        session.eof(error)

    async def _close(self) -> None:
        try:
            await anyio.aclose_forcefully(self._stream)
        except Exception as error:
            _logger.error("a connection could not be closed", exc_info=error)

    def look(self) -> None:
        """Have the session look at the time, and set the alarm for the next look.

        If the loop was late, what has come meanwhile is read first, once: no
        loop promises that by itself.
        """
        alarm, self._alarm = self._alarm, None
        session, now = self.session, self._now()
        if alarm is not None and now - alarm.due > _LATE and not self._late:
            self._late = True
            self.hurry(now + _TURN)
            return
        self._late = False
        if not session.is_down:
            due = session.tick(now)
            if not session.is_down:
                self.hurry(due)

    def hurry(self, due: float) -> None:
        """Look at a time, if not before."""
        if self._alarm is not None:
            if self._alarm.due <= due:
                return
            self._alarm.cancel()
        self._alarm = set_alarm(due, self.look)

    def stop(self) -> None:
        """The session is down: move no more bytes, but for a last word to one that came too many.

        Whatever else waits, there is nobody to take it.
        """
        session = self.session
        if isinstance(session.reason, RefusedError):
            self._scope.deadline = self._now() + session.limits.closing
        else:
            self._scope.cancel()
