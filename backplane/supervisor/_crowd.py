"""The run of a dynamic supervisor: children that start, fail and stop beside each other."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, final

from backplane import DeviceID, Line

from ._child import Child, ChildInfo, ChildState, fault_of
from ._desk import Phase, Request
from ._engine import Engine
from ._errors import (
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    MaxChildrenError,
    NotRunningError,
    NotStartedError,
    StartTimeoutError,
)

if TYPE_CHECKING:
    from ._base import Settings
    from ._spec import ChildSpec


@final
class DynamicEngine(Engine):
    """Waits for no child: whoever asked for a start or a stop has his request held instead."""

    def __init__(self, settings: Settings, max_children: float) -> None:
        super().__init__(settings)
        self._max_children = max_children
        self._lives: dict[DeviceID, DeviceID] = {}
        """The keys of those that were started again, by their Device of the moment."""
        self._late: set[Child] = set()
        """Those that are stopped since they did not start in time."""
        self._starting: dict[Child, Request] = {}
        """Who waits for a child to get ready."""
        self._stopping: dict[Child, list[Request]] = {}
        """Who waits for a child to be down."""

    async def start_all(self) -> None:
        pass

    async def stop_all(self) -> None:
        children = list(reversed(self.children.values()))
        for child in children:
            self.ask_to_stop(child)
        for child in sorted(children, key=lambda child: child.deadline):
            await self.see_stopped(child)
            self._forget(child)

    def close(self) -> None:
        for child in list(self.children.values()):
            self._forget(child)  # if the run was killed
        super().close()

    def find(self, ref: ChildInfo | Line | DeviceID) -> Child:
        """The child that is meant."""
        if not isinstance(ref, ChildInfo | Line | DeviceID):
            raise TypeError(
                "a dynamic supervisor knows its children by ChildInfo, Line or DeviceID, "
                f"not by {ref!r}: see which_children()"
            )
        if isinstance(ref, ChildInfo):
            child = self.children.get(ref.key)
        else:
            life = ref.id if isinstance(ref, Line) else ref
            child = self.children.get(self._lives.get(life, life))
            if child is not None and (child.device is None or child.device.id != life):
                child = None  # that life is over
        if child is None:
            raise ChildNotFoundError(self.name, ref.id if isinstance(ref, ChildInfo) else repr(ref))
        return child

    # -- starting ------------------------------------------------------------------

    async def add(self, child: Child, request: Request) -> None:
        """Start a new child; the request is held until it is ready."""
        if len(self.children) >= self._max_children:
            raise MaxChildrenError(self.name, int(self._max_children))
        self._launch(child)
        assert child.device is not None
        child.key = child.device.id
        self.children[child.key] = child
        self._hold_start(child, request)

    async def start_again(self, child: Child, request: Request) -> None:
        """Start a child that is parked; the request is held until it is ready."""
        if self.children.get(child.key) is not child:
            raise ChildNotFoundError(self.name, child.spec.id)
        if child.is_alive:
            raise ChildRunningError(self.name, child.spec.id)
        if child.state is ChildState.WAITING:
            raise ChildRestartingError(self.name, child.spec.id)
        self._relaunch(child)
        self._hold_start(child, request)

    def _hold_start(self, child: Child, request: Request) -> None:
        if child.state is ChildState.STARTING:
            request.held = True
            self._starting[child] = request

    def _launch(self, child: Child) -> None:
        self.launch(child)
        timeout = child.spec.start_timeout
        if child.state is not ChildState.STARTING or timeout == math.inf:
            return

        def fire() -> bool:  # unless it has started, or ended, which cancels this
            self._late.add(child)
            self._ask_to_stop(child)
            return True

        child.timer = self.at(child.started_at + timeout, fire)

    def may_add_at_once(self, spec: ChildSpec) -> bool:
        """Whether a new child is simply started: nothing comes before it, and it says nothing."""
        return (
            self.is_idle
            and not spec.reports_start
            and self.phase is Phase.RUNNING
            and threading.get_ident() == self._thread
        )

    def add_at_once(self, child: Child) -> None:
        """Start a new child, from wherever this is called in the run's loop."""
        if len(self.children) >= self._max_children:
            raise MaxChildrenError(self.name, int(self._max_children))
        self._context.run(self.launch, child)
        assert child.device is not None
        child.key = child.device.id
        self.children[child.key] = child

    def is_alone(self, child: Child) -> bool:
        return True

    def relaunch(self, child: Child) -> None:
        self._relaunch(child)

    def _relaunch(self, child: Child) -> None:
        self._end_life(child)
        self._launch(child)
        assert child.device is not None
        assert isinstance(child.key, DeviceID)
        self._lives[child.device.id] = child.key

    def _end_life(self, child: Child) -> None:
        assert child.device is not None
        self._lives.pop(child.device.id, None)

    def child_started(self, child: Child) -> None:
        self.cancel_timer(child.timer)
        super().child_started(child)
        self._answer_start(child, None)

    def _answer_start(self, child: Child, error: BaseException | None) -> None:
        request = self._starting.pop(child, None)
        if request is not None:
            request.error = error
            request.finish()

    # -- ends and restarts ---------------------------------------------------------

    async def after_end(self, child: Child) -> None:
        if child.state is ChildState.STOPPING:
            self.finish_stopped(child)
            if child in self._late:
                await self._start_failed(
                    child, StartTimeoutError(child.spec.id, child.spec.start_timeout)
                )
            else:
                self._forget(child)
        elif child.state is ChildState.STARTING:
            _, exc = self.finish(child)
            if child.ignored:
                self._answer_start(child, None)
                self._forget(child)
            else:
                await self._start_failed(child, exc or NotStartedError(child.spec.id))
        else:
            await super().after_end(child)

    async def _start_failed(self, child: Child, reason: BaseException) -> None:
        self._late.discard(child)
        error = self.start_failed(child, reason)
        self._answer_start(child, error)
        if child.restarts == 0:
            self._forget(child)
        elif self.may_restart(child, fault_of(reason), reason):
            await self.restart(child)

    async def restart(self, child: Child) -> None:
        delay = self.delay_of(child)
        if delay > 0:
            self.wait_before(child, delay)
        else:
            self._relaunch(child)

    async def restart_due(self) -> bool:
        any_due = bool(self._due)
        while self._due:
            self._relaunch(self._due.popleft())
        return any_due

    def retire(self, child: Child) -> None:
        self._forget(child)

    def _forget(self, child: Child) -> None:
        self.children.pop(child.key, None)
        self._end_life(child)
        self._late.discard(child)
        if child in self._starting:
            stops = self.phase is not Phase.RUNNING
            self._answer_start(
                child,
                NotRunningError(self.name, "start a child")
                if stops
                else self.start_failed(child, NotStartedError(child.spec.id)),
            )
        for request in self._stopping.pop(child, ()):
            request.finish()

    # -- stopping ------------------------------------------------------------------

    async def terminate(self, child: Child, request: Request | None = None) -> None:
        """Stop a child; the request is held until it is down."""
        if self.children.get(child.key) is not child:
            return
        if not child.is_alive:
            child.state = ChildState.STOPPED
            self._forget(child)
            return
        if request is not None:
            request.held = True
            self._stopping.setdefault(child, []).append(request)
        self._late.discard(child)
        if not child.stands(ChildState.STOPPING):
            self._ask_to_stop(child)

    def _ask_to_stop(self, child: Child) -> None:
        self.ask_to_stop(child)
        job = child.job
        assert job is not None

        def fire() -> bool:  # unless it has ended, which cancels this
            self.put(Request(lambda _: self.put_down(child, job)))
            return True

        if child.deadline < math.inf:
            child.timer = self.at(child.deadline, fire)
