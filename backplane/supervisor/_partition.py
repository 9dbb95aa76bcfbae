"""The partition supervisor: the same child several times, so that no single one is a bottleneck."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ._base import BaseSupervisor, Settings, as_spec, info_of
from ._child import ChildInfo
from ._errors import ChildNotFoundError, SpecError
from ._events import Subscriber, log_event
from ._spec import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Exhausted,
    Strategy,
    check_choice,
    check_count,
)
from ._static import StaticEngine


class PartitionSupervisor(BaseSupervisor[StaticEngine]):
    """Runs the same child several times, and tells which of them is meant by a key.

    Args:
        make: Is called once for each partition, with its number, when the
            supervisor is made; returns what may stand in a list of children,
            often a ``DynamicSupervisor``. The id of a partition is its number.
        partitions: How many; by default one for each CPU.
        strategy: As for ``Supervisor``, and so are all others.
        max_restarts: As for ``Supervisor``.
        max_seconds: As for ``Supervisor``.
        backoff: As for ``Supervisor``.
        exhausted: As for ``Supervisor``.
        stop_timeout: As for ``Supervisor``.
        zombie_limit: As for ``Supervisor``.
        name: As for ``Supervisor``.
        subscribers: As for ``Supervisor``.

    Raises:
        SpecError: If any of it makes no sense. Nothing was started.

    Example:
        >>> import anyio
        >>> from backplane.supervisor import DynamicSupervisor
        >>> async def main():
        ...     make = lambda n: DynamicSupervisor(name=f"sessions {n}")
        ...     async with PartitionSupervisor(make, 4) as sessions:
        ...         print(sessions.partition(6).value)
        >>> anyio.run(main)
        <DynamicSupervisor 'sessions 2' running>
    """

    def __init__(
        self,
        make: Callable[[int], ChildSpec | BaseSupervisor[Any] | Callable[..., Awaitable[object]]],
        partitions: int | None = None,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        backoff: Backoff | None = None,
        exhausted: Exhausted = Exhausted.ESCALATE,
        stop_timeout: float = math.inf,
        zombie_limit: int | None = None,
        name: str = "partitions",
        subscribers: Iterable[Subscriber] = (log_event,),
    ) -> None:
        if partitions is None:
            partitions = os.cpu_count() or 1
        check_count("partitions", partitions)
        if partitions == 0:
            raise SpecError("partitions must be 1 or more, not 0")
        check_choice("strategy", strategy, Strategy)
        super().__init__(
            Settings(
                name=name,
                budget=Budget(max_restarts, max_seconds),
                auto_shutdown=AutoShutdown.NEVER,
                backoff=backoff,
                exhausted=exhausted,
                stop_timeout=stop_timeout,
                zombie_limit=zombie_limit,
                subscribers=tuple(subscribers),
            )
        )
        self._strategy = strategy
        self._specs = tuple(_checked(as_spec(make(n)).but(id=str(n))) for n in range(partitions))
        self._open = partitions

    def _new_engine(self) -> StaticEngine:
        self._open = len(self._specs)
        return StaticEngine(self._settings, self._specs, self._strategy)

    def _kind(self) -> str:
        return "partition"

    @property
    def partitions(self) -> int:
        """How many partitions there are at the moment."""
        return self._open

    def partition(self, key: object) -> ChildInfo:
        """The partition that is meant by a key, as of now. Answered at once.

        A whole number means ``abs(key) % partitions``; anything else goes by its
        hash, which for strings differs from process to process.

        Raises:
            ChildNotFoundError: It was resized to nothing.
            NotRunningError: The supervisor is not running.
            TypeError: The key cannot be hashed.
        """
        engine = self._running("look a partition up")
        if self._open == 0:
            raise ChildNotFoundError(self.name, repr(key))
        number = abs(key) if isinstance(key, int) else hash(key)
        return info_of(engine.find(str(number % self._open)))

    async def resize(self, partitions: int) -> None:
        """Have only the first so many partitions run; the others are stopped, or started again.

        Keys are shared among those that run from the moment it is called.

        Raises:
            SpecError: That many it cannot have: it was not made with as many.
            StartError: One did not start. Those before it run.
            NotRunningError: The supervisor is not running.
            SelfCallError: A partition is calling that its supervisor waits for.
        """
        engine = self._running("resize")
        check_count("partitions", partitions)
        if partitions > len(self._specs):
            raise SpecError(
                f"supervisor {self.name!r} was made with {len(self._specs)} partitions: "
                f"it cannot have {partitions}"
            )
        while self._open > partitions:
            self._open -= 1
            await self._ask(engine.terminate, self._open)
        while self._open < partitions:
            await self._ask(engine.restart_stopped, self._open)
            self._open += 1

    async def _ask(self, fn: Callable[[str], Awaitable[object]], number: int) -> None:
        await self._running("resize").submit("resize", lambda _: fn(str(number)))


def _checked(spec: ChildSpec) -> ChildSpec:
    if spec.significant:
        raise SpecError(
            f"partition {spec.id} is significant, but a partition supervisor does not end by itself"
        )
    return spec
