"""Requests, as the one who is asked has them, and who answers them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, final

from backplane.lowlevel import Alarm, Parking, set_alarm

from ._brief import brief
from ._call_errors import CallTimeoutError, ServerDownError
from ._errors import MailboxFullError
from ._handles import Handle, Pid
from ._mailbox import ALIVE, Owed, lock
from ._process import Process
from ._reasons import ExitReason


@final
class From(Owed, Handle):
    """Whoever made a call: ``reply`` answers it, once; the first wins, from whatever thread."""

    __slots__ = (
        "_caller", "_calls", "_parking", "_sent_at", "begun", "deadline", "error", "hearers",
        "message", "over", "recall", "seconds", "serial", "server", "value",
    )  # fmt: skip

    server: Process
    message: Any
    deadline: float | None
    """When its sender gives up, on the clock of the server's loop."""
    seconds: float | None
    """After how many seconds that is."""
    begun: bool
    """The server has begun to handle it."""
    over: bool
    """It is answered, or nobody waits for the answer any longer."""
    serial: int
    """Orders requests by when they were over."""
    value: Any
    error: BaseException | None
    hearers: list[Callable[[], object]]
    """Are called when it is over, if it is not one alone that waits."""
    recall: Callable[[], object] | None
    """Is called if it is over before the answer has come, while the answer is another node's."""
    _calls: Calls
    """Those that the server owes, and this among them until somebody takes it out to end it."""
    _parking: Parking | None
    _sent_at: float

    def __init__(
        self,
        server: Process,
        calls: Calls,
        message: Any,
        caller: Process | None,
        parking: Parking | None,
        deadline: float | None,
        seconds: float | None,
    ) -> None:
        self.server = server
        self._calls = calls
        self.message = message
        self.deadline = deadline
        self.seconds = seconds
        self.over = self.begun = False
        self.error = self.recall = None
        self._caller = caller
        self._parking = parking

    @property
    def sender(self) -> Pid | None:
        """The process that called, if one did."""
        return None if self._caller is None else self._caller.pid

    def deadline_here(self, now: Callable[[], float]) -> float | None:
        """When its sender gives up, on the clock of the server's loop, of which this is called."""
        if self.deadline is None and self.seconds is not None:
            return now() + self.seconds - (time.monotonic() - self._sent_at)
        return self.deadline

    def is_late(self, now: Callable[[], float]) -> bool:
        """End it if its time is over; whether it was."""
        until = self.deadline_here(now)
        if until is None or until > now():
            return False
        self.expire()
        return True

    def reply(self, value: Any) -> bool:
        """Answer; False if it was answered already, or nobody waits for it any longer."""
        calls = self._calls
        if calls.pop(self, None) is None:
            return False
        on_reply = calls.on_reply  # looked at once: another thread may reply
        if on_reply is not None:
            on_reply(self, value)
        self._finish(value, None)
        return True

    def answer(self, value: Any) -> None:
        """Answer, unseen by those that look on."""
        if self._calls.pop(self, None) is not None:
            parking = self._parking
            if parking is None:
                self._finish(value, None)
            else:  # as `_finish`, at less cost: by far the most end here
                self.value = value
                self.over = True
                self._parking = None
                parking.wake()

    def fail(self, error: BaseException) -> bool:
        """Have the call raise; False as for ``reply``."""
        if self._calls.pop(self, None) is None:
            return False
        self._finish(None, error)
        return True

    def expire(self) -> None:
        """Nobody has answered in time."""
        self.fail(CallTimeoutError(self.server.pid, self.message, self.seconds or 0.0))

    def server_ended(self, reason: ExitReason) -> None:
        """The server has ended without an answer."""
        self.fail(ServerDownError(self.server.pid, self.message, reason, self.begun))

    def dropped(self, error: MailboxFullError) -> None:
        """A full mailbox had no room for it."""
        self.fail(error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self.value = value
        self.error = error
        self.serial = next(_serials)
        self.over = True
        recall, self.recall = self.recall, None
        if recall is not None:
            recall()
        parking, self._parking = self._parking, None
        if parking is not None:
            parking.wake()
        else:
            for hear in list(self.hearers):
                hear()

    def abandon(self) -> None:
        """Nobody waits for the answer any longer."""
        if not self.over:
            if self._parking is not None:  # this one alone has waited
                self._parking = None
                self.hearers = []
            self.expire()

    def __repr__(self) -> str:
        return f"<From {self.sender!r}: {brief(self.message)}>"


@final
class Calls(dict[From, bool]):
    """The requests that a server owes an answer, and what it takes to end them in time.

    One alarm serves all: it rings for the earliest, and most are answered long
    before it does.
    """

    __slots__ = ("_alarm", "_due", "kind", "now", "on_reply", "parkings", "thread")

    kind: type | None
    """The server's class, once it serves; None for one of another node."""

    now: Callable[[], float]
    """The clock of the server's loop, once it serves."""
    on_reply: Callable[[From, Any], object] | None
    """Is told each answer, while somebody looks on."""
    thread: int
    """That of the server's loop; 0 before it serves."""
    parkings: list[Parking]
    """Places to sleep, of that loop, that callers have left."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = None
        self.on_reply = None
        self.thread = 0
        self.parkings = []
        self._due = math.inf
        self._alarm: Alarm | None = None

    @staticmethod
    def of(process: Process) -> Calls | None:
        """Those of a process; None if it has ended."""
        calls: Calls | None = process.calls
        if calls is None:
            with lock:
                if process.calls is None and process.reason is ALIVE:
                    process.calls = Calls()
                calls = process.calls
        return calls

    def serve(self, kind: type | None, now: Callable[[], float], thread: int) -> None:
        """From now on they are served in a thread, by a server of some class."""
        self.kind = kind
        self.now = now
        self.thread = thread

    def watch(self, deadline: float) -> None:
        """End what is overdue then, which is earlier than what this has waited for."""
        self.close()
        self._due = deadline
        self._alarm = set_alarm(deadline, self._ring)

    def _ring(self) -> None:
        self._alarm, self._due = None, math.inf
        now, earliest = self.now(), math.inf
        for request in list(self):
            deadline = request.deadline
            if deadline is not None:
                if deadline <= now:
                    request.expire()
                else:
                    earliest = min(earliest, deadline)
        if earliest < math.inf:
            self.watch(earliest)

    def close(self) -> None:
        """Set no alarm any longer; one of another thread rings in vain."""
        if self._alarm is not None and self.thread == get_ident():
            self._alarm.cancel()
            self._alarm = None


_serials = itertools.count()
