"""asyncio: functions that are called at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from . import _seat


@final
class Alarm(_seat.Alarm):
    """A timer of the loop's own."""

    __slots__ = ("_fn", "_handle", "_loop")

    _handle: asyncio.TimerHandle | None

    def __init__(self, due: float, fn: Callable[[], object]) -> None:
        self.due = due
        self._fn = fn
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        if self._loop.time() < self.due:  # uvloop counts in milliseconds
            self._handle = self._loop.call_at(self.due, self._ring)
            return
        self._handle = None
        self._fn()

    def cancel(self) -> bool:
        handle, self._handle = self._handle, None
        if handle is None:
            return False
        handle.cancel()
        return True
