"""The static supervisor: children in an order, and a strategy."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ._base import BaseSupervisor, Settings, as_spec, as_specs, info_of
from ._child import ChildInfo
from ._errors import SpecError
from ._events import Subscriber, log_event
from ._spec import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Exhausted,
    Strategy,
    check_choice,
)
from ._static import StaticEngine


class Supervisor(BaseSupervisor[StaticEngine]):
    """Starts children in order, restarts them by a strategy, and stops them in reverse order.

    ``async with Supervisor([...]) as supervisor:`` runs it for a block: the
    children have started when the block is entered, and nothing of them is left
    when it is exited. If it gives up, the block is cancelled and raises
    ``MaxRestartsError``. ``await supervisor.run()`` runs it for good.

    It ends well when it is stopped, shut down by its parent, or by auto-shutdown.

    Args:
        children: In start order: ``ChildSpec``s, async functions (their name is
            the id), and supervisors.
        strategy: Who is stopped and started again when a child has to be.
        max_restarts: How many restarts are allowed within ``max_seconds``; one
            more, and the supervisor does what ``exhausted`` says. A restart of a
            whole group counts once.
        max_seconds: The width of that window, in seconds.
        auto_shutdown: Whether it ends when its significant children do.
        backoff: How long children wait before a restart; by default not at all.
        exhausted: What to do when a budget is spent; by default to give up.
        stop_timeout: Seconds within which all its children, and all below them,
            have to be stopped, whatever their own graces are.
        zombie_limit: How many children that could not be killed may run on; with one
            more it fails with ``ZombieLimitError``, which no restart mends. By
            default there is no limit.
        name: What to call it in reports, and its id as a child.
        subscribers: Who is told of each event; by default ``logging``.

    Raises:
        SpecError: If any of it makes no sense. Nothing was started.

    Example:
        >>> import anyio
        >>> async def worker(): await anyio.sleep_forever()
        >>> async def main():
        ...     async with Supervisor([worker], name="top") as supervisor:
        ...         print(supervisor.tree())
        >>> anyio.run(main)
        top (one_for_one, running)
        └─ worker running
    """

    def __init__(
        self,
        children: Iterable[ChildSpec | BaseSupervisor[Any] | Callable[..., Awaitable[object]]] = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
        backoff: Backoff | None = None,
        exhausted: Exhausted = Exhausted.ESCALATE,
        stop_timeout: float = math.inf,
        zombie_limit: int | None = None,
        name: str = "supervisor",
        subscribers: Iterable[Subscriber] = (log_event,),
    ) -> None:
        check_choice("strategy", strategy, Strategy)
        super().__init__(
            Settings(
                name=name,
                budget=Budget(max_restarts, max_seconds),
                auto_shutdown=auto_shutdown,
                backoff=backoff,
                exhausted=exhausted,
                stop_timeout=stop_timeout,
                zombie_limit=zombie_limit,
                subscribers=tuple(subscribers),
            )
        )
        self._strategy = strategy
        self._specs = tuple(self._checked(spec) for spec in as_specs(children))

    def _new_engine(self) -> StaticEngine:
        return StaticEngine(self._settings, self._specs, self._strategy)

    def _kind(self) -> str:
        return self._strategy.value

    def _checked(self, spec: ChildSpec) -> ChildSpec:
        if spec.significant and self._settings.auto_shutdown is AutoShutdown.NEVER:
            raise SpecError(
                f"child {spec.id!r} is significant, but the supervisor has auto_shutdown NEVER: "
                "its end would mean nothing"
            )
        return spec

    async def start_child(
        self, child: ChildSpec | BaseSupervisor[Any] | Callable[..., Awaitable[object]]
    ) -> ChildInfo:
        """Start one more child, after all others, and wait until it has started.

        Cancelling it before the supervisor has come to it leaves nothing; later,
        the child may be started all the same.

        Raises:
            AlreadyStartedError: A child of this id is running.
            AlreadyPresentError: A child of this id is known, and does not run.
            StartError: It did not start. It is not kept.
            SelfCallError: A child is calling that its supervisor waits for.
            NotRunningError: The supervisor is not running.
            SpecError: The specification makes no sense.
        """
        spec = self._checked(as_spec(child))
        engine = self._running("start a child")
        return info_of(await engine.submit("start a child", lambda _: engine.add(spec)))

    async def terminate_child(self, id: str) -> None:
        """Stop a child, and wait for its end. It stays known, unless it is temporary.

        That is no failure: it is not restarted, spends nothing and shuts nothing
        down. A child that waits for its restart no longer does.

        Raises:
            ChildNotFoundError: There is no such child.
            SelfCallError: A child is calling that its supervisor waits for.
            NotRunningError: The supervisor is not running.
        """
        engine = self._running("terminate a child")
        engine.find(id)
        await engine.submit("terminate a child", lambda _: engine.terminate(id))

    async def restart_child(self, id: str) -> ChildInfo:
        """Start a child that is stopped or parked, in its old place.

        Raises:
            ChildNotFoundError: There is no such child.
            ChildRunningError: It runs.
            ChildRestartingError: It waits for its restart.
            StartError: It did not start. It stays known.
            SelfCallError: A child is calling that its supervisor waits for.
            NotRunningError: The supervisor is not running.
        """
        engine = self._running("restart a child")
        engine.find(id)
        return info_of(await engine.submit("restart a child", lambda _: engine.restart_stopped(id)))

    async def delete_child(self, id: str) -> None:
        """Forget a child that is stopped or parked.

        Raises:
            As ``restart_child``, but for ``StartError``.
        """
        engine = self._running("delete a child")
        engine.find(id)
        await engine.submit("delete a child", lambda _: engine.delete(id))

    def get_child_spec(self, id: str) -> ChildSpec:
        """The specification of a child. Answered at once, whatever goes on.

        Raises:
            ChildNotFoundError: There is no such child.
            NotRunningError: The supervisor is not running.
        """
        return self._running("look a child up").find(id).spec

    def which_child(self, id: str) -> ChildInfo:
        """One child, as of now. Answered at once, whatever goes on.

        Raises:
            ChildNotFoundError: There is no such child.
            NotRunningError: The supervisor is not running.
        """
        return info_of(self._running("look a child up").find(id))
