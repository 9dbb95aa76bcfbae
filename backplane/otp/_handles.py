"""Handles to processes, and the messages that tell of their ends."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, final

from backplane import DeviceID, Line

from ._errors import NotInProcessError
from ._mailbox import ALIVE, Signal
from ._reasons import SHUTDOWN, ExitReason, check_reason

if TYPE_CHECKING:
    from ._process import Process


class Handle:
    """What leads to something: a copy of it leads there, too, and so is the handle itself."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


@final
class Ref(Handle):
    """A reference: equal to itself alone."""

    __slots__ = ("__weakref__",)

    def __repr__(self) -> str:
        return f"<Ref {id(self):x}>"


@dataclass(frozen=True, slots=True)
class Exited(Signal):
    """An exit signal, to a process that traps exits."""

    sender: Pid | DeviceID | None
    """The process, or the Device that is none; None if nobody is known."""
    reason: ExitReason


@dataclass(frozen=True, slots=True)
class Down(Signal):
    """A monitored process has ended. Comes once for each monitor."""

    ref: Ref
    process: Any
    """As it was monitored: its pid, or the name or address that was given."""
    reason: ExitReason


@final
class Pid(Handle):
    """A handle to a process: copyable, hashable, equal if it leads to the same, for any thread."""

    __slots__ = ("_process",)

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def id(self) -> DeviceID:
        """The identity of its Device, which is never used again."""
        return self._process.device.id

    @property
    def alive(self) -> bool:
        """Whether it has not ended. False only after all that it held is released."""
        return self._process.reason is ALIVE

    @property
    def reason(self) -> ExitReason | None:
        """Why it ended; None while it lives."""
        reason = self._process.reason
        return None if reason is ALIVE else reason

    def line(self) -> Line:
        """A Line to its Device, for those that are no processes."""
        return self._process.line()

    def send(self, message: object) -> bool:
        """Put a message into its mailbox; False if it has ended. Never waits.

        Raises:
            MailboxFullError: Its mailbox is bounded, full, and was told to say so.
        """
        return self._process.deliver(message)

    async def wait_send(self, message: object) -> bool:
        """As ``send``, but wait for room in a bounded mailbox. Cancelled, nothing was sent."""
        return await self._process.wait_deliver(message)

    def exit(self, reason: ExitReason = SHUTDOWN) -> None:
        """Send it an exit signal, as from the calling process if there is one.

        One that traps exits gets an ``Exited`` message. Otherwise ``NORMAL`` does
        nothing, unless a process sends it to itself, and any other reason ends it
        for that reason: its code is cancelled, and its cleanup awaited. ``KILL``
        cannot be trapped: it ends as ``KILLED``, and on asyncio not even its
        cleanup is run to its end. What is sent later is not received any more. Of
        one that has ended already, nothing comes.

        Raises:
            ValueError: The reason is None.
        """
        check_reason(reason)
        caller = current.get()
        self._process.signal(None if caller is None else caller.pid, reason)

    def shutdown(self) -> None:
        """Have it end as its supervisor would: what waits in its mailbox is not handled first."""
        self._process.line().shutdown()

    def drain(self) -> None:
        """Have it take no more messages, handle those that it has, and end.

        It ends for the reason ``Stopped("drained")``, when it would receive the
        next. ``send`` returns False from now on.
        """
        self._process.drain()

    async def wait(self) -> ExitReason:
        """Wait for its end, and return why. Any number may, also after it."""
        return await self._process.wait()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pid) and other._process is self._process

    def __hash__(self) -> int:
        return hash(self._process)

    def __repr__(self) -> str:
        process = self._process
        name = str(process.device.name)[:100]
        where = "" if process.node is None else f" on {process.node[:100]}"
        end = "" if process.reason is ALIVE else " (ended)"
        return f"<Pid {process.device.id.serial} {name}{where}{end}>"


Addressed: TypeAlias = Any
"""A name, a ``Via`` or a ``ServerRef``: what leads to a process beside its ``Pid``."""

current: ContextVar[Process | None] = ContextVar("backplane.process", default=None)


def current_process(attempt: str = "tell which process this is") -> Process:
    """The process whose code is calling.

    Raises:
        NotInProcessError: None is.
    """
    process = current.get()
    if process is None or process.reason is not ALIVE:
        raise NotInProcessError(attempt)
    return process
