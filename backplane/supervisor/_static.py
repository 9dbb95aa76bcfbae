"""The run of a static supervisor: its children have an order, and a strategy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from backplane.lowlevel import checkpoint

from ._child import Child, ChildState, ends_program, fault_of
from ._desk import Stopping
from ._engine import Engine
from ._errors import (
    AlreadyPresentError,
    AlreadyStartedError,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    NotStartedError,
    StartError,
    StartTimeoutError,
)
from ._spec import ChildSpec, Restart, Strategy
from ._strategy import group_of

if TYPE_CHECKING:
    from ._base import Settings


@final
class StaticEngine(Engine):
    """Starts, stops and restarts in an order."""

    def __init__(
        self, settings: Settings, specs: tuple[ChildSpec, ...], strategy: Strategy
    ) -> None:
        self._strategy = strategy
        self._failed: set[str] = set()
        self._group_due = math.inf
        super().__init__(settings)
        for spec in specs:
            self.children[spec.id] = Child(spec, self)

    def check_caller(self, attempt: str) -> None:
        super().check_caller(attempt)
        self.refuse_own(attempt)  # it may be what this run waits for, and would wait for ever

    def is_alone(self, child: Child) -> bool:
        return self._strategy is Strategy.ONE_FOR_ONE

    async def start_all(self) -> None:
        for child in list(self.children.values()):
            if self._stop_requested:
                raise Stopping
            await self.start(child)
        if self._stop_requested:
            raise Stopping

    async def stop_all(self) -> None:
        for child in reversed(list(self.children.values())):
            await self.stop_child(child)

    def retire(self, child: Child) -> None:
        if child.spec.restart is Restart.TEMPORARY:
            self.children.pop(child.spec.id, None)

    async def start(self, child: Child) -> None:
        """Start a child, and wait until it has said so if it does, or has nothing to do.

        Raises:
            StartError: It did not; nothing of it is left.
        """
        self.launch(child)
        job, timeout = child.job, child.spec.start_timeout
        assert job is not None
        if not child.stands(ChildState.STARTING):
            if not job.starts_in_order:
                await checkpoint()  # so that the next one does not overtake it
            return
        in_time = await self.until(
            lambda: not child.stands(ChildState.STARTING) or job.done or self._stop_requested,
            child.started_at + timeout,
        )
        if not child.stands(ChildState.STARTING):
            return
        if job.done:
            _, exc = self.finish(child)
            if ends_program(exc):
                raise exc
            if child.ignored:
                self.retire(child)
                return
            raise self.start_failed(child, exc or NotStartedError(child.spec.id))
        await self.stop_child(child)
        if not in_time:
            raise self.start_failed(child, StartTimeoutError(child.spec.id, timeout))
        raise Stopping

    # -- restarts ------------------------------------------------------------------

    async def restart(self, child: Child) -> None:
        delay = self.delay_of(child)
        if self._strategy is Strategy.ONE_FOR_ONE:
            if delay == 0 and not child.spec.reports_start:
                self.launch(child)  # it cannot fail, and nothing comes after it
            elif delay == 0:
                await self._start_again(child)
            else:
                self.wait_before(child, delay)
            return
        self.wait_before(child, delay)
        self._join_group(child)
        if self._group_due <= self.now():
            await self._start_group()
        else:
            await self._stop_group()

    async def restart_due(self) -> bool:
        if self._strategy is Strategy.ONE_FOR_ONE:
            if not self._due:
                return False
            child = self._due.popleft()
            if child.state is ChildState.WAITING and child.due <= self.now():
                await self._start_again(child)
            return True
        self._due.clear()
        if self._group_due > self.now():
            return False
        await self._start_group()
        return True

    def _join_group(self, child: Child) -> None:
        """Have a child that waits restarted together with its group; they wait once."""
        self._group_due = child.due if not self._failed else max(child.due, self._group_due)
        self._failed.add(child.spec.id)
        due = self._group_due
        self.at(due, lambda: self._group_due == due)

    async def _stop_group(self) -> None:
        """Stop all that will be started again, the youngest first."""
        order = list(self.children)
        for child_id in reversed(group_of(self._strategy, order, self._failed)):
            child = self.children[child_id]
            if child.stands(ChildState.WAITING):
                continue
            await self.stop_child(child)
            if child.spec.restart is Restart.TEMPORARY:
                self.retire(child)
            elif child.state is not ChildState.PARKED:
                child.state = ChildState.WAITING

    async def _start_group(self) -> None:
        """Start all that is down for a restart, the eldest first."""
        await self._stop_group()  # after a failed try some of the group may run again
        self._failed.clear()
        self._group_due = math.inf
        for child in list(self.children.values()):
            if child.stands(ChildState.WAITING) and not await self._start_again(child):
                if child.stands(ChildState.PARKED):
                    continue  # the others can do without it
                return

    async def _start_again(self, child: Child) -> bool:
        """Start a child; if that fails, have the next turn try again."""
        try:
            await self.start(child)
        except StartError as error:
            reason = error.__cause__
            if self.may_restart(child, fault_of(reason), reason):
                self.wait_before(child, self.delay_of(child))
                if self._strategy is not Strategy.ONE_FOR_ONE:
                    self._join_group(child)
            return False
        return True

    # -- requests ------------------------------------------------------------------

    def find(self, id: str) -> Child:
        """The child of this id."""
        try:
            return self.children[id]
        except (KeyError, TypeError):
            raise ChildNotFoundError(self.name, id) from None

    async def add(self, spec: ChildSpec) -> Child:
        """Start a new child, after all others."""
        known = self.children.get(spec.id)
        if known is not None:
            kind = AlreadyStartedError if known.is_alive else AlreadyPresentError
            raise kind(self.name, spec.id)
        child = self.children[spec.id] = Child(spec, self)
        try:
            await self.start(child)
        except BaseException:
            del self.children[spec.id]
            raise
        return child

    async def terminate(self, id: str) -> None:
        """Stop a child, which stays known."""
        child = self.find(id)
        await self.stop_child(child)
        child.state = ChildState.STOPPED
        self._failed.discard(id)
        if child.spec.restart is Restart.TEMPORARY:
            self.retire(child)

    async def restart_stopped(self, id: str) -> Child:
        """Start a child that is stopped or parked."""
        child = self.find(id)
        self._check_down(child)
        await self.start(child)
        return child

    async def delete(self, id: str) -> None:
        """Forget a child that is stopped or parked."""
        child = self.find(id)
        self._check_down(child)
        del self.children[id]

    def _check_down(self, child: Child) -> None:
        if child.is_alive:
            raise ChildRunningError(self.name, child.spec.id)
        if child.state is ChildState.WAITING:
            raise ChildRestartingError(self.name, child.spec.id)
