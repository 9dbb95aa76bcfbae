"""Links and monitors of a process, and the signals that come by them.

Links are those of the Device, which sees to it that each fires once, across
threads too. The process adds what Erlang's have more: the very reason of an
end, and the choice to take it as a message. What must not wait behind a long
mailbox (an exit signal, a kill, a parent's shutdown) does not go through it.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

from backplane import (
    Device,
    DeviceID,
    Disconnected,
    Fault,
    LinkError,
    LinkMode,
    Message,
)
from backplane.lowlevel import Guard, Job, start_job

from ._errors import NoProcessError
from ._handles import Addressed, Down, Exited, Pid, Ref
from ._mailbox import ALIVE, Mailbox, Overflow, lock, made
from ._reasons import (
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    ExitReason,
    reason_of,
)

if TYPE_CHECKING:
    from ._process import Process


class Linked(Mailbox):
    """What hears of others' ends, and may be ended by them."""

    __slots__ = (
        "_guard", "_links", "_monitors", "_signals", "_watchers", "device", "job", "parent",
        "parent_first", "trap_exit",
    )  # fmt: skip

    device: Device
    job: Job | None
    """What it runs in, if that can be killed."""
    parent: Pid | None
    """Who has started it with a link; nobody else's exit signal is its parent's."""
    parent_first: bool
    """Whether its parent's exit signal, if it is trapped, comes in front of the mailbox."""
    trap_exit: bool
    """Whether exit signals come as ``Exited`` messages instead of ending it. It is
    looked at when a signal comes."""

    def __init__(
        self, device: Device, capacity: int | None, overflow: Overflow, trap_exit: bool
    ) -> None:
        super().__init__(capacity, overflow)
        self.device = device
        self.job = None
        self.parent = None
        self.trap_exit = trap_exit
        self.parent_first = False
        self._signals: deque[tuple[Any, ExitReason]] | None = None
        self._guard: Guard | None = None
        self._links: dict[DeviceID, Pid | None] | None = None
        self._monitors: dict[Ref, tuple[Linked, Pid | str]] | None = None
        self._watchers: dict[Ref, tuple[Linked, Pid | str]] | None = None

    @property
    def absence(self) -> ExitReason:
        """What those hear who ask for it when it has ended."""
        return NOPROC

    # -- exit signals --------------------------------------------------------------------

    def signal(self, sender: Pid | None, reason: ExitReason) -> None:
        """Take an exit signal, from whatever thread."""
        if self.reason is not ALIVE:
            return
        if reason is not KILL:
            if self.trap_exit:
                self._trap(sender, reason)
                return
            if reason is NORMAL and (sender is None or sender._process is not self):
                return
        made(self, "_signals", deque).append((sender, reason))
        guard = self._guard
        if guard is not None:
            guard.poke()

    # -- hearing: in its own loop, while its code stands at an await ------------------

    def _decide(self, message: Message | None) -> bool:
        if message is None:
            stops = False
            while self._signals:
                stops = self._hear_exit(*self._signals.popleft()) or stops
            return stops
        if type(message) is not Disconnected:  # a request to shut down, from its supervisor
            if not self.trap_exit:
                return self._die(message.sender, SHUTDOWN, None)
            self.deliver_urgent(Exited(message.sender, SHUTDOWN))
            return False
        sender, links = message.sender, self._links
        pid = None
        if links is not None and sender in links:
            pid = links.pop(sender)
            if pid is None:  # it was unlinked while another thread was telling this
                return False
        # A supervisor ends the Device of a process that it cannot end.
        reason = None if pid is None else pid.reason
        if reason is None:
            reason = reason_of(message.fault)
        if self.trap_exit:
            self._trap(pid or sender, reason)
            return False
        return reason is not NORMAL and self._die(sender, reason, message.fault)

    def _trap(self, sender: Pid | DeviceID | None, reason: ExitReason) -> None:
        """Make a message of an exit signal."""
        if self.parent_first and sender is not None and sender == self.parent:
            self.deliver_urgent(Exited(sender, reason))
        else:
            self._put(Exited(sender, reason))

    def _hear_exit(self, sender: Pid | None, reason: ExitReason) -> bool:
        if reason is not KILL:
            return self._die(sender, reason, None)
        job = self.job
        if job is None or self._parking is None:  # cannot be killed, or need not: it has not begun
            return self._die(sender, KILLED, None)
        if self._killed:
            return False
        self._killed = True
        # In a context of its own: it must not be a descendant of what it kills.
        Context().run(start_job, job.kill, _ignore, f"kill {self.device.name}")
        return self._fatal is None  # cancelled too: on trio the job may be late by a step

    def _die(self, sender: object, reason: ExitReason, fault: Fault | None) -> bool:
        if self._fatal is not None or self._killed:
            return False
        self._fatal = (sender, reason, fault)
        return True

    # -- links and monitors -----------------------------------------------------------

    def link(self, target: Pid | Addressed) -> None:
        """Link with another process: when one ends, the other hears why.

        For any reason but ``NORMAL``, one that does not trap exits ends for the
        same. Linking twice is linking once; with itself it does nothing.

        Raises:
            NoProcessError: The other has ended, and this one does not trap exits;
                one that does gets ``Exited(pid, NOPROC)`` instead, as in Erlang; with
                ``NOCONNECTION``, if there is no connection with its node.
        """
        pid = self._pid_of(target, "link")
        other = pid._process
        if other is self:
            return
        mine, its = made(self, "_links", dict), made(other, "_links", dict)
        mine[pid.id], its[self.device.id] = pid, self.pid
        other.on_link(self.pid)
        try:
            self.device.link(other.device, LinkMode.PEER)
        except LinkError:
            mine.pop(pid.id, None)
            its.pop(self.device.id, None)
            if not self.trap_exit:
                raise NoProcessError(pid, "link") from None
            self._put(Exited(pid, other.absence))

    def unlink(self, target: Pid | Addressed) -> None:
        """Undo ``link``. Afterwards no exit comes of it; an ``Exited`` that has come stays."""
        pid = self._pid_of(target, "unlink")
        other = pid._process
        if other is self:
            return
        self.device.unlink(other.device, LinkMode.PEER)
        mine, its = self._links, other._links
        if mine is not None and mine.pop(pid.id, None) is not None and not pid.alive:
            mine[pid.id] = None  # another thread may have begun to tell of its end
        if its is not None:
            its.pop(self.device.id, None)
        other.on_unlink(self.pid)

    @property
    def links(self) -> list[Pid]:
        """Those it is linked with."""
        return [pid for pid in list((self._links or {}).values()) if pid is not None]

    def _pid_of(self, target: Pid | Addressed, attempt: str) -> Pid:
        if isinstance(target, Pid):
            return target
        from ._names import resolve  # which is made on top of this

        return resolve(target, attempt).pid

    def monitor(self, target: Pid | Addressed) -> Ref:
        """Have a ``Down`` with the returned reference come when a process ends; at once if it has.

        Monitors add up: each has a reference and a ``Down`` of its own. A name
        means whoever has it now, and is what the ``Down`` shows; if nobody does,
        it comes at once, with ``NOPROC``.
        """
        ref, who = Ref(), target
        try:
            process = self._pid_of(target, "monitor")._process
        except NoProcessError:
            self._put(Down(ref, who, NOPROC))
            return ref
        return self._monitor(ref, process, who)

    def _monitor(self, ref: Ref, target: Process, who: Pid | Addressed) -> Ref:
        if target is self:
            return ref
        # Noted here first: that the note is taken back decides, once, whether a Down comes.
        made(self, "_monitors", dict)[ref] = (target, who)
        watchers = made(target, "_watchers", dict)
        watchers[ref] = (self, who)
        if target.reason is not ALIVE:
            watchers.pop(ref, None)
            self._tell_down(ref, who, target.absence)
        return ref

    def demonitor(self, ref: Ref, *, flush: bool = False) -> bool:
        """End a monitor: no ``Down`` comes any longer. Whether it was still active.

        Args:
            ref: What ``monitor`` returned.
            flush: Take a ``Down`` that has come already out of the mailbox.
        """
        with lock:
            entry = None if self._monitors is None else self._monitors.pop(ref, None)
            if flush and entry is None:
                for message in list(self.mailbox):
                    if isinstance(message, Down) and message.ref is ref:
                        self._remove(message)
        if entry is not None and entry[0]._watchers is not None:
            entry[0]._watchers.pop(ref, None)
        return entry is not None

    def _tell_down(self, ref: Ref, who: Pid | str, reason: ExitReason) -> None:
        """Have a ``Down`` come, unless its monitor has been taken back or has fired."""
        with lock:
            if self._monitors is not None and self._monitors.pop(ref, None) is not None:
                self._put(Down(ref, who, reason))


def _ignore(_: Job) -> None:
    pass
