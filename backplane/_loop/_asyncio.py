"""asyncio, and all loops that are made for it, such as uvloop."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import final

from . import _seat

TURNS = 10
"""Turns of the loop that something is given to happen by itself, before it is forced."""


class _Seat(_seat.Seat):
    __slots__ = ("_loop",)

    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._called = False
        self._loop = asyncio.get_running_loop()

    def _is_here(self) -> bool:
        # Only from inside a task. A signal handler may be calling while the loop sleeps,
        # which would sleep on; a finalizer in the middle of the loop's bookkeeping.
        loop = self._loop
        return asyncio._get_running_loop() is loop and asyncio.current_task(loop) is not None

    def _call_soon(self, fn: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(fn)
        except RuntimeError:
            # The loop has closed, and the task with it: nobody is left to wake.
            pass


@final
class Parking(_Seat, _seat.Parking):
    """Sleeps on a future of the loop's own."""

    __slots__ = ("_future", "_woken")

    _future: asyncio.Future[None] | None
    _woken: bool

    def __init__(self) -> None:
        super().__init__()
        self._future = None
        self._woken = False

    def _on_wake(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def park(self) -> None:
        if not self._woken:
            self._future = self._loop.create_future()
            try:
                await self._future
            finally:
                self._future = None
        self._woken = False

    def rest(self) -> asyncio.Future[None]:
        future = self._future = self._loop.create_future()
        return future

    async def park_until(self, deadline: float) -> None:
        if not self._woken:
            timer = self._loop.call_at(deadline, self._on_wake)
            try:
                await self.park()
            finally:
                timer.cancel()
        self._woken = False


@final
class Scope(_Seat, _seat.Scope):
    """Cancels as ``asyncio.timeout`` does: once, and told apart by counting.

    ``Task.cancelling()`` counts the requests to cancel. After our own is taken
    back with ``uncancel()``, any left above the number at the start came from
    outside, and its ``CancelledError`` must go on outwards.
    """

    __slots__ = ("_base", "_state", "_task", "_tries", "_watcher", "has_unmet")

    _task: asyncio.Task[object]
    _base: int
    _state: _State
    _tries: int
    has_unmet: bool

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._called = False
        loop = self._loop = asyncio.get_running_loop()
        self._watcher = on_wake
        task = asyncio.current_task(loop)
        assert task is not None  # sniffio has seen it
        self._task = task

    def enter(self) -> None:
        self._base = self._task.cancelling()
        self._state = _State.ENTERED
        self._tries = 0
        self.has_unmet = False

    def cancel(self) -> None:
        """Cancel the task; or, if it is about to be given something, a turn later.

        Otherwise what it is given, an item from a queue perhaps, would be lost: anyio's
        scopes take the same care.
        """
        if self._state is _State.EXITED:
            return
        waiter = getattr(self._task, "_fut_waiter", None)
        if waiter is not None and waiter.done() and not waiter.cancelled() and self._tries < TURNS:
            self._tries += 1
            self._loop.call_soon(self.cancel)
            return
        # Somebody else's request may be on its way, made within the task's own last step.
        self._state = _State.CANCELLED_TWICE if _has_pending(self._task) else _State.CANCELLED
        try:
            self._task.cancel()
        except Exception as exc:  # noqa: BLE001 - from a future of the user's own make
            self._loop.call_exception_handler(
                {"message": "a task could not be cancelled", "exception": exc, "task": self._task}
            )

    def is_cancelled(self) -> bool:
        return self._task.cancelling() > self._base

    def exit(self, exc: BaseException | None) -> BaseException | None:
        state, self._state = self._state, _State.EXITED
        if state is not _State.CANCELLED and state is not _State.CANCELLED_TWICE:
            return exc
        from_outside = self._task.uncancel() > self._base
        twice = state is _State.CANCELLED_TWICE
        if not isinstance(exc, asyncio.CancelledError):
            # It ended without meeting its cancellation, within the step that asked for it.
            # Up to Python 3.12 that is still to come, and would hit the task's next wait.
            closed = isinstance(exc, GeneratorExit)
            self.has_unmet = not twice and not closed and _has_pending(self._task)
            return exc
        if from_outside:
            return exc
        if twice:  # of two requests the task has met one: let it meet the earlier as well
            self._task.uncancel()
            self._task.cancel()
        else:  # it may have met somebody else's, in what it waited for
            self.has_unmet = _has_pending(self._task)
        return None

    async def meet(self) -> BaseException | None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as cancelled:
            if self._task.cancelling() > self._base:
                return cancelled
        return None


class _State(enum.Enum):
    ENTERED = "at work"
    CANCELLED = "cancelled"
    CANCELLED_TWICE = "cancelled, and by somebody else before"
    EXITED = "over"


def _has_pending(task: asyncio.Task[object]) -> bool:
    """Whether a task was cancelled from within its own step, and has not met it yet."""
    return bool(getattr(task, "_must_cancel", False))


def is_running() -> bool:
    """Whether the calling code runs in a loop."""
    return asyncio._get_running_loop() is not None


def clock() -> Callable[[], float]:
    """The clock of the running loop."""
    return asyncio.get_running_loop().time


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled."""
    await asyncio.sleep(0)


def alarm_class() -> type[_seat.Alarm]:
    """The kind of alarm that rings here."""
    from ._asyncio_alarm import Alarm

    return Alarm


def job_class() -> type[_seat.Job]:
    """The kind of job that runs here; it is not loaded by those who start none."""
    global _job
    if _job is None:
        from ._asyncio_job import Job

        _job = Job
    return _job


_job: type[_seat.Job] | None = None
