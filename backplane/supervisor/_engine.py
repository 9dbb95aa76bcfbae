"""The run of a supervisor: one task that starts, watches, restarts and stops children.

The engine is a job of its own, so that nothing that happens to the code around
a supervisor's block can take it away from its children; and it decides alone,
so that each decision is made on a state that holds still. What can be answered
by looking is answered at once. While it sleeps with nothing to do, the two
things that need no decision are done without waking it: a plain restart of one
child, and the start of a dynamic one.
"""

from __future__ import annotations

import contextvars
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final, assert_never

from backplane import Crash, Device, Failed, Fault, Killed, Message, Shutdown
from backplane.lowlevel import Guard, Job, current_job, start_job

from ._budget import Spending
from ._child import Child, ChildState, current_child, ends_program, is_permanent
from ._desk import Phase, Stopping
from ._errors import Ignore, MaxRestartsError, Permanent, SelfCallError
from ._events import ChildParked, ChildWaiting, SupervisorGaveUp
from ._keeper import Keeper
from ._spec import Exhausted, Restart
from ._strategy import ends_supervisor, wants_restart

if TYPE_CHECKING:
    from ._base import Settings


_PATIENCE = 100
"""How often a run that stops its children goes on with that after somebody has cancelled it."""


class Engine(Keeper, ABC):
    """One run of a supervisor, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.alarm: Final = Device(f"{settings.name} (alarm)")
        """Ends as soon as the run has failed, before its children have stopped."""
        self.has_started = False
        """All children have started once."""
        self.finished = False
        """It is to end well: a significant child did, or a budget is spent."""
        self._ended: deque[tuple[Child, Job | None]] = deque()
        self._idle = False
        """It sleeps, and nothing is to be done."""
        self._spending = Spending(settings.budget)
        self._due: deque[Child] = deque()
        self._parent: Final = current_child()

    def begin(self) -> None:
        """Start the task."""
        self.job = start_job(self._main, self._on_engine_end, f"{self.name} (supervisor)", self)

    # -- what others call ----------------------------------------------------------

    def child_ended(self, child: Child) -> None:
        """A child's task has ended."""
        job = child.job
        if (
            self.is_idle
            and job is not None
            and self.is_alone(child)
            and self._context.run(self._restart_at_once, child, job)
        ):
            return
        self._ended.append((child, job))
        if job is not None and ends_program(job.exception):
            self.error = self.error or job.exception
            self._stop_requested = True  # whatever it is waiting for
        self._parking.wake()

    def _restart_at_once(self, child: Child, job: Job) -> bool:
        """Restart a child from where its end is heard, if there is nothing to decide.

        The run is idle and has not been woken: so nothing comes before this.
        """
        spec, exc = child.spec, job.exception
        if (
            child.state is not ChildState.RUNNING
            or job.killed
            or spec.reports_start
            or spec.restart is Restart.TEMPORARY
            or not isinstance(exc, Exception)
            or isinstance(exc, (ExceptionGroup, Permanent, Crash, Ignore))
            or (spec.backoff or self.settings.backoff) is not None
            or not (child.spending or self._spending).spend(self.now())
        ):
            return False
        self.finish(child)
        self.relaunch(child)
        return True

    def relaunch(self, child: Child) -> None:
        """Start a child again at once."""
        self.launch(child)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done before what comes now."""
        return self._idle and not (self._ended or self._requests or self._stop_requested)

    def child_started(self, child: Child) -> None:
        """A child has said that it has started."""
        self.tell_started(child)
        self._parking.wake()

    def request_stop(self, timeout: float | None) -> None:
        """Have it stop all children, and end, within some seconds. Safe in any thread."""
        self._stop_requested = True
        self.hurry_soon(math.inf if timeout is None else timeout)

    def refuse_own(
        self,
        attempt: str,
        only: Child | None = None,
        states: tuple[ChildState, ...] = (ChildState.STARTING, ChildState.STOPPING),
    ) -> None:
        """Raise if a child is calling (a certain one) that is being started or stopped."""
        job = current_job()
        while job is not None:
            child = job.owner
            if (
                isinstance(child, Child)
                and child.owner is self
                and child.state in states
                and only in (None, child)
            ):
                raise SelfCallError(self.name, child.spec.id, attempt)
            job = job.parent

    # -- the run -------------------------------------------------------------------

    def _hear(self, message: Message | None) -> bool:
        """Be asked to stop, through the Device."""
        if isinstance(message, Shutdown):
            self.request_stop(None)
        return False

    async def _main(self) -> None:
        guard = Guard(self.device, self._hear)
        guard.enter()
        try:
            await self._run()
        finally:
            await guard.leave(None)

    async def _run(self) -> None:
        self._context = contextvars.copy_context()
        try:
            await self.start_all()
            self.has_started = True
            self.enter(Phase.RUNNING)
            while not (self.finished or self._stop_requested):
                await self._turn()
        except Stopping:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever holds the block gets it
            self.error = self.error or error
        self.hurry(self.settings.stop_timeout)
        self.enter(Phase.STOPPING)
        self.alarm.disconnect(None if self.error is None else Failed(self.error))
        for _ in range(_PATIENCE):
            try:
                await self.stop_all()
                break
            except BaseException as error:  # noqa: BLE001 - as above
                self.error = self.error or error
                if self.job.killed:
                    break

    def _on_engine_end(self, job: Job) -> None:
        if job.killed:
            self.device.disconnect(Killed())
            for child in self.children.values():
                if child.job is not None:
                    self._disown(child, child.job)
        if self._parent is not None:
            self._parent.owner.adopt(self.zombies)
        self.device.disconnect(None if self.error is None else Failed(self.error))
        self.alarm.disconnect()
        self.close()

    def _disown(self, child: Child, job: Job) -> None:
        """Tell of a child that was killed together with its supervisor, or will never be."""
        if not job.done:
            job.killed = True
            self.zombies.append(job)  # unless it ends in the next turns
        self.finish(child)

    async def _turn(self) -> None:
        """Do the next thing that is to be done; sleep if there is nothing."""
        if self._ended:
            child, job = self._ended.popleft()
            if job is child.job and job is not None:
                await self.after_end(child)
            if self.zombies:
                self.check_zombies()
        elif self._requests:
            await self.serve_request()
            self.check_zombies()
        elif not (self.fire_timers() | await self.restart_due()):
            self._idle = True
            try:
                await self.sleep()
            finally:
                self._idle = False

    # -- ends and restarts ---------------------------------------------------------

    async def after_end(self, child: Child) -> None:
        """Decide what follows from a child that has ended by itself."""
        spec = child.spec
        fault, exc = self.finish(child)
        if not child.ignored and wants_restart(spec.restart, ended_well=fault is None):
            if self.may_restart(child, fault, exc):
                await self.restart(child)
        else:
            self.retire(child)
            self._is_gone(child)

    def _is_gone(self, child: Child) -> None:
        """End well, if that is what a child's end for good means."""
        if child.spec.significant:
            left = any(
                other.spec.significant and (other.is_alive or other.state is ChildState.WAITING)
                for other in reversed(self.children.values())
            )
            if ends_supervisor(self.settings.auto_shutdown, left):
                self.finished = True

    def may_restart(self, child: Child, fault: Fault | None, exc: BaseException | None) -> bool:
        """Spend a restart; if none is left, do what the policy says."""
        spec, settings = child.spec, self.settings
        now, shared = self.now(), False
        if is_permanent(fault):
            reason = "it says that a restart cannot mend what is wrong"
        else:
            own = child.spending
            if (own or self._spending).spend(now):
                return True
            budget = settings.budget if spec.budget is None else spec.budget
            shared = own is None
            whose = "restarts of all children" if own is None else "restarts"
            reason = f"more than {budget.max_restarts} {whose} within {budget.max_seconds:g} s"
            if fault is None:
                reason += "; it ended well: should it be TRANSIENT or TEMPORARY?"
        match spec.exhausted or settings.exhausted:
            case Exhausted.PARK:
                child.state = ChildState.PARKED
                if shared:
                    self._spending.clear()  # its restarts are no burden on the others
                self.tell(ChildParked(self.name, spec.id, reason))
                self._is_gone(child)
                return False
            case Exhausted.STOP:
                self.tell(SupervisorGaveUp(self.name, spec.id, reason))
                self.finished = True
                return False
            case Exhausted.ESCALATE:
                self.tell(SupervisorGaveUp(self.name, spec.id, reason))
                raise MaxRestartsError(self.name, spec.id, reason) from exc
            case never:
                assert_never(never)

    def delay_of(self, child: Child) -> float:
        """How long a child has to wait before its restart."""
        backoff = child.spec.backoff or self.settings.backoff
        if backoff is None:
            return 0.0
        if self.now() - child.started_at >= backoff.reset_after:
            child.attempt = 0
        child.attempt += 1
        return backoff.delay(child.attempt)

    def wait_before(self, child: Child, delay: float) -> None:
        """Put a child into its wait."""
        child.state = ChildState.WAITING
        child.due = due = self.now() + delay
        if delay > 0:
            self.tell(ChildWaiting(self.name, child.spec.id, delay, child.attempt))

        def fire() -> bool:
            if child.state is not ChildState.WAITING or child.due != due:
                return False
            self._due.append(child)
            return True

        child.timer = self.at(due, fire)

    # -- what kinds of supervisors differ in ----------------------------------------

    @abstractmethod
    def is_alone(self, child: Child) -> bool:
        """Whether a restart of this child concerns no other."""

    @abstractmethod
    async def start_all(self) -> None:
        """Start the first children."""

    @abstractmethod
    async def stop_all(self) -> None:
        """Stop all children; none of them is left afterwards, but for zombies."""

    @abstractmethod
    async def restart(self, child: Child) -> None:
        """Start again what has to be, now or later, since a child has ended."""

    @abstractmethod
    async def restart_due(self) -> bool:
        """Start what has waited long enough; tell whether anything was done."""

    @abstractmethod
    def retire(self, child: Child) -> None:
        """Forget a child that has ended for good, if it is of the kind that is forgotten."""
