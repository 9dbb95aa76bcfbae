"""Users' messages and requests across one connection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import msgspec

from backplane import DeviceID, Failed, Fault, LinkDownError, NoConnection

from ._errors import FrameError, NobodyError
from ._exports import Export
from ._faults import open_fault
from ._frames import Call, Cancel, Refuse, Reply, Tell
from ._requests import Asked, Message, Request

if TYPE_CHECKING:
    from ._session import Session

NOBODY = NobodyError(
    "nobody takes requests there: the Device has ended, was revoked, or was exported without "
    "Right.TALK or port",
)
_DESKS = 64
"""Devices that are listened to though nobody asks them just now, at most."""


@final
class Calls:
    """The requests of both sides of one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: dict[int, Asked] = {}
        self.incoming: dict[int, Request] = {}
        """Those of the peer that are not answered yet, by their numbers."""
        self._desks: dict[Export, dict[Request, None]] = {}
        """The same by whom they are for: each thread that answers takes them from there, once."""
        self._of: dict[DeviceID, list[Export]] = {}
        """Those with a desk. As long as they have it, their end is listened for."""
        self._clear_at = _DESKS

    def __len__(self) -> int:
        return len(self._asked) + len(self.incoming)

    # -- ours --------------------------------------------------------------------------

    def ask(
        self, token: bytes, raw: bytes, seconds: float | None, hear: Callable[[], object]
    ) -> Asked:
        """Send a request, from whatever thread.

        Raises:
            ValueError: Nothing can be waited for such a time.
            As ``Outbox.say``.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"an answer cannot be waited for {seconds!r} seconds")
        asked = Asked(self._session, self._session.outbox.next_ref(), hear)
        seconds = None if seconds == math.inf else seconds
        frame = Call(token, asked.ref, seconds, msgspec.Raw(raw))
        self._asked[asked.ref] = asked
        try:
            self._session.outbox.say(frame, alone=len(self._asked) == 1)
        except BaseException:
            self._asked.pop(asked.ref, None)
            raise
        return asked

    def give_up(self, asked: Asked) -> None:
        """Nobody waits for it any longer."""
        if self._asked.pop(asked.ref, None) is not None:
            self._session.outbox.say(Cancel(asked.ref), force=True)

    def on_reply(self, frame: Reply) -> None:
        """An answer; to nobody, if it comes late."""
        asked = self._asked.pop(frame.ref, None)
        if asked is not None:
            asked.finish(bytes(frame.payload), False, None)

    def on_refuse(self, frame: Refuse) -> None:
        """There is none."""
        fault = open_fault(frame.fault)
        asked = self._asked.pop(frame.ref, None)
        if asked is not None:
            asked.finish(None, frame.ended, fault)

    # -- theirs ------------------------------------------------------------------------

    def on_tell(self, frame: Tell) -> None:
        """A message for a Device of ours."""
        session = self._session
        export = session.exports.get(frame.token)
        port = None if export is None else export.open_port
        if port is None:
            session.conduct.strayed(frame.token)
            return
        try:
            port.tell(Message(session, bytes(frame.payload)))
        except Exception as error:  # noqa: BLE001 - the user's code must not end the connection
            session.conduct.failed(export, error)

    def on_call(self, frame: Call) -> None:
        """A request to one."""
        session = self._session
        ref, seconds = frame.ref, frame.seconds
        if ref in self.incoming:
            raise FrameError("a request with a number that is taken")
        if len(self.incoming) >= session.limits.calls:
            raise FrameError(f"more than {session.limits.calls} requests under way")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise FrameError("a request that is waited for an impossible time")
        export = session.exports.get(frame.token)
        if export is None:
            self._refuse_ended(frame, Failed(NOBODY))
            return
        port = export.open_port
        if port is None:
            session.outbox.put(Refuse(ref, False, session.payloads.pack_fault(Failed(NOBODY))))
            return
        desk = self._desk_of(export)
        if desk is None:
            self._refuse_ended(frame, None)
            return
        request = Request(session, ref, export, desk, seconds, bytes(frame.payload))
        self.incoming[ref] = request
        desk[request] = None
        try:
            port.call(request)
        except Exception as error:  # noqa: BLE001 - as above
            session.conduct.failed(export, error)
            request.fail(error)

    def _refuse_ended(self, frame: Call, unknown: Fault | None) -> None:
        """A Device has ended: of what, or ``unknown`` if nobody remembers."""
        known = self._session.exports.fault_of(frame.token)
        fault = unknown if known is None else known[0]
        self._session.outbox.put(Refuse(frame.ref, True, self._session.payloads.pack_fault(fault)))

    def _desk_of(self, export: Export) -> dict[Request, None] | None:
        """Where requests to a Device lie; None if it has ended."""
        desk = self._desks.get(export)
        if desk is None:
            if len(self._desks) >= self._clear_at:
                self._clear_away()
            try:
                self._session.mirror.ear.want(export.line)
            except LinkDownError:
                return None
            desk = self._desks[export] = {}
            self._of.setdefault(export.line.id, []).append(export)
        return desk

    def _clear_away(self) -> None:
        """Take the desks away that nothing lies on. Who is asked again and again keeps his."""
        for export in [export for export, desk in self._desks.items() if not desk]:
            del self._desks[export]
            exports = self._of[export.line.id]
            exports.remove(export)
            if not exports:
                del self._of[export.line.id]
            self._session.mirror.ear.let_go(export.line)
        self._clear_at = max(_DESKS, 2 * len(self._desks))

    def _take(self, request: Request) -> bool:
        """Take a request from its desk, in whatever thread; False if somebody else has."""
        if request.desk.pop(request, self) is self:
            return False
        del self.incoming[request.ref]
        return True

    def answer(self, request: Request, frame: Reply | Refuse) -> bool:
        """Send an answer, from whatever thread: the first one counts."""
        data = self._session.outbox.pack(frame)
        if not self._take(request):
            return False
        self._session.outbox.say_bytes(data, alone=not self.incoming)
        return True

    def on_cancel(self, frame: Cancel) -> None:
        """Nobody waits for the answer."""
        request = self.incoming.get(frame.ref)
        if request is not None and self._take(request):
            self._tell_over(request)

    def _tell_over(self, request: Request) -> None:
        if request.over is not None:
            try:
                request.over()
            except Exception as error:  # noqa: BLE001 - as above
                self._session.conduct.failed(None, error)

    def device_ended(self, device: DeviceID, fault: Fault | None) -> None:
        """A Device of ours has ended: what it was asked has no answer."""
        for export in self._of.pop(device, ()):
            for request in list(self._desks.pop(export)):
                request.refuse(True, fault)

    # -- the end -----------------------------------------------------------------------

    def close(self, node: str) -> None:
        """The connection is gone."""
        while self._asked:  # another thread may be putting one in: then it sees the end itself
            _, asked = self._asked.popitem()
            asked.finish(None, False, NoConnection(node))
        for request in list(self.incoming.values()):
            if self._take(request):
                self._tell_over(request)
        self._desks.clear()
        self._of.clear()
