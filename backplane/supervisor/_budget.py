"""How often restarts happened lately: pure arithmetic on times that are passed in."""

from __future__ import annotations

from collections import deque
from typing import final

from ._spec import Budget


@final
class Spending:
    """The restarts spent from one ``Budget``.

    More than ``max_restarts`` within ``max_seconds``, the bounds included, are
    too many; one that is refused is not counted. Only the latest ``max_restarts``
    times are kept: the oldest of them alone decides, so that a restart costs the
    same however many went before.
    """

    __slots__ = ("_budget", "_times")

    _budget: Budget
    _times: deque[float]

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._times = deque(maxlen=budget.max_restarts)

    def clear(self) -> None:
        """Forget all restarts."""
        self._times.clear()

    def spend(self, now: float) -> bool:
        """Record a restart at ``now`` (seconds, never going back); False if it is one too many."""
        times, budget = self._times, self._budget
        if len(times) == budget.max_restarts and (
            not times or now - times[0] <= budget.max_seconds
        ):
            return False
        times.append(now)
        return True
