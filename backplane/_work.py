"""Work: one piece of code that runs until it is done, or until a message stops it.

``watch`` and ``manage`` differ in which messages stop the work and in what they
make of the stop. Neither starts a task: the work's own scope owns the mailbox
meanwhile, and whoever delivers a message has it look, in the loop of the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar, Token
from types import TracebackType
from typing import final

from ._errors import CascadeCrash, Crash, DeviceDownError, PowerOffCrash, busy_error
from ._loop import Scope, current_job, is_cancellation, new_scope
from ._messages import (
    Cancelled,
    Cascaded,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    Message,
)
from ._plugboard import OPEN, Plugboard


class Work(ABC):
    """A piece of code in the current task that a message on a plugboard can stop."""

    __slots__ = ("_board", "_running", "_scope", "stopped")

    _board: Plugboard
    _scope: Scope
    _running: bool
    stopped: bool
    """Whether a message has stopped the work. If so from the start, it must not begin."""

    def __init__(self, board: Plugboard) -> None:
        self._board = board
        self._running = False
        self.stopped = False

    def _start(self, attempt: str) -> None:
        """Claim the mailbox, or raise an error that says that ``attempt`` failed."""
        board = self._board
        if board.end is not OPEN:
            raise DeviceDownError(board.id, attempt)
        scope = new_scope(self._look)
        if not board.claim(scope):
            raise busy_error(board, attempt)
        self._scope = scope
        scope.enter()
        # There is nothing to cancel yet, so a wake does nothing. What a finalizer sends while
        # messages are looked at is looked at in turn; between the last look and `_running`
        # nobody else's code runs in this task.
        while board.inbox and not self.stopped and board.end is OPEN:
            self.stopped = self._is_stopping()
        self._running = True

    def _look(self) -> None:
        """Cancel the work if what has come stops it. A late wake finds it over."""
        # Not twice: what a finalizer sends during the look has a look of its own, inside this.
        if self._running and not self.stopped and self._is_stopping() and not self.stopped:
            self.stopped = True
            self._scope.cancel()

    @abstractmethod
    def _is_stopping(self) -> bool:
        """Whether a message has come that stops the work."""

    def _finish(self, exc: BaseException | None) -> BaseException | None:
        """Give the mailbox back; return what is left of ``exc``, which the work raised."""
        self._running = False
        exc = self._scope.exit(exc)
        if exc is None and not self.stopped and self._board.inbox:
            # A message from another thread may be here, and its wake on the way.
            self.stopped = self._is_stopping()
        self._board.release()
        return exc


@final
class WatchedWork(Work):
    """Stops at any message, and leaves it in the mailbox."""

    __slots__ = ()

    def _is_stopping(self) -> bool:
        return bool(self._board.inbox)

    async def __aenter__(self) -> WatchedWork:
        self._start("watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        rest = self._finish(exc)
        if self._scope.has_unmet:
            rest = await self._scope.meet() or rest
        del self._scope  # it refers to this; a cycle would wait for the collector
        if rest is not None and rest is not exc:
            raise rest
        return rest is None


_managing: ContextVar[ManagedWork | None] = ContextVar("backplane.managing", default=None)


@final
class ManagedWork(Work):
    """Stops at a request to shut down and at another's fault; ends its board accordingly.

    ``enter`` and ``leave`` are for ``manage``, the same as ``async with`` for a block.
    """

    __slots__ = ("_ends", "_outer", "_owner", "_stop", "_token")

    _owner: object | None
    """The Device, as long as the work runs: contexts that outlive the work refer to this."""
    _outer: ManagedWork | None
    """The work around this one, if any was running."""
    _ends: bool
    _stop: Message
    _token: Token[ManagedWork | None]

    def __init__(self, board: Plugboard, owner: object, ends: bool) -> None:
        self._board = board
        self._running = False
        self.stopped = False
        self._owner = owner
        self._ends = ends

    def _is_stopping(self) -> bool:
        while (message := self._board.take()) is not None:
            if type(message) is not Disconnected or message._fault is not None:
                self._stop = message
                return True
        return False

    def enter(self) -> None:
        """Start; or end the board and raise the crash, if a message has come that says so."""
        self._start("manage work")
        if self.stopped:
            self._finish(None)
            del self._scope
            raise self._crash()
        outer = self._outer = _running(_managing.get())
        if outer is not None:
            # A chain of works that start their own successors must not become long.
            outer._outer = _running(outer._outer)
        self._token = _managing.set(self)

    async def leave(self, exc: BaseException | None) -> None:
        """End, after the work has raised ``exc``; raise what takes its place, if anything does."""
        try:
            _managing.reset(self._token)
        except ValueError:
            pass  # the coroutine is closed from another context, which we did not change
        del self._token
        rest = self._finish(exc)
        if self._scope.has_unmet:
            rest = await self._scope.meet() or rest
        del self._scope  # it refers to this; a cycle would wait for the collector
        crash = None
        if self.stopped:
            crash = self._crash()
        elif rest is not None:
            self._board.close(fault_of(rest))
        elif self._ends:
            self._board.close(None)
        self._owner = None  # not before its end: this may be the last that holds it
        if crash is not None and rest is None:
            raise crash from None
        if crash is not None and isinstance(rest, Exception):
            raise crash
        if rest is not exc and rest is not None:
            raise rest

    async def __aenter__(self) -> None:
        self.enter()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave(exc)

    def _crash(self) -> Crash:
        """End the board because of the message that came; return what the caller gets."""
        stop = self._stop
        if _was_killed():  # since its cleanup took too long
            self._board.close(Killed())
        if isinstance(stop, Disconnected) and stop.fault is not None:
            self._board.close(Cascaded(stop.sender, stop.fault))
            return CascadeCrash(stop.sender, stop.fault)
        self._board.close(None)
        return PowerOffCrash(stop.sender)


def _running(work: ManagedWork | None) -> ManagedWork | None:
    """The innermost work of a chain that still runs."""
    while work is not None and work._owner is None:
        work = work._outer
    return work


def current_owner() -> object | None:
    """The owner of the innermost managed work that the calling code belongs to."""
    work = _running(_managing.get())
    return None if work is None else work._owner


def fault_of(exc: BaseException) -> Fault:
    """The fault of a Device whose work let ``exc`` out."""
    if _was_killed():
        return Killed()
    if isinstance(exc, Exception):
        return Failed(exc)
    if is_cancellation(exc):
        return Cancelled()
    if isinstance(exc, GeneratorExit):  # its coroutine was closed, or collected
        return Dropped()
    return Failed(exc)


def _was_killed() -> bool:
    job = current_job()
    return job is not None and job.killed
