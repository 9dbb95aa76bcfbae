"""trio: functions that are called at a time."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import final

import trio

from . import _seat


@final
class Alarm(_seat.Alarm):
    """A system task that sleeps."""

    __slots__ = ("_fn", "_scope")

    _scope: trio.CancelScope | None

    def __init__(self, due: float, fn: Callable[[], object]) -> None:
        self.due = due
        self._fn = fn
        self._scope = trio.CancelScope()
        context = contextvars.Context()  # nothing of the caller's is kept, or cancelled with it
        trio.lowlevel.spawn_system_task(self._sleep, self._scope, name="alarm", context=context)

    async def _sleep(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(self.due)
        if self._scope is not None:
            self._scope = None
            self._fn()

    def cancel(self) -> bool:
        scope, self._scope = self._scope, None
        if scope is None:
            return False
        scope.cancel()
        return True
