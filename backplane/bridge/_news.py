"""What a node tells of its connections: to subscribers, and to the log."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Self, final

from backplane.lowlevel import Parking, checkpoint, new_parking

from ._status import NodeEvent

logger: Final = logging.getLogger("backplane.bridge")


@final
class Events:
    """The events of a node, one after the other; see ``Node.events``."""

    def __init__(self, first: Iterable[NodeEvent]) -> None:
        self._waiting = deque(first)
        self._parkings: list[Parking] = []

    def add(self, event: NodeEvent) -> None:
        """One more has happened."""
        self._waiting.append(event)
        for parking in self._parkings:
            parking.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NodeEvent:
        if self._waiting:
            await checkpoint()
        parking = new_parking()
        self._parkings.append(parking)
        try:
            while not self._waiting:
                await parking.park()
            return self._waiting.popleft()
        finally:
            self._parkings.remove(parking)


@final
class News:
    """Those who want to hear which nodes come and go."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._subscribers: dict[object, Callable[[NodeEvent], object]] = {}

    def subscribe(self, hear: Callable[[NodeEvent], object]) -> Callable[[], None]:
        """Have a function hear each event; returns what ends that."""
        key = object()
        self._subscribers[key] = hear

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    @contextlib.contextmanager
    def events(self, first: Iterable[NodeEvent]) -> Iterator[Events]:
        """Hear them one after the other, those first that are given."""
        events = Events(first)
        unsubscribe = self.subscribe(events.add)
        try:
            yield events
        finally:
            unsubscribe()

    def tell(self, event: NodeEvent) -> None:
        """Tell all of it. What one of them raises is logged."""
        for hear in list(self._subscribers.values()):
            try:
                hear(event)
            except Exception:
                logger.exception("a subscriber of node %r failed for %r", self._node, event)


@final
class Hush:
    """Lets some lines of the log through, and counts the others: a stranger must not fill it."""

    def __init__(self, lines: int, period: float) -> None:
        self._lines = lines
        self._period = period
        self._since = -period
        self._said = 0
        self._left_out = 0

    def log(
        self,
        now: float,
        level: int,
        text: str,
        *args: object,
        exc_info: BaseException | None = None,
    ) -> None:
        """Write a line, if there have not been too many."""
        if now - self._since >= self._period:
            if self._left_out:
                logger.warning("%d lines like the next were left out", self._left_out)
            self._since, self._said, self._left_out = now, 0, 0
        if self._said < self._lines:
            self._said += 1
            logger.log(level, text, *args, exc_info=exc_info)
        else:
            self._left_out += 1


@final
class Attempts:
    """Logs attempts to connect that fail: the first of each kind, and then ever more rarely.

    Whoever tries for ever would else wait without a word for what cannot be.
    """

    def __init__(self, node: str, where: str) -> None:
        self._node = node
        self._where = where
        self._failed: Counter[type[Exception]] = Counter()

    def failed(self, error: Exception) -> None:
        """One more has, and there will be another."""
        kind = type(error)
        self._failed[kind] += 1
        count, all_ = self._failed[kind], self._failed.total()
        if count & (count - 1):  # neither the first, nor twice as many as when it was said last
            return
        text = str(error) or kind.__name__
        if self._where not in text:
            text = f"cannot connect with {self._where}: {text}"
        so_far = f" (after {all_} attempts)" if all_ > 1 else ""
        logger.warning("node %r: %s%s", self._node, text, so_far)
