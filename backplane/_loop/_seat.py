"""What the event loops have in common: seats, which can be woken from anywhere, and jobs.

A *seat* is a task's place in its loop. It can be woken from anywhere: from the
same loop at once; from another loop or thread, and from a finalizer, through
the loop's own thread-safe queue. (A finalizer may run in the middle of the
loop's bookkeeping: trio copies its run queue and clears it in two steps, and a
task put there in between is never run.) There are two kinds of seats:

* ``Parking``: the task sleeps in it until it is woken.
* ``Scope``: the task is at work; a wake calls a function, in the task's own
  loop, which may cancel the work.

A *job* is a task that somebody else started and watches over, and which can be
killed where the language permits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import FrameType


class Seat(ABC):
    """A task's place in its event loop, which can be woken from anywhere."""

    __slots__ = ("_called",)

    _called: bool
    """A call from elsewhere is on its way; more would change nothing."""

    def wake(self) -> None:
        """Run ``_on_wake`` in the task's loop: now, if that loop is calling."""
        if self._is_here():
            self._on_wake()
        else:
            self.wake_soon()

    def wake_soon(self) -> None:
        """Run ``_on_wake`` in the task's loop, soon. Safe in any thread and any finalizer."""
        if not self._called:
            self._called = True
            self._call_soon(self._answer)

    def _answer(self) -> None:
        self._called = False  # first, so that who comes after this look calls again
        self._on_wake()

    @abstractmethod
    def _is_here(self) -> bool:
        """Whether the calling code runs in the task's loop."""

    @abstractmethod
    def _call_soon(self, fn: Callable[[], None]) -> None:
        """Have the task's loop call ``fn``; do nothing if it has closed."""

    @abstractmethod
    def _on_wake(self) -> None:
        """What a wake does. Always runs in the task's loop."""


class Parking(Seat):
    """Where one task sleeps until it is woken. A wake that comes early is kept."""

    __slots__ = ()

    @abstractmethod
    async def park(self) -> None:
        """Sleep until woken. May wake for nothing; cancelling it loses nothing."""

    @abstractmethod
    def rest(self) -> Awaitable[object]:
        """As ``park``, at less cost, for those who look at what they wait for before each sleep.

        A wake that came before is not kept. Await it at once.
        """

    @abstractmethod
    async def park_until(self, deadline: float) -> None:
        """Sleep until woken, or until a time of the loop's clock."""


class Scope(Seat):
    """A piece of work in the current task that can be cancelled on its own.

    ``wake`` calls the function that it was made with.
    """

    __slots__ = ()

    _watcher: Callable[[], None]

    def _on_wake(self) -> None:
        self._watcher()

    @abstractmethod
    def enter(self) -> None:
        """Start the work."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the work. Call it once, in the task's loop, between enter and exit."""

    @abstractmethod
    def exit(self, exc: BaseException | None) -> BaseException | None:
        """End the work, which raised ``exc``; return what is left of that.

        A cancellation that ``cancel`` caused is taken out; one that came from
        outside, or any other exception, is left.
        """

    @abstractmethod
    def is_cancelled(self) -> bool:
        """Whether the task is being cancelled since ``enter``, by ``cancel`` or from outside."""

    @property
    @abstractmethod
    def has_unmet(self) -> bool:
        """Whether, after ``exit``, the cancellation may still hit the task: see ``meet``."""

    @abstractmethod
    async def meet(self) -> BaseException | None:
        """Wait for the cancellation that the work has not met; return one from outside."""


class Alarm(ABC):
    """A function that is called once, in the loop that set the alarm, not before its time."""

    __slots__ = ("due",)

    due: float
    """When, on the loop's clock."""

    @abstractmethod
    def __init__(self, due: float, fn: Callable[[], object]) -> None: ...

    @abstractmethod
    def cancel(self) -> bool:
        """Have it not called; False if it was called, or cancelled, already."""


_job: ContextVar[Job | None] = ContextVar("backplane.job", default=None)


class Job(ABC):
    """A task that runs one async function for somebody else, who can cancel and kill it.

    Its owner keeps it: it belongs to no task group, is cancelled by nobody else,
    and lets no exception out. When it has ended, in whatever way, ``on_end(job)``
    is called, in its loop, once. All methods are for the loop that it runs in.

    Jobs nest: a job that is started from inside another, or from a task that
    the other has started, is its descendant.
    """

    __slots__ = ("__weakref__", "_on_end", "done", "exception", "killed", "name", "owner", "parent")

    starts_in_order = True
    """Whether jobs take their first steps in the order in which they were started."""

    name: str
    """What the task is called."""
    owner: object
    """Whatever its starter wants to find again from inside, through ``current_job``."""
    parent: Job | None
    """The job from inside which this one was started."""
    done: bool
    """Whether it has ended, or was given up after a kill."""
    killed: bool
    """Whether ``kill`` was called."""
    exception: BaseException | None
    """What its function raised, once it has ended."""

    def __init__(self, on_end: Callable[[Job], None], name: str, owner: object) -> None:
        self.name = name
        self.owner = owner
        self.parent = _job.get()
        self.done = False
        self.killed = False
        self.exception = None
        self._on_end = on_end

    @abstractmethod
    def cancel(self) -> None:
        """Ask its function to end, as the loop's own cancellation does.

        On asyncio that is one ``CancelledError``, on trio a cancelled scope.
        """

    @abstractmethod
    async def kill(self) -> bool:
        """End it over its head, together with the tasks that it has started.

        On asyncio its code is never stepped again, but for one ``GeneratorExit``
        that releases what it holds. On trio, where only the task itself can end
        it, it is cancelled, and given a few turns of the loop. What is held for
        it outside of the loop, see ``hold``, is killed first, and waited for.

        ``on_end`` has been called when this returns True.

        Returns:
            False if it, or what it holds, does not end: it is a zombie. ``on_end``
            is called all the same should it end later.
        """

    @abstractmethod
    def stack(self) -> list[tuple[FrameType, int]]:
        """Where its code stands: frames and line numbers, the outermost first."""

    def _end(self) -> None:
        self.done = True
        self._on_end(self)


def current_job() -> Job | None:
    """The innermost job that the calling code belongs to."""
    return _job.get()


def is_within(job: Job | None, ancestor: Job) -> bool:
    """Whether ``job`` is ``ancestor`` or one of its descendants."""
    while job is not None:
        if job is ancestor:
            return True
        job = job.parent
    return False
