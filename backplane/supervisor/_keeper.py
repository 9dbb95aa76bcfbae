"""What a supervisor's run does with one child: launch, ask to stop, kill, watch, report."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from backplane import Device, Fault
from backplane.lowlevel import Job, checkpoint

from ._child import Child, ChildState, ends_program, stack_of
from ._desk import Desk, Request
from ._errors import Ignore, StartError, UnresponsiveError, ZombieLimitError
from ._events import (
    ChildExited,
    ChildKilled,
    ChildStarted,
    ChildStartFailed,
    ChildUnresponsive,
    Event,
    publish,
    wants_starts,
)
from ._spec import BRUTAL_KILL, Restart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._base import Settings

_LATE: Final = 0.1
"""A look at a child that comes later than by this part of its watchdog's time was held up."""


class Keeper(Desk):
    """The part of a run that handles children one by one, and decides nothing."""

    _ended: deque[tuple[Child, Job | None]]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.name)
        self.settings: Final = settings
        self.device: Final = Device(settings.name)
        self.error: BaseException | None = None
        """Why the run failed, once it has ended."""
        self.zombies: list[Job | threading.Thread] = []
        self._thread = threading.get_ident()
        self.children: dict[Any, Child] = {}
        """In start order."""
        self._hurries: deque[float] = deque()
        self._stop_requested = False
        self._stop_by = math.inf
        """When all children have to be down, if it is being stopped."""
        self._silent = not wants_starts(settings.subscribers)

    # -- starting ------------------------------------------------------------------

    def launch(self, child: Child) -> None:
        """Start a child's task, and watch over it."""
        child.launch(self.now(), f"{self.name}/{child.spec.id}")
        if child.state is ChildState.RUNNING:
            self.tell_started(child)
        if child.spec.watchdog is not None:
            self._watch(child, child.spec.watchdog)
            self._parking.wake()  # it may be sleeping until a later time

    def start_failed(self, child: Child, reason: BaseException) -> StartError:
        """Tell that a child did not start; return the error that says so."""
        self.tell(ChildStartFailed(self.name, child.spec.id, reason))
        error = StartError(self.name, child.spec.id)
        error.__cause__ = reason
        return error

    def tell_started(self, child: Child) -> None:
        """Tell that a child has started, if anybody would look at it."""
        if not self._silent:
            assert child.device is not None
            self.tell(ChildStarted(self.name, child.spec.id, child.device.id, child.restarts))

    # -- ends ----------------------------------------------------------------------

    def finish(self, child: Child) -> tuple[Fault | None, BaseException | None]:
        """Note that a child's task has ended; return its fault, and what it raised."""
        job, device = child.job, child.device
        assert job is not None
        assert device is not None
        if isinstance(job.exception, Ignore) and not child.spec.reports_start:
            child.ignored = True
        fault = child.fault
        device.disconnect(fault)  # if it never got so far as to be managed
        self.cancel_timer(child.timer)
        self.cancel_timer(child.watch)
        starts = child.state is ChildState.STARTING and not child.ignored
        unexpected = (
            fault is None
            and child.spec.restart is Restart.PERMANENT
            and not (child.stopping or child.ignored)
        )
        child.job = None
        child.state = ChildState.STOPPED
        if starts:
            pass  # it is told that it did not start
        elif fault is not None or unexpected or not self._silent:
            self.tell(
                ChildExited(self.name, child.spec.id, device.id, fault, child.stopping, unexpected)
            )
        return fault, job.exception

    def finish_stopped(self, child: Child) -> None:
        """Note that a child has ended which was asked to."""
        _, exc = self.finish(child)
        if ends_program(exc):
            self.error = self.error or exc
            self._stop_requested = True

    # -- stopping ------------------------------------------------------------------

    def ask_to_stop(self, child: Child) -> None:
        """Ask a child to end, and set how long it may take."""
        job, device = child.job, child.device
        if child.state is ChildState.STOPPING:
            child.deadline = min(child.deadline, self._stop_by)
            return
        self.cancel_timer(child.timer)
        if job is None:
            if child.state is ChildState.WAITING:
                child.state = ChildState.STOPPED
            return
        assert device is not None
        child.state = ChildState.STOPPING
        child.stopping = not job.done
        grace = child.spec.grace
        now = self.now()
        child.deadline = now if grace is BRUTAL_KILL else min(now + grace, self._stop_by)
        if child.subtree is not None and child.deadline < math.inf:
            child.subtree.hurry(child.deadline - now)
        if grace is not BRUTAL_KILL and not job.done:
            device.line().shutdown(self.device.id)

    async def stop_child(self, child: Child) -> None:
        """Stop a child, within its grace, and wait for its end."""
        self.ask_to_stop(child)
        await self.see_stopped(child)

    async def see_stopped(self, child: Child) -> None:
        """Wait until a child that was asked to end has done so; kill it if it takes too long."""
        job = child.job
        if job is None:
            return
        if not job.done:
            await checkpoint()  # most end at once, and a turn costs less than a timer
        while not job.done:
            if child.deadline <= self.now():  # which may have been moved meanwhile
                await self.kill(child, job)
                break
            await self.sleep_until(child.deadline)
        self.finish_stopped(child)

    def hurry_soon(self, seconds: float) -> None:
        """Have it hurry, in its own loop, whose clock nobody else has. Safe in any thread."""
        self._hurries.append(seconds)
        self._parking.wake()

    def hurry(self, seconds: float) -> None:
        """Have all children down within some seconds, once they are being stopped."""
        deadline = self.now() + seconds
        if deadline >= self._stop_by:
            return
        self._stop_by = deadline
        for child in self.children.values():
            child.deadline = min(child.deadline, deadline)
            if child.subtree is not None and child.is_alive:
                child.subtree.hurry(seconds)

    async def sleep_until(self, due: float) -> None:
        await super().sleep_until(due)
        while self._hurries:
            self.hurry(self._hurries.popleft())

    async def kill(self, child: Child, job: Job) -> None:
        """Kill a child's task, or disown it if that cannot be done."""
        device, thread = child.device, child.thread
        assert device is not None
        zombie: Job | threading.Thread | None = None if await job.kill() else job
        if thread is not None:
            zombie = thread if thread.is_alive() else None
        if zombie is not None:
            self.zombies.append(zombie)
        self.tell(ChildKilled(self.name, child.spec.id, device.id, zombie=zombie is not None))

    @property
    def zombie_names(self) -> tuple[str, ...]:
        """The names of the tasks and threads that could not be killed and still run."""
        self.zombies = [zombie for zombie in self.zombies if _runs(zombie)]
        return tuple(zombie.name for zombie in self.zombies)

    def adopt(self, zombies: Iterable[Job | threading.Thread]) -> None:
        """Take over what could not be killed in a tree below."""
        self.zombies += zombies

    def check_zombies(self) -> None:
        """Raise if there are more than are allowed."""
        limit = self.settings.zombie_limit
        if limit is not None and len(self.zombies) > limit:
            names = self.zombie_names
            if len(names) > limit:
                raise ZombieLimitError(self.name, limit, names)

    # -- watching ------------------------------------------------------------------

    def note_alive(self, child: Child) -> None:
        """Take notice that a child has reported that it is alive, from whatever thread."""
        if threading.get_ident() == self._thread:
            child.alive_at = self.now()
        else:
            self.put(Request(lambda _: self._note_alive(child)))

    async def _note_alive(self, child: Child) -> None:
        child.alive_at = self.now()

    def _watch(self, child: Child, seconds: float) -> None:
        job = child.job
        assert job is not None

        def look_at(due: float) -> None:
            child.watch = self.at(due, lambda: look(due))

        def look(due: float) -> bool:
            if child.job is not job or child.stopping:
                return False
            now = self.now()
            late, silent_at = now - due, child.alive_at + seconds
            if silent_at > now:
                look_at(silent_at)
                return False
            if late > seconds * _LATE:
                # It is this loop that stood still: what was reported meanwhile may lie unread.
                look_at(now + min(late, seconds))
                return False
            assert child.device is not None
            stack = stack_of(child)
            self.tell(ChildUnresponsive(self.name, child.spec.id, child.device.id, seconds, stack))
            self.put(Request(lambda _: self._replace(child, job, seconds, stack)))
            return True

        look_at(child.alive_at + seconds)

    async def _replace(self, child: Child, job: Job, seconds: float, stack: str) -> None:
        await self.put_down(child, job)
        job.exception = UnresponsiveError(child.spec.id, seconds, stack)

    async def put_down(self, child: Child, job: Job) -> None:
        """Kill a child, if it is still that job, and have its end seen to like any other."""
        if child.job is job:
            await self.kill(child, job)
            self._ended.append((child, job))

    # -- telling -------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Tell the subscribers."""
        publish(self.settings.subscribers, event)


def _runs(zombie: Job | threading.Thread) -> bool:
    return not zombie.done if isinstance(zombie, Job) else zombie.is_alive()
