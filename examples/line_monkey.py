"""The monkey of ``line_service.py``: it kills parts at random, each in the way that hurts.

It terminates children through their supervisor, sends SIGKILL to the process of
the clients, and lays traps: the next one that passes a trapped place raises
there, or hangs until its watchdog bites.
"""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio


class MonkeyError(Exception):
    """Raised in a part that ran into a trap."""


class Traps:
    """The places where the parts can be hit, and what came of it."""

    def __init__(self) -> None:
        self.laid: dict[tuple[str, str], str] = {}  # by part and place: how it will fail
        self.kills: Counter[tuple[str, str]] = Counter()  # by part: in which way

    def lay(self, part: str, place: str, how: str) -> None:
        self.laid[part, place] = how

    def springs(self, part: str, place: str) -> bool:
        """Whether there is a trap at this place, which is then gone."""
        how = self.laid.pop((part, place), None)
        if how is not None:
            self.kills[part, f"{how} {place}"] += 1
        return how is not None

    async def pass_by(self, part: str, place: str) -> None:
        """Raise or hang if there is a trap."""
        how = self.laid.get((part, place))
        if self.springs(part, place):
            if how == "hangs":
                await anyio.sleep_forever()
            raise MonkeyError(part, place)


Killer = Callable[[], Awaitable[bool]]


class Monkey:
    """Kills ``rate`` times a second, on average."""

    def __init__(self, rate: float, seed: int | None, traps: Traps) -> None:
        self.rate = rate
        self.random = random.Random(seed)
        self.traps = traps
        self.killers: dict[tuple[str, str], tuple[float, Killer]] = {}
        for part, place, how, weight in (
            ("connection", "before its request", "raises", 3),
            ("connection", "before its answer", "raises", 3),
            ("connection", "before its answer", "hangs", 2),
            ("connection", "in mid-answer", "raises", 3),
            ("acceptor", "with a new connection", "raises", 2),
            ("flusher", "with a batch", "raises", 1),
            ("flusher", "with a batch", "hangs", 0.5),
            ("flusher", "in mid-write", "raises", 2),
            ("flusher", "before it acknowledges", "raises", 2),
            ("poller", "between two polls", "raises", 2),
            ("poller", "between two polls", "hangs", 1),
        ):
            self.add(part, f"{how} {place}", weight, self.trapper(part, place, how))

    def add(self, part: str, way: str, weight: float, kill: Killer) -> None:
        """One more way to kill; ``kill`` tells whether it has."""
        self.killers[part, way] = (weight, kill)

    def trapper(self, part: str, place: str, how: str) -> Killer:
        async def lay() -> bool:
            self.traps.lay(part, place, how)
            return False  # counted when it springs

        return lay

    async def rage(self, begun: anyio.Event, seconds: float) -> None:
        """The child: kill, for some seconds from when there is something to spoil."""
        await begun.wait()
        until = anyio.current_time() + seconds
        names = list(self.killers)
        weights = [weight for weight, _ in self.killers.values()]
        while anyio.current_time() < until:
            await anyio.sleep(self.random.expovariate(self.rate) if self.rate else math.inf)
            (name,) = self.random.choices(names, weights)
            if await self.killers[name][1]():
                self.traps.kills[name] += 1
        self.traps.laid.clear()  # else the last requests would meet all that are left
