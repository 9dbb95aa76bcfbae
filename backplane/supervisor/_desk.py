"""The part of a supervisor's run that knows nothing of children: phases, requests, timers.

A run is a task of its own. Others put requests into its queue and wait; it
serves them one at a time, between two other things.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from backplane.lowlevel import Parking, clock, new_parking, outlast

from ._errors import NotRunningError


class Phase(enum.Enum):
    """Where a run stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class Stopping(Exception):
    """The run was asked to stop while it waited for a child."""


class Request:
    """Something that the run is asked to do."""

    __slots__ = ("_fn", "abandoned", "begun", "error", "held", "parking", "result")

    def __init__(self, fn: Asked, parking: Parking | None = None) -> None:
        self._fn = fn
        self.parking = parking
        """Where its asker sleeps, until it is answered."""
        self.begun = self.abandoned = False
        self.held = False
        """Whether it will be answered later, by ``finish``."""
        self.result: Any = None
        self.error: BaseException | None = None

    async def perform(self) -> None:
        """Do it, and tell whoever asked."""
        self.begun = True
        try:
            self.result = await self._fn(self)
        except Exception as error:
            self.error = error  # it is the asker's
            if isinstance(error, Stopping):
                raise
        except BaseException:
            self.error = Stopping()  # the run ends by it
            raise
        finally:
            if not self.held or self.error is not None:
                self.finish()

    def finish(self) -> None:
        """Wake whoever asked."""
        parking, self.parking = self.parking, None
        if parking is not None:
            parking.wake()


Asked: TypeAlias = Callable[[Request], Awaitable[Any]]
"""Does what a request is for, and returns the answer."""


class Timer:
    """Something that is to be called at a time."""

    __slots__ = ("fire",)

    def __init__(self, fire: Callable[[], bool]) -> None:
        self.fire: Callable[[], bool] | None = fire


_DEAD_TIMERS = 64
"""So many timers that were cancelled are left in the heap, or half of all, before it is cleared."""


class Desk:
    """Where a run keeps what is to be done: requests, and what is due at a time."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.now: Final = clock()
        self.phase = Phase.STARTING
        self._requests: deque[Request] = deque()
        self._watchers: set[Parking] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self._dead_timers = 0
        self._parking = new_parking()

    # -- phases --------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Pass into a phase."""
        self.phase = phase
        for parking in list(self._watchers):  # which other threads may change
            parking.wake()

    async def wait_for(self, *phases: Phase) -> None:
        """Wait until the run is in one of some phases."""
        parking = new_parking()
        self._watchers.add(parking)
        try:
            while self.phase not in phases:
                await parking.park()
        finally:
            self._watchers.discard(parking)

    async def wait_ended(self) -> None:
        """Wait until it has ended, whoever cancels meanwhile; then let the cancellation go on."""
        await outlast(lambda: self.phase is Phase.ENDED, lambda: self.wait_for(Phase.ENDED))

    # -- requests ------------------------------------------------------------------

    async def submit(self, attempt: str, fn: Asked) -> Any:
        """Have the run do something, and wait for it."""
        self.check_caller(attempt)
        parking = new_parking()
        request = Request(fn, parking)
        self.put(request)
        if self.phase is Phase.ENDED:  # it did so just now, in another thread
            request.finish()
        try:
            while request.parking is not None:
                await parking.park()
        finally:
            request.abandoned = True
        if isinstance(request.error, Stopping) or (request.error is None and not request.begun):
            raise NotRunningError(self.name, attempt)
        if request.error is not None:
            raise request.error
        return request.result

    def put(self, request: Request) -> None:
        """Queue a request, whether or not anybody waits for it."""
        self._requests.append(request)
        self._parking.wake()

    def check_caller(self, attempt: str) -> None:
        """Raise if nobody would answer, or if the caller is what the answer waits for."""
        if self.phase not in (Phase.STARTING, Phase.RUNNING):
            raise NotRunningError(self.name, attempt)

    async def serve_request(self) -> None:
        """Do what was asked for first."""
        request = self._requests.popleft()
        if not request.abandoned:
            await request.perform()

    def close(self) -> None:
        """Tell those who still wait that nothing will come of it."""
        self.enter(Phase.ENDED)  # first: who puts a request after this sees it
        while self._requests:
            self._requests.popleft().finish()

    # -- time ----------------------------------------------------------------------

    def at(self, due: float, fire: Callable[[], bool]) -> Timer:
        """Call something at a time; it returns whether it was still wanted."""
        self._timer_count += 1
        timer = Timer(fire)
        heapq.heappush(self._timers, (due, self._timer_count, timer))
        return timer

    def cancel_timer(self, timer: Timer | None) -> None:
        """Forget what was to be called, and all that it refers to."""
        if timer is None or timer.fire is None:
            return
        timer.fire = None
        self._dead_timers += 1
        if self._dead_timers > _DEAD_TIMERS and 2 * self._dead_timers > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].fire is not None]
            heapq.heapify(self._timers)
            self._dead_timers = 0

    def fire_timers(self) -> bool:
        """Call all that is due; tell whether any of it was still wanted."""
        fired = False
        while self._next_due() <= self.now():
            _, _, timer = heapq.heappop(self._timers)
            fire, timer.fire = timer.fire, None
            assert fire is not None
            fired = fire() or fired
        return fired

    def _next_due(self) -> float:
        while self._timers:
            due, _, timer = self._timers[0]
            if timer.fire is not None:
                return due
            heapq.heappop(self._timers)
            self._dead_timers -= 1
        return math.inf

    async def sleep(self) -> None:
        """Sleep until something is due, or somebody wakes it."""
        await self.sleep_until(self._next_due())

    async def sleep_until(self, due: float) -> None:
        """Sleep until a time, or until somebody wakes it."""
        if due == math.inf:
            await self._parking.park()
        else:
            await self._parking.park_until(due)

    async def until(self, condition: Callable[[], bool], deadline: float = math.inf) -> bool:
        """Wait for a condition that a wake may bring about; False if the deadline came first."""
        while not condition():
            if deadline != math.inf and self.now() >= deadline:
                return False
            await self.sleep_until(deadline)
        return True
