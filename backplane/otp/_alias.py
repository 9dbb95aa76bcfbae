"""Aliases: addresses of a process that can be taken back."""

from __future__ import annotations

from typing import final

from ._handles import Handle, Pid, Ref, current_process
from ._mailbox import ALIVE, lock
from ._process import Process


@final
class Alias(Handle):
    """An address of the process that made it, until it is taken back.

    To be given to those whose answers are not wanted for ever: what is sent to it
    later vanishes. It ends with the process. Equal to itself alone; for any thread.
    """

    __slots__ = ("__weakref__", "_deactivated", "_process", "_ref", "_reply")

    def __init__(self, process: Process, reply: bool, ref: Ref | None = None) -> None:
        self._process = process
        self._reply = reply
        self._ref = ref
        self._deactivated = False

    @property
    def active(self) -> bool:
        """Whether what is sent to it arrives."""
        process, ref = self._process, self._ref
        if self._deactivated or process.reason is not ALIVE:
            return False
        # The monitor is gone as soon as its Down has come, or it was ended.
        return ref is None or ref in (process._monitors or ())

    def send(self, message: object) -> bool:
        """Put a message into the process's mailbox; False if the alias is not active.

        Raises:
            MailboxFullError: As for ``Pid.send``. A reply alias is still active.
        """
        # Under the lock, so that nothing comes after ``deactivate`` has returned, and that
        # of two answers in two threads one alone arrives.
        with lock:
            if not self.active or not self._process.deliver(message):
                return False
            if self._reply:
                self.deactivate()
            return True

    def deactivate(self) -> bool:
        """Take it back, and end its monitor if it has one; False if it was not active."""
        with lock:
            active = self.active
            self._deactivated = True
            if active and self._ref is not None:
                self._process.demonitor(self._ref)
            return active

    def __repr__(self) -> str:
        state = "" if self.active else " (not active)"
        return f"<Alias of {self._process.pid!r}{state}>"


def alias(reply: bool = False) -> Alias:
    """Make an address of the calling process that can be taken back.

    Args:
        reply: Whether it takes one message only.
    """
    return Alias(current_process("make an alias"), reply)


def monitor_alias(pid: Pid, reply: bool = False) -> tuple[Ref, Alias]:
    """Monitor a process, with an alias for its answers that ends together with the monitor.

    That is when the ``Down`` comes, when the monitor is ended (``demonitor``), or
    the alias deactivated; with ``reply``, also after its first message.

    Raises:
        ValueError: A process would monitor itself, of which it would never hear.
    """
    process = current_process("make an alias")
    if pid._process is process:
        raise ValueError("an alias cannot depend on a process's monitor of itself")
    ref = process.monitor(pid)
    return ref, Alias(process, reply, ref)
