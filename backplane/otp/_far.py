"""Processes on other nodes: each has a stand-in here, which is a process to all others.

What is done with it is said to the far process's port, in an envelope, a list:

====== ============================== ==================================================
kind   then                           means
====== ============================== ==================================================
m      message                        put it into the mailbox
c, C   message; name, args, kwargs    a cast; one of a marked method
x      sender, reason                 an exit signal
s      reason                         stop, after what was said before
d                                     drain
l, u   pid                            that process links with this one; takes it back
====== ============================== ==================================================

A request is ``k`` with a message, ``K`` with a method's name, args and kwargs, or
``q`` with a message that waits for room in the mailbox. The cluster there is asked to
announce the reason of the end, just before the Device ends, on the same connection:
so whoever hears of the end finds the reason there.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast, final

import anyio
import msgspec

from backplane import Device, Failed, Fault, Line, LinkError, LinkMode, NoConnection
from backplane.bridge import (
    Asked,
    BusyError,
    EncodeError,
    EndedError,
    NotAllowedError,
    NotConnectedError,
    RemoteError,
    ask,
    tell,
)
from backplane.bridge import call as ask_and_wait
from backplane.bridge._talk import check
from backplane.lowlevel import Heard, Outpost, checkpoint, new_parking

from ._brief import brief
from ._errors import MailboxFullError, ProcessError
from ._from import From
from ._handles import Pid
from ._mailbox import ALIVE, lock
from ._messages import Cast, Method, StopRequest
from ._methods import Shape
from ._process import Process
from ._reasons import NOCONNECTION, NOPROC, ExitReason

if TYPE_CHECKING:
    from ._pids import Pids


FULL: Final = "backplane.otp.Full"
"""In the place of a class's name: the mailbox is full, and its capacity is the text."""
UNTOUCHED: Final = Failed(RemoteError("backplane.otp.Untouched", ""))
"""The process has ended, and had not begun with the request."""
_NOBODY: Final = "backplane.bridge.NobodyError"
_BUSY: Final = 0.005
"""Seconds until it is looked again whether a peer is still slow."""

_logger = logging.getLogger("backplane.otp")


class FarProcessError(ProcessError):
    """Something that can be done only on the node where a process lives: ``system`` requests."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} lives on another node: do this there"


class FarBusyError(MailboxFullError):
    """The way to another node is full. The message was not taken; see ``wait_send``.

    That node is slow, or the network; or much was sent at once, faster than the loop of the
    own node has written it. As many bytes may wait as its ``Limits(outbox=...)`` say.
    """

    def __str__(self) -> str:
        return (
            f"{self.capacity} bytes wait to be sent to the node of {brief(self.target)}, more "
            "than Limits(outbox=...) of this node: wait_send waits"
        )


@final
class Parcel:
    """A message for many, encoded already."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = msgspec.Raw(raw)


FarProcessError.__module__ = FarBusyError.__module__ = "backplane.otp.cluster"


@final
class Ear:
    """Has a function called with the fault as soon as a Device ends, in whatever thread."""

    __slots__ = ("_hear",)

    def __init__(self, hear: Callable[[Fault | None], object]) -> None:
        self._hear = hear

    def listen(self, line: Line) -> Line:
        """Begin; it ends when what is returned is unlinked from the line.

        Raises:
            LinkError: The Device has ended.
        """
        _, ear = Outpost.open(line.id, None, cast("Any", self), self)
        ear.link(line, LinkMode.MONITOR)
        return ear

    def append(self, event: object) -> None:
        """For the outpost: take what has happened."""
        if isinstance(event, Heard):
            try:
                self._hear(event.message.fault)
            except Exception:  # it would keep others from hearing
                _logger.exception("the end of %r was not heard", event.message.sender)

    def wake(self) -> None:
        """For the outpost: all is done already."""

    wake_soon = wake


@final
class FarProcess(Process):
    """A process on another node, as far as this one needs it."""

    __slots__ = ("_ear", "_line", "_pids", "address", "lost", "node")

    is_local = False

    address: bytes
    """What its pid is on the wire."""
    lost: bool
    """The way to it broke; it may live, and may be reached again."""
    node: str
    """Where it lives."""

    def __init__(self, pids: Pids, line: Line, address: bytes, node: str) -> None:
        self._ear: Line | None = None
        super().__init__(cast("Device", line))  # what is asked of it, a Line can do
        self._pids = pids
        self._line = line
        self.address = address
        self.node = node
        self.lost = False

    def __del__(self) -> None:
        if self._ear is not None:
            self._ear.unlink(self._line, LinkMode.MONITOR)

    # -- its end -----------------------------------------------------------------------

    def watch(self) -> bool:
        """Hear of its end; False if it is lost already."""
        me = weakref.ref(self)

        def hear(fault: Fault | None) -> None:
            far = me()
            if far is not None:
                far._hear(fault)

        try:
            self._ear = Ear(hear).listen(self._line)
        except LinkError:
            self.lose()
        return self.reason is ALIVE

    def _hear(self, fault: Fault | None) -> None:
        if isinstance(fault, NoConnection) and fault.node == self.node:
            self.lose()
        else:
            self.end(NOPROC)  # it had ended before it was watched; else it has been announced

    def lose(self) -> None:
        """The way to it is broken."""
        if self.reason is ALIVE:
            self.lost = True
            self.end(NOCONNECTION)

    def regain(self, line: Line) -> bool:
        """There may be a new way to it; whether there is. If it has ended, that is heard next."""
        with lock:
            # By the same Line it was the cluster over there that was lost, not the connection.
            if not self.lost or self.reason is ALIVE or line == self._line:
                return False
            self._line = line
            self.device = cast("Device", line)
            self.open = True
            self.reason = ALIVE
            self.lost = False
        return self.watch()

    @property
    def absence(self) -> ExitReason:
        # One that lives was lost, or is being lost, when it was asked for.
        return NOCONNECTION if self.lost or self.reason is ALIVE else NOPROC

    async def wait(self) -> ExitReason:
        await checkpoint()
        told: list[ExitReason] = []  # it may live again when this is read
        parking = new_parking()

        def hear(reason: ExitReason) -> None:
            told.append(reason)
            parking.wake()

        with lock:
            reason = self.reason
            self.announce(hear)
        if reason is not ALIVE:
            return reason
        try:
            while not told:
                await parking.park()
        finally:
            (self._heralds or {}).pop(hear, None)
        return told[0]

    def line(self) -> Line:
        return self._line

    def _disconnect(self, fault: Fault | None) -> None:
        pass  # its Device is not ours to end

    # -- what is said to it ------------------------------------------------------------

    def _say(self, *envelope: Any, force: bool = False) -> bool:
        if self.reason is not ALIVE:
            return False
        say = self._pids.words.say
        return self._tell([envelope[0], *map(say, envelope[1:])], force)

    def _tell(self, envelope: Any, force: bool = False) -> bool:
        try:
            tell(self._line, envelope, force=force)
        except (EndedError, NotAllowedError, NotConnectedError):
            return False
        except BusyError as error:
            raise FarBusyError(self.pid, error.waiting, envelope) from None
        return True

    def wrap(self, message: object, wrapped: dict[Any, Any]) -> object:
        here = self._pids
        parcel = wrapped.get(here)
        if parcel is None:
            raw = here.node.encode(["m", here.words.say(message)])
            parcel = wrapped[here] = Parcel(raw)
        if (here, self.node) not in wrapped:
            check(self._line, parcel.raw)  # nodes may have different limits
            wrapped[here, self.node] = parcel
        return parcel

    def check_local(self) -> None:
        raise FarProcessError(self.pid)

    def deliver(self, message: object) -> bool:
        if type(message) is From:
            return self._ask(message)
        if type(message) is Parcel:
            return self.reason is ALIVE and self._tell(message.raw)
        if type(message) is not Cast:
            return self._say("m", message)
        asked = message.message
        if type(asked) is Method:
            return self._say("C", asked.fn.__name__, asked.args, asked.kwargs)
        return self._say("c", asked)

    async def wait_deliver(self, message: object) -> bool:
        await checkpoint()
        said = self._pids.words.say(message)
        while self.reason is ALIVE:
            try:
                return bool(await ask_and_wait(self._line, ["q", said], None))
            except BusyError:
                await anyio.sleep(_BUSY)
            except (EndedError, NotConnectedError):
                break
        return False

    def deliver_in_any_case(self, message: object) -> bool:
        assert isinstance(message, StopRequest)  # whatever else is such comes from here
        return self._say("s", message.reason, force=True)

    def deliver_urgent(self, message: object) -> bool:
        raise FarProcessError(self.pid)

    def signal(self, sender: Pid | None, reason: ExitReason) -> None:
        known = sender if sender is not None and sender._process.is_local else None
        words = self._pids.words
        try:
            self._say("x", known, words.reason(reason), force=True)
        except EncodeError:  # it is too long
            self._say("x", known, words.outline(reason), force=True)

    def drain(self) -> None:
        self._say("d", force=True)

    def on_link(self, pid: Pid) -> None:
        # Of its links the far process keeps book.
        (self._links or {}).clear()
        if self._say("l", pid, force=True):
            self._pids.announce_to(pid, self.node)

    def on_unlink(self, pid: Pid) -> None:
        self._say("u", pid, force=True)

    # -- requests ----------------------------------------------------------------------

    def _ask(self, request: From) -> bool:
        asked_for, seconds = request.message, request.seconds
        say = self._pids.words.say
        if type(asked_for) is Method:
            envelope = ["K", asked_for.fn.__name__, say(asked_for.args), say(asked_for.kwargs)]
        else:
            envelope = ["k", say(asked_for)]
        calls = self.calls
        if calls is not None and not calls.thread:
            self._pids.serve(calls)
        made: list[Asked] = []

        def hear() -> None:
            try:
                asked = made.pop()
            except IndexError:
                return  # the answer was so quick that it is still to be put in; or it was heard
            request.recall = None
            self._hear_answer(request, asked)

        def give_up() -> None:
            asked.hear = _nothing  # which refers to the request, and that to this
            asked.give_up()

        request.begun = True  # for all that is known here
        try:
            asked = ask(self._line, envelope, None if seconds == math.inf else seconds, hear)
        except NotConnectedError:
            request.begun = False
            request.server_ended(NOCONNECTION)
            return True
        except BusyError as error:
            raise FarBusyError(self.pid, error.waiting, request.message) from None
        request.recall = give_up
        made.append(asked)
        if asked.over:
            hear()
        if request.over:  # then perhaps nobody tells
            give_up()
        return True

    def _hear_answer(self, request: From, asked: Asked) -> None:
        try:
            value = asked.result()
            if type(request.message) is Method:
                value = Shape.of(request.message.fn).answer(value)
        except EndedError as error:
            about = _about(error.fault)
            request.begun = about not in (_about(UNTOUCHED), _NOBODY)
            if about == _NOBODY:
                request.server_ended(NOPROC)
            # Otherwise why it has ended comes next, and ends all requests.
        except NotConnectedError:
            request.server_ended(NOCONNECTION)
        except RemoteError as error:
            full = error.type_name == FULL and error.text.isdecimal()
            request.fail(
                MailboxFullError(self.pid, int(error.text), request.message) if full else error
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            request.fail(error)
        else:
            request.answer(value)


def _nothing() -> None:
    pass


def _about(fault: Fault | None) -> str:
    """What class's name a fault tells; empty if none."""
    error = fault.exception if isinstance(fault, Failed) else None
    return error.type_name if isinstance(error, RemoteError) else ""
