"""What all contenders supervise: children that crash, groups that do, crews that sit idle.

Each keeps its own clock, so that a contender cannot time more or less than the
others do: it runs from the first thing that a child does to the last.
"""

from __future__ import annotations

from time import perf_counter

import anyio
from _core_many import forever

MANY = 1_000_000
"""A budget of restarts that nothing here exhausts."""


class CrashError(Exception):
    """What the children raise."""


class Crashes:
    """A child that raises as soon as it runs, so many times, and then stays.

    The clock starts when the child first runs and stops when it stays. With
    ``before``, so many crashes happen before the clock starts.
    """

    def __init__(self, n: int, before: int = 0) -> None:
        self._n = n
        self._left = n + before
        self._start = self.took = 0.0
        self.stays = anyio.Event()

    def step(self) -> None:
        """What the child does when it is started."""
        if self._left == self._n:
            self._start = perf_counter()
        if self._left:
            self._left -= 1
            raise CrashError
        self.took = perf_counter() - self._start
        self.stays.set()

    async def child(self) -> None:
        self.step()
        await forever()


GROUP = 10


class Group:
    """Ten children, one of which crashes as soon as all run, so many times.

    The clock starts when all run for the first time, and stops when they do
    after the last crash.
    """

    victim = GROUP // 2

    def __init__(self, n: int) -> None:
        self._n = self._left = n
        self._up = 0
        self._start = self.took = 0.0
        self._fuse = anyio.Event()
        self.stays = anyio.Event()

    def arrive(self) -> bool:
        """Tell that a child runs; true if now all do, and one is to crash."""
        self._up += 1
        if self._up < GROUP:
            return False
        if self._left == self._n:
            self._start = perf_counter()
        if not self._left:
            self.took = perf_counter() - self._start
            self.stays.set()
            return False
        self._left -= 1
        self._up = 0
        return True

    async def child(self, i: int) -> None:
        if i == self.victim:
            self._fuse = anyio.Event()
        if self.arrive():
            self._fuse.set()
        if i == self.victim:
            await self._fuse.wait()
            raise CrashError
        await forever()


class Crew:
    """Children that do nothing. The clock runs until the last of them has been started."""

    def __init__(self, n: int) -> None:
        self._missing = n
        self._began = perf_counter()
        self.started = self.stopped = 0.0
        self.complete = anyio.Event()

    def begin(self) -> None:
        """Start the clock later than when this was made."""
        self._began = perf_counter()

    def arrive(self) -> None:
        """Tell that a child runs."""
        self._missing -= 1
        if not self._missing:
            self.started = perf_counter() - self._began
            self.complete.set()

    async def child(self) -> None:
        self.arrive()
        await forever()

    async def wait(self) -> None:
        """Wait until all run, then start the clock of the stop."""
        await self.complete.wait()
        self._began = perf_counter()

    def gone(self) -> None:
        """Tell that all have been stopped."""
        self.stopped = perf_counter() - self._began
