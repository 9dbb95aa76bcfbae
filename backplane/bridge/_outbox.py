"""What is to be written to a peer, whoever says it, in whatever thread.

What the node itself has to say is ``put``, in its loop. What users say, in whatever
thread, goes into one queue with what happens at outposts, and the loop ``pump``s
that: so what somebody says never overtakes what was done before, the end of a
Device for example. Only a frame that is alone may skip the queue.

Whoever writes is woken once for all that waits. He begins to look by taking back
that he was woken; so he is woken again for what comes while he looks, which he
may have missed.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, final

import msgspec

from ._errors import BusyError, EncodeError
from ._frames import Frame, WireFault, encode
from ._room import Room
from ._states import State

if TYPE_CHECKING:
    from ._ear import Waiter
    from ._session import Session


@final
class Outbox:
    """Packs frames, keeps them until they are written, and limits how much that is.

    ``say``, ``say_bytes``, ``pack``, ``next_ref`` and ``room`` are for every thread, all
    else for the node's loop.
    """

    __slots__ = (
        "_crowded", "_last_ref", "_limits", "_lock", "_out", "_pulse", "_session", "_urgent",
        "_waiter", "bytes_out", "events", "frames_out", "is_busy", "is_woken", "peer_frame",
        "room", "waiting",
    )  # fmt: skip

    events: deque[Any]
    """What has happened at outposts, and what was said, from whatever thread."""
    waiting: int
    """Bytes that were said and are not written yet."""
    room: Room
    """Where users wait until there are fewer of these."""
    peer_frame: int
    """How large a frame the peer takes."""
    is_woken: bool
    """Whoever writes is to look already, or looks next by himself, as when bytes have come."""
    is_busy: bool
    """What has come, or was said, is being looked at: nothing skips the queue meanwhile."""
    bytes_out: int
    frames_out: int

    def __init__(self, session: Session, waiter: Waiter) -> None:
        """Make it, empty; ``waiter`` is whoever writes."""
        self._session = session
        self._limits = session.limits
        self._pulse = session.pulse
        self._waiter = waiter
        self._out: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._last_ref = 0
        self._crowded = False
        """What was written last was said by several, or by one who says much."""
        self.events = deque()
        self.waiting = 0
        self.room = Room(self._is_free)
        self.peer_frame = session.limits.frame_before_auth
        self.is_woken = self.is_busy = False
        self.bytes_out = self.frames_out = 0

    # -- what is said ----------------------------------------------------------------------

    def put(self, frame: Frame, urgent: bool = False) -> None:
        """Have a frame written. In the node's loop."""
        session = self._session
        if session.state is State.DOWN:
            return
        data = self.pack(frame)
        with self._lock:
            self.waiting += len(data)
        (self._urgent if urgent else self._out).append(data)
        if self.waiting > self._limits.outbox_hard:
            session.down(self._busy("outbox_hard"))
        elif not self.is_woken:
            self.wake()

    def say(self, frame: Frame, force: bool = False, alone: bool = False) -> None:
        """Have a user's frame written, from whatever thread.

        Args:
            frame: What to write.
            force: It counts as nothing that much waits already.
            alone: Nothing else is likely to be said soon, so it need not wait for that.

        Raises:
            BusyError: Too much waits already.
            NotConnectedError: The session is down, or being closed.
            EncodeError: It is too large.
        """
        session = self._session
        if session.state is not State.UP or session.finished:
            if force:
                return
            raise session.gone(f"send to node {session.peer_name!r}")
        data = self.pack(frame)
        if not force and self.waiting > self._limits.outbox:
            raise self._busy("outbox")
        self.say_bytes(data, alone)

    def _busy(self, limit: str) -> BusyError:
        bound = f"Limits({limit}={getattr(self._limits, limit)})"
        return BusyError(self._session.peer_name, self.waiting, bound)

    def say_bytes(self, data: bytes, alone: bool = False) -> None:
        """Have a frame's bytes written, whatever else waits."""
        if alone and self._write_alone(data):
            return
        with self._lock:
            self.waiting += len(data)
        self.events.append(data)
        if not self.is_woken:
            self.wake()

    def _write_alone(self, data: bytes) -> bool:
        """Write something at once, if it overtakes nothing, and nobody is at work here."""
        if self.waiting or self.events or self._crowded or self.is_busy or not self._pulse.is_idle:
            return False
        driver = self._session.driver
        if driver is None or not driver.write_alone(data):
            return False
        self.bytes_out += len(data)
        self.frames_out += 1
        return True

    def wake(self) -> None:
        """Have whoever writes look."""
        self.is_woken = True
        self._waiter.wake()

    def _is_free(self) -> bool:
        """Whether a user's frame would be taken now, or none ever will be."""
        session = self._session
        return self.waiting <= self._limits.outbox or not session.is_up or session.finished

    def next_ref(self) -> int:
        """A number that no other request of this side has, in whatever thread."""
        with self._lock:
            self._last_ref += 1
            return self._last_ref

    def pack(self, frame: Frame) -> bytes:
        """The bytes of a frame for this peer.

        Raises:
            EncodeError: It is too large, though not because of a fault in it.
        """
        try:
            return encode(frame, self.peer_frame)
        except EncodeError:
            less = _shorten(frame)
            if less is frame:
                raise
            return encode(less, self.peer_frame)

    # -- what is written -------------------------------------------------------------------

    def pump(self) -> None:
        """Take in what has happened at outposts, and what was said."""
        session, events = self._session, self.events
        busy, self.is_busy = self.is_busy, True
        while events:
            event = events.popleft()
            if session.state is State.DOWN:
                continue
            if type(event) is bytes:
                self._out.append(event)
            else:
                session.note(event)
        self.is_busy = busy
        if self.waiting > self._limits.outbox_hard:
            session.down(self._busy("outbox_hard"))

    def take(self, most: int = 1 << 18) -> bytes:
        """Some bytes to write; empty if there are none."""
        self.is_woken = False  # first: what is said from now on has it look again
        self.pump()
        parts: list[bytes] = []
        size = 0
        while size < most and (self._urgent or self._out):
            part = (self._urgent or self._out).popleft()
            parts.append(part)
            size += len(part)
        if parts:
            with self._lock:
                self.waiting -= size
            self._crowded = len(parts) > 1
            self.bytes_out += size
            self.frames_out += len(parts)
            self._pulse.writing()
            if self.room:
                self.room.open()
        return b"".join(parts)

    def has_any(self) -> bool:
        """Whether there may be some."""
        self.is_woken = False  # first, as above
        return bool(self.events or self._out or self._urgent)

    # -- the end ---------------------------------------------------------------------------

    def end(self, last_word: bool) -> None:
        """Write nothing more, or only what is packed already, if that is a ``last_word``."""
        if not last_word:
            self._out.clear()
            self._urgent.clear()
        with self._lock:
            self.waiting = sum(map(len, self._out)) + sum(map(len, self._urgent))

    def close(self) -> None:
        """Take nothing in any longer; nobody waits for room."""
        self.events.clear()
        self.room.close()


def _shorten(frame: Frame) -> Frame:
    """The same, with less of the fault in it."""
    fault = getattr(frame, "fault", None)
    if isinstance(fault, WireFault):
        less = WireFault(fault.kind, fault.type_name[:100], fault.text[:100], node=fault.node)
        return msgspec.structs.replace(frame, fault=less)
    return frame
