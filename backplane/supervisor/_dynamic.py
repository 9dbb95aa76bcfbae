"""The dynamic supervisor: any number of children that know nothing of each other."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from backplane import DeviceID, Line
from backplane.lowlevel import checkpoint

from ._base import BaseSupervisor, Settings, as_spec, info_of
from ._child import Child, ChildInfo
from ._crowd import DynamicEngine
from ._desk import Request
from ._errors import SpecError
from ._events import Subscriber, log_event
from ._spec import AutoShutdown, Backoff, Budget, ChildSpec, Exhausted, check_count


class DynamicSupervisor(BaseSupervisor[DynamicEngine]):
    """Starts children at run time, any number of them, each restarted on its own.

    It begins with none. Children start, fail, restart and stop beside each
    other: a slow one holds up nobody. They are told apart by their Devices, so
    their ids need not be unique. One that has ended for good is forgotten.

    Args:
        max_children: How many there may be, those included that wait for a restart.
        args: Put before the arguments of every child, at each start.
        max_restarts: As for ``Supervisor``; all children share the budget, but
            for those that have one of their own.
        max_seconds: As for ``Supervisor``.
        backoff: As for ``Supervisor``.
        exhausted: As for ``Supervisor``.
        stop_timeout: As for ``Supervisor``. All children are stopped at once,
            each within its grace.
        zombie_limit: As for ``Supervisor``.
        name: As for ``Supervisor``.
        subscribers: As for ``Supervisor``.

    Raises:
        SpecError: If any of it makes no sense.

    Example:
        >>> import anyio
        >>> from backplane.supervisor import Restart
        >>> async def greet(name): print("hello", name)
        >>> async def main():
        ...     async with DynamicSupervisor(max_children=10) as supervisor:
        ...         await supervisor.start_child(
        ...             ChildSpec("greet", greet, ("you",), restart=Restart.TEMPORARY))
        ...         await anyio.wait_all_tasks_blocked()
        ...         print(supervisor.count_children().active)
        >>> anyio.run(main)
        hello you
        0
    """

    def __init__(
        self,
        *,
        max_children: int | None = None,
        args: tuple[Any, ...] = (),
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        backoff: Backoff | None = None,
        exhausted: Exhausted = Exhausted.ESCALATE,
        stop_timeout: float = math.inf,
        zombie_limit: int | None = None,
        name: str = "dynamic",
        subscribers: Iterable[Subscriber] = (log_event,),
    ) -> None:
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
        if max_children is not None:
            check_count("max_children", max_children)
        if not isinstance(args, tuple):
            raise SpecError(f"args must be a tuple, not {args!r}")
        self._max_children = math.inf if max_children is None else max_children
        self._args = args

    def _new_engine(self) -> DynamicEngine:
        return DynamicEngine(self._settings, self._max_children)

    def _kind(self) -> str:
        return "dynamic"

    async def start_child(
        self, child: ChildSpec | BaseSupervisor[Any] | Callable[..., Awaitable[object]]
    ) -> ChildInfo:
        """Start a child, and wait until it has started; others may be started meanwhile.

        One that answers with ``Ignore`` is not kept, and shown as stopped. If the
        call is cancelled, the child is stopped again.

        Raises:
            MaxChildrenError: There are as many as may be. Nothing was started.
            StartError: It did not start. It is not kept, and spends no restart.
            NotRunningError: The supervisor is not running.
            SpecError: The specification makes no sense.
        """
        spec = as_spec(child)
        if spec.significant:
            raise SpecError(
                f"child {spec.id!r} is significant, but a dynamic supervisor does not end by itself"
            )
        if self._args:
            spec = spec.but(args=self._args + spec.args)
        engine = self._running("start a child")
        started = Child(spec, engine)
        try:
            if engine.may_add_at_once(spec):
                engine.add_at_once(started)
                await checkpoint()
                return info_of(started)
            await engine.submit("start a child", lambda request: engine.add(started, request))
        except Exception:
            raise
        except BaseException:  # cancelled: nobody would know of it
            engine.put(Request(lambda _: engine.terminate(started)))
            raise
        return info_of(started)

    async def terminate_child(self, child: ChildInfo | Line | DeviceID) -> None:
        """Stop a child, and wait for its end. It is forgotten, and not restarted.

        A ``ChildInfo`` means the child, however often it was restarted since. A
        Line or DeviceID means that very life of it (also while it waits for the
        restart that follows), so that nobody ends what he has not seen.

        Raises:
            ChildNotFoundError: There is no such child, or that life of it is over.
            SelfCallError: A child is calling that is being started or stopped, and means itself.
            NotRunningError: The supervisor is not running.
        """
        engine = self._running("terminate a child")
        found = engine.find(child)
        engine.refuse_own("terminate a child", found)
        await engine.submit(
            "terminate a child", lambda request: engine.terminate(engine.find(child), request)
        )

    async def restart_child(self, child: ChildInfo) -> ChildInfo:
        """Start a child that is parked, and wait until it has started.

        Raises:
            ChildNotFoundError: There is no such child.
            ChildRunningError: It runs.
            ChildRestartingError: It waits for its restart.
            StartError: It did not start. What follows is as after any failed restart.
            NotRunningError: The supervisor is not running.
        """
        engine = self._running("restart a child")
        found = engine.find(child)
        await engine.submit("restart a child", lambda request: engine.start_again(found, request))
        return info_of(found)
