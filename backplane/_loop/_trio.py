"""trio."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import final

import trio

from . import _seat


class _Seat(_seat.Seat):
    __slots__ = ("_token",)

    _token: trio.lowlevel.TrioToken

    def __init__(self) -> None:
        self._called = False
        self._token = trio.lowlevel.current_trio_token()

    def _is_here(self) -> bool:
        # Only from inside a task. Between two tasks a finalizer or a signal handler may
        # be calling, in the middle of the runner's bookkeeping.
        try:
            trio.lowlevel.current_task()
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def _call_soon(self, fn: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            # The run is over, and the task with it: nobody is left to wake.
            pass


@final
class Parking(_Seat, _seat.Parking):
    """Sleeps as trio's own primitives do, by rescheduling."""

    __slots__ = ("_task", "_woken")

    _task: trio.lowlevel.Task | None
    _woken: bool

    def __init__(self) -> None:
        super().__init__()
        self._task = None
        self._woken = False

    def _on_wake(self) -> None:
        self._woken = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    async def park(self) -> None:
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._woken = False

    def rest(self) -> Awaitable[object]:
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105 - by the caller

    async def park_until(self, deadline: float) -> None:
        with trio.CancelScope(deadline=deadline):
            await self.park()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


@final
class Scope(_Seat, _seat.Scope):
    """A cancel scope of trio's own."""

    __slots__ = ("_scope", "_watcher")

    _scope: trio.CancelScope

    def __init__(self, on_wake: Callable[[], None]) -> None:
        super().__init__()
        self._watcher = on_wake
        self._scope = trio.CancelScope()

    def enter(self) -> None:
        self._scope.__enter__()

    def cancel(self) -> None:
        self._scope.cancel()

    has_unmet = False

    def is_cancelled(self) -> bool:
        return trio.current_effective_deadline() == -math.inf

    def exit(self, exc: BaseException | None) -> BaseException | None:
        kind, traceback = (None, None) if exc is None else (type(exc), exc.__traceback__)
        try:
            if self._scope.__exit__(kind, exc, traceback):
                # trio makes a Cancelled where `cancel` is called. In a cascade that is where
                # the last one is handled, and each would drag along all before it.
                if exc is not None:
                    exc.__context__ = None
                return None
        except BaseException as rest:  # noqa: BLE001 - a group, less its cancellations
            return rest
        return exc

    async def meet(self) -> BaseException | None:
        return None


def clock() -> Callable[[], float]:
    """The clock of the running loop."""
    return trio.current_time


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled."""
    await trio.lowlevel.checkpoint()


def alarm_class() -> type[_seat.Alarm]:
    """The kind of alarm that rings here."""
    from ._trio_alarm import Alarm

    return Alarm


def job_class() -> type[_seat.Job]:
    """The kind of job that runs here; it is not loaded by those who start none."""
    from ._trio_job import Job

    return Job
