"""What all kinds of supervisors have in common, seen from outside: the block around a run."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskStatus

from backplane import CascadeCrash, Device, Line, LinkMode
from backplane.lowlevel import on_alive

from ._child import Child, ChildInfo, ChildState, current_child, ends_program
from ._desk import Phase
from ._engine import Engine
from ._errors import NotRunningError, SpecError, SupervisorError
from ._events import Subscriber
from ._spec import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Exhausted,
    check_choice,
    check_count,
    check_number,
)
from ._tree import SupervisorInfo

E = TypeVar("E", bound=Engine)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a supervisor was told, the same for each of its runs."""

    name: str
    budget: Budget
    auto_shutdown: AutoShutdown
    backoff: Backoff | None
    exhausted: Exhausted
    stop_timeout: float
    zombie_limit: int | None
    subscribers: tuple[Subscriber, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecError(f"the name of a supervisor must be a string, not {self.name!r}")
        check_choice("auto_shutdown", self.auto_shutdown, AutoShutdown)
        check_choice("exhausted", self.exhausted, Exhausted)
        if self.backoff is not None:
            check_choice("backoff", self.backoff, Backoff)
        check_number("stop_timeout", self.stop_timeout, 0, allow_inf=True)
        if self.zombie_limit is not None:
            check_count("zombie_limit", self.zombie_limit)
        for subscriber in self.subscribers:
            if not callable(subscriber) or inspect.iscoroutinefunction(subscriber):
                raise SpecError(f"a subscriber must be a plain function, not {subscriber!r}")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many children a supervisor has."""

    specs: int
    """All, whether they run or not."""
    active: int
    """Those that run."""
    supervisors: int
    """Those that are supervisors themselves, running or not."""
    workers: int
    """The others."""


class BaseSupervisor(ABC, Generic[E]):
    """A supervisor, of whichever kind. It can run any number of times, one after another."""

    _settings: Settings
    _engine: E | None
    _block: AbstractAsyncContextManager[None] | None

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = None
        self._block = None

    @abstractmethod
    def _new_engine(self) -> E:
        """What does the work of one run."""

    @property
    def name(self) -> str:
        """What it was called."""
        return self._settings.name

    # -- the block -----------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if not await self._begin():
            raise NotRunningError(self.name, "start")
        return self

    async def _begin(self) -> bool:
        """Start all children and the block; False if it was told to stop meanwhile."""
        if self._engine is not None:
            raise SupervisorError(f"supervisor {self.name!r} is already running")
        parent = current_child()
        engine = self._engine = self._new_engine()
        if parent is not None:
            parent.subtree = self
        engine.begin()
        try:
            await engine.wait_for(Phase.RUNNING, Phase.STOPPING, Phase.ENDED)
            if engine.has_started and engine.error is None:  # even if it has ended since, and well
                guard = Device(f"{self.name} (block)")
                for device in (engine.alarm, engine.device):
                    if device.connected:
                        guard.link(device, LinkMode.MONITOR)
                block = guard.managed()
                await block.__aenter__()
                self._block = block
                return True
        except BaseException:
            await self._end(engine)
            raise
        await self._end(engine)
        if engine.error is not None:
            raise engine.error
        return False

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        engine, block = self._engine, self._block
        assert engine is not None
        assert block is not None
        self._block = None
        error = engine.error if isinstance(exc, Exception) else None
        failed = error is not None  # what the block raised will come of that
        try:
            await block.__aexit__(kind, exc, traceback)
        except CascadeCrash as crash:
            if crash.sender not in (engine.alarm.id, engine.device.id):
                raise
            failed = True
        finally:
            await self._end(engine)
        if engine.error is not None and (failed or exc is None or ends_program(engine.error)):
            raise engine.error

    async def _end(self, engine: E) -> None:
        engine.request_stop(None)
        try:
            await engine.wait_ended()
        finally:
            self._engine = None

    async def run(self, *, task_status: TaskStatus[Self] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until it ends by itself or is stopped, if only while it starts; then stop all.

        It is an async function like any other: run it in a task group, or give
        it (or the supervisor itself) to another supervisor as a child.

        Raises:
            StartError: If a child did not start. All were stopped again.
            MaxRestartsError: If it gave up.
        """
        async with AsyncExitStack() as stack:
            if await self._begin():
                stack.push_async_exit(self)
                task_status.started(self)
                await self.wait()

    async def wait(self) -> None:
        """Wait until it is about to end: by auto-shutdown, ``stop()``, or because it gave up."""
        await self._running("wait").wait_for(Phase.STOPPING, Phase.ENDED)

    async def stop(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - it is theirs
        """Stop all children and end; wait for that. Cancelling does not undo it.

        A child may call it, and is stopped with the others. The block goes on;
        ``run()`` and ``wait()`` return.

        Args:
            timeout: How many seconds are left to all below it, whatever their
                graces are; 0 kills them now. It also hurries a stop that is
                under way. By default, and at most, ``stop_timeout``.

        Raises:
            NotRunningError: It is not running.
            SelfCallError: A child is calling in its cleanup, for which the stop
                waits. It stops all the same; do not wait for that there.
        """
        engine = self._running("stop")
        if timeout is not None:
            check_number("timeout", timeout, 0, allow_inf=True)
        engine.request_stop(timeout)
        engine.refuse_own("wait for the stop", states=(ChildState.STOPPING,))
        await engine.wait_for(Phase.ENDED)

    def hurry(self, seconds: float) -> None:
        """Have all below it down within some seconds, if it is stopped. Safe in any thread."""
        if self._engine is not None:
            self._engine.hurry_soon(seconds)

    def _running(self, attempt: str) -> E:
        if self._engine is None:
            raise NotRunningError(self.name, attempt)
        return self._engine

    # -- looking -------------------------------------------------------------------

    def line(self) -> Line:
        """A Line to the Device of this run: linked ones hear when it ends, and why.

        Asked through it to shut down, the supervisor stops. The faults of those
        linked do not concern it: as in OTP, only its children do.
        """
        return self._running("give a line").device.line()

    def count_children(self) -> Counts:
        """How many children there are. Answered at once, whatever goes on."""
        children = list(self._running("count children").children.values())
        supervisors = sum(child.spec.is_supervisor for child in children)
        return Counts(
            specs=len(children),
            active=sum(child.runs for child in children),
            supervisors=supervisors,
            workers=len(children) - supervisors,
        )

    def which_children(self) -> list[ChildInfo]:
        """All children, the newest first, as in OTP. Answered at once, whatever goes on."""
        children = self._running("list children").children
        return [info_of(child) for child in reversed(list(children.values()))]

    def tree(self) -> SupervisorInfo:
        """This supervisor and all below it as plain data; ``str()`` of it is a drawing."""
        engine = self._engine
        return SupervisorInfo(
            name=self.name,
            kind=self._kind(),
            phase="ended" if engine is None else engine.phase.value,
            children=() if engine is None else tuple(map(info_of, list(engine.children.values()))),
            zombies=() if engine is None else engine.zombie_names,
        )

    @abstractmethod
    def _kind(self) -> str:
        """What ``tree`` says that it is."""

    def __repr__(self) -> str:
        phase = "not running" if self._engine is None else self._engine.phase.value
        return f"<{type(self).__name__} {self.name!r} {phase}>"


def info_of(child: Child) -> ChildInfo:
    """What is told of a child."""
    subtree = child.subtree
    return ChildInfo(
        id=child.spec.id,
        key=child.key,
        state=ChildState.STOPPED if child.is_alive and not child.runs else child.state,
        line=child.line,
        restarts=max(child.restarts, 0),
        started_at=child.started_at,
        value=child.value,
        is_supervisor=child.spec.is_supervisor,
        subtree=None if subtree is None or not child.is_alive else subtree.tree(),
    )


def as_spec(child: ChildSpec | BaseSupervisor[Any] | Callable[..., Awaitable[object]]) -> ChildSpec:
    """The specification of whatever may stand in a list of children."""
    if isinstance(child, ChildSpec):
        return child
    if isinstance(child, BaseSupervisor):
        return ChildSpec(child.name, child.run, is_supervisor=True)
    named = getattr(child, "func", child)  # of functools.partial
    return ChildSpec(getattr(named, "__name__", type(child).__name__), child)


def as_specs(children: Iterable[Any]) -> tuple[ChildSpec, ...]:
    """The specifications of a list of children, no id twice."""
    specs = tuple(map(as_spec, children))
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            raise SpecError(f"two children have the id {spec.id!r}")
        seen.add(spec.id)
    return specs


def alive() -> None:
    """Report that the calling child is alive; see ``ChildSpec.watchdog``.

    From the child's task, those that it has started and threads that have its context; from
    the thread of ``in_thread`` and the process of ``bridge.in_process`` alike. It returns at
    once, and may be called often. (A process does not repeat a report within 10 milliseconds.)

    Raises:
        LookupError: If no supervised child is calling.
    """
    try:
        report = on_alive.get()
    except LookupError:
        raise LookupError(
            "no supervised child is calling: only a child reports that it is alive"
        ) from None
    report()
