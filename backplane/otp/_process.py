"""A process: a Device with a mailbox, exit reasons, links, and monitors with references."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from backplane import CascadeCrash, Device, Fault, Line
from backplane.lowlevel import (
    Guard,
    Job,
    Parking,
    checkpoint,
    clock,
    current_job,
    new_parking,
)

from ._errors import StrayError
from ._handles import Pid, current
from ._links import Linked
from ._mailbox import ALIVE, Overflow, lock, made
from ._reasons import (
    KILLED,
    NORMAL,
    Exit,
    ExitReason,
    Stopped,
    fault_of,
    is_good,
    sole,
)

_logger = logging.getLogger("backplane.otp")


class Process(Linked):
    """The process that is calling, as its own code sees it: ``current_process()``."""

    __slots__ = ("__weakref__", "_at_end", "_heralds", "_joiners", "calls", "scope")

    is_local: ClassVar[bool] = True
    """Whether it runs in this program."""

    @property
    def node(self) -> str | None:
        """The name of the other node on which it lives, if it does."""
        return None

    calls: Any
    """The requests in its mailbox, and those that it has not answered yet; or None."""

    def __init__(
        self,
        device: Device,
        *,
        capacity: int | None = None,
        overflow: Overflow = Overflow.RAISE,
        trap_exit: bool = False,
    ) -> None:
        super().__init__(device, capacity, overflow, trap_exit)
        self.calls = None
        self.scope: Any = None
        self._joiners: set[Parking] | None = None
        self._at_end: dict[Callable[[], object], None] | None = None
        self._heralds: dict[Callable[[ExitReason], object], None] | None = None

    @property
    def pid(self) -> Pid:
        """The handle to give to others."""
        return Pid(self)

    # -- running -------------------------------------------------------------------

    async def run(self, fn: Callable[..., Awaitable[object]], *args: object) -> object:
        """Be this process, in the calling task, until ``fn`` is over.

        Returns:
            What ``fn`` returned; None if it was ended in good order.

        Raises:
            Whatever ``fn`` raised; ``CascadeCrash`` if a linked one's end has
            ended it, and ``Exit`` if an exit signal has.
        """
        token = current.set(self)
        self.now: Callable[[], float] = clock()
        self.job: Job | None = current_job()
        guard = self._guard = Guard(self.device, self._decide)
        value: object = None
        rest: BaseException | None
        try:
            guard.enter()
            self._decide(None)
            if self._fatal is None:
                self._parking = new_parking()
                value = await fn(*args)
        except BaseException as exc:  # noqa: BLE001 - it decides for what reason this ends
            about = self.about(exc)
            rest = await guard.leave(exc)
            if rest is exc:
                rest = about
        else:
            rest = await guard.leave(None)
        finally:
            _reset(token)
        self.end(self._reason(rest))
        return self._outcome(value, rest)

    def about(self, exc: BaseException) -> BaseException:
        """What came out of its code, as others are to hear of it."""
        if isinstance(exc, BaseExceptionGroup):
            return sole(exc, Exit)
        if isinstance(exc, Exception) or ends_program(exc) or self._is_asked_for(exc):
            return exc
        error = StrayError(exc)
        error.__cause__ = exc
        return error

    def _is_asked_for(self, exc: BaseException) -> bool:
        """Whether somebody has cancelled this process: its guard, its killer, or its loop."""
        guard, job = self._guard, self.job
        if self._killed or (job is not None and job.killed) or guard is None:
            return True
        if isinstance(exc, GeneratorExit):
            # To close a coroutine is to close first what it awaits: none of that raises this.
            return exc.__traceback__ is None or exc.__traceback__.tb_next is None
        return guard.is_cancelled()

    def _reason(self, rest: BaseException | None) -> ExitReason:
        if self._killed or (self.job is not None and self.job.killed):
            return KILLED
        if self._fatal is not None:
            return self._fatal[1]
        if rest is None:
            return NORMAL
        if isinstance(rest, Exit):
            return rest.reason
        return rest if isinstance(rest, Exception) or ends_program(rest) else Stopped("cancelled")

    def _outcome(self, value: object, rest: BaseException | None) -> object:
        if rest is not None and not isinstance(rest, Exception):
            raise rest
        reason, fatal = self.reason, self._fatal
        self._fatal = None
        if is_good(reason):
            return value
        if fatal is not None:
            sender, _, fault = fatal
            if fault is not None:
                raise CascadeCrash(sender, fault) from rest
            raise Exit(reason) from rest
        raise Exit(reason) if rest is None else rest

    def end(self, reason: ExitReason) -> None:
        """Release all that is held, then tell everybody."""
        if self.reason is not ALIVE:
            return
        calls = self.calls
        if calls is not None:
            self.at_end(calls.close)
        while True:
            with lock:
                if not self._at_end:
                    self.reason = reason
                    self.open = False
                    break
                release, _ = self._at_end.popitem()
            try:
                release()
            except Exception:
                _logger.exception("what %r held was not released", self.pid)
        calls, self.calls = self.calls, None
        for request in list(calls or ()):
            request.server_ended(reason)
        heralds, self._heralds = self._heralds, None
        for herald in list(heralds or ()):
            herald(reason)
        self._disconnect(fault_of(reason))
        watchers, self._watchers = self._watchers, None
        for ref, (watcher, who) in list((watchers or {}).items()):
            watcher._tell_down(ref, who, reason)
        for ref, (target, _) in list((self._monitors or {}).items()):
            if target._watchers is not None:
                target._watchers.pop(ref, None)
        self._monitors = self._links = self._urgent = self._signals = self._guard = None
        self.mailbox.clear()
        for parking in [*(self._joiners or ()), *(self._room or ())]:
            parking.wake()

    def line(self) -> Line:
        """A Line to its Device."""
        return self.device.line()

    def _disconnect(self, fault: Fault | None) -> None:
        self.device.disconnect(fault)

    def announce(self, herald: Callable[[ExitReason], object]) -> bool:
        """Have a function told why it ends, just before its Device does; False if it has ended."""
        with lock:
            if self.reason is not ALIVE:
                return False
            made(self, "_heralds", dict)[herald] = None
            return True

    def wrap(self, message: object, wrapped: dict[Any, Any]) -> object:
        """What is to be delivered of a message that many get.

        Args:
            message: The message.
            wrapped: What was made of it for others.
        """
        return message

    def check_local(self) -> None:
        """Refuse what only a process of this program can be used for."""

    def on_link(self, pid: Pid) -> None:
        """Another process is about to link with this one."""

    def on_unlink(self, pid: Pid) -> None:
        """Another process has taken its link with this one back."""

    def at_end(self, release: Callable[[], object]) -> None:
        """Have something released before anybody hears of the end; at once if it has ended."""
        with lock:
            if self.reason is ALIVE:
                if self._at_end is None:
                    self._at_end = {}
                self._at_end[release] = None
                return
        release()

    def not_at_end(self, release: Callable[[], object]) -> None:
        """Undo ``at_end``."""
        with lock:
            if self._at_end is not None:
                self._at_end.pop(release, None)
                if not self._at_end:
                    self._at_end = {}  # an emptied one is not small

    async def wait(self) -> ExitReason:
        """Wait for the end."""
        await checkpoint()
        if self.reason is ALIVE:
            parking = new_parking()
            joiners: set[Parking] = made(self, "_joiners", set)
            joiners.add(parking)
            try:
                while self.reason is ALIVE:
                    await parking.park()
            finally:
                joiners.discard(parking)
        return self.reason

    def __repr__(self) -> str:
        return f"<Process {self.pid!r}>"


def _reset(token: Any) -> None:
    try:
        current.reset(token)
    except ValueError:
        pass  # the coroutine is closed from another context, which we did not change


def ends_program(exc: BaseException | None) -> bool:
    """Whether an exception asks the whole program to end: alone, or in a group."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(exc, KeyboardInterrupt | SystemExit)
