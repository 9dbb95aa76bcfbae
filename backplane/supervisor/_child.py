"""One child of a running supervisor: its task, its Device and its state."""

from __future__ import annotations

import enum
import sys
import threading
import traceback
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, final

from backplane import (
    Cancelled,
    CascadeCrash,
    Cascaded,
    Device,
    DeviceID,
    Failed,
    Fault,
    Killed,
    Line,
    PowerOffCrash,
)
from backplane.lowlevel import Job, current_job, on_alive, start_job

from ._budget import Spending
from ._desk import Timer
from ._errors import Ignore, Permanent
from ._spec import ChildSpec

if TYPE_CHECKING:
    from ._tree import SupervisorInfo


class ChildState(enum.Enum):
    """Where a child stands."""

    STARTING = "starting"
    """It runs, and has not said yet that it has started."""
    RUNNING = "running"
    WAITING = "waiting"
    """It is down, and will be restarted."""
    STOPPING = "stopping"
    """It was asked to end, and has not yet."""
    STOPPED = "stopped"
    """It is down: it ended for good, or was terminated."""
    PARKED = "parked"
    """It is down, since it has spent its budget."""


class Owner(Protocol):
    """The run of a supervisor, as its children see it."""

    def child_ended(self, child: Child) -> None:
        """Take notice that the child's task has ended."""

    def child_started(self, child: Child) -> None:
        """Take notice that the child has said that it has started."""

    def note_alive(self, child: Child) -> None:
        """Take notice that the child has reported that it is alive, from whatever thread."""

    def adopt(self, zombies: Iterable[Job | threading.Thread]) -> None:
        """Take over what could not be killed below the child."""


class Subtree(Protocol):
    """A supervisor that runs inside a child."""

    def tree(self) -> SupervisorInfo:
        """Describe it."""

    def hurry(self, seconds: float) -> None:
        """Have its children down within some seconds, once they are being stopped."""


@final
class Child:
    """The state of one child. Its supervisor's engine is the only one that changes it."""

    __slots__ = (
        "alive_at", "attempt", "deadline", "device", "due", "ignored", "job", "key", "owner",
        "restarts", "spec", "spending", "started_at", "state", "stopping", "subtree", "thread",
        "timer", "value", "watch",
    )  # fmt: skip

    spec: ChildSpec
    key: str | DeviceID
    """What its supervisor knows it by."""
    owner: Owner
    state: ChildState
    device: Device | None
    """Its Device, a new one for each start; None before the first."""
    job: Job | None
    restarts: int
    """How often it has been started again."""
    attempt: int
    """Its restarts in a row, for its backoff."""
    started_at: float
    """When it was last started, on the clock of its loop."""
    alive_at: float
    """When it last reported ``alive()``."""
    due: float
    """When it is to be restarted, if it waits."""
    deadline: float
    """When its supervisor will have lost patience, if it is being stopped."""
    stopping: bool
    ignored: bool
    """Whether it has ended its start with ``Ignore``."""
    value: Any
    """What it said with ``task_status.started(value)``."""
    spending: Spending | None
    subtree: Subtree | None
    thread: threading.Thread | None
    """The thread that it lives in, if it has one of its own."""
    timer: Timer | None
    """What ends its start, its stop or its wait, if that has a time."""
    watch: Timer | None
    """What looks next whether it has reported that it is alive."""

    def __init__(self, spec: ChildSpec, owner: Owner) -> None:
        self.spec = spec
        self.key = spec.id
        self.owner = owner
        self.state = ChildState.STOPPED
        self.device = None
        self.job = None
        self.restarts = -1
        self.attempt = 0
        self.started_at = self.alive_at = self.due = self.deadline = 0.0
        self.stopping = self.ignored = False
        self.value = None
        self.spending = None if spec.budget is None else Spending(spec.budget)
        self.subtree = None
        self.thread = None
        self.timer = self.watch = None

    def launch(self, now: float, name: str) -> None:
        """Start its task, with a new Device."""
        spec = self.spec
        self.device = Device(name)
        self.restarts += 1
        self.started_at = self.alive_at = now
        self.stopping = self.ignored = False
        self.value = self.subtree = self.thread = None
        self.state = ChildState.STARTING if spec.reports_start else ChildState.RUNNING
        self.job = start_job(self._work, self._ended, name, self)

    def _work(self) -> Awaitable[object]:
        spec, device = self.spec, self.device
        assert device is not None
        on_alive.set(self._note_alive)
        if spec.gets_device:
            return self._report()
        if spec.reports_start:
            return device.manage(self._report)
        if spec.kwargs:
            return device.manage(lambda: spec.run(*spec.args, **spec.kwargs))
        return device.manage(spec.run, *spec.args)

    def _note_alive(self) -> None:
        self.owner.note_alive(self)

    async def _report(self) -> object:
        spec = self.spec
        kwargs = dict(spec.kwargs)
        if spec.reports_start:
            kwargs["task_status"] = Started(self)
        if spec.gets_device:
            kwargs["device"] = self.device
        try:
            return await spec.run(*spec.args, **kwargs)
        except Ignore:
            if self.state is not ChildState.STARTING:
                raise
            self.ignored = True
            return None

    def _ended(self, job: Job) -> None:
        if job is self.job:
            self.owner.child_ended(self)

    @property
    def is_alive(self) -> bool:
        """Whether its task runs."""
        return self.job is not None

    @property
    def runs(self) -> bool:
        """Whether its task runs, even if its end has not been looked at yet."""
        return self.job is not None and not self.job.done

    def stands(self, state: ChildState) -> bool:
        """Whether it is in a state at this moment, which an ``await`` may change."""
        return self.state is state

    @property
    def line(self) -> Line | None:
        """A Line to its Device of the moment."""
        return None if self.device is None else self.device.line()

    @property
    def fault(self) -> Fault | None:
        """Why its task ended; None if it ended well."""
        job = self.job
        assert job is not None
        if job.killed:
            return Killed()
        return None if self.ignored else fault_of(job.exception)


def fault_of(exc: BaseException | None) -> Fault | None:
    """The fault of a child whose managed work raised ``exc``."""
    match exc:
        case PowerOffCrash(__context__=Exception() as error):
            return Failed(error)  # in the cleanup
        case None | PowerOffCrash():
            return None
        case CascadeCrash(sender=sender, fault=fault):
            return Cascaded(sender, fault)
        case Exception():
            return Failed(exc)
        case KeyboardInterrupt() | SystemExit() | GeneratorExit() | BaseExceptionGroup():
            return Failed(exc)
        case _:
            return Cancelled()


def ends_program(exc: BaseException | None) -> TypeGuard[BaseException]:
    """Whether an exception is, or holds, one that is meant for the whole program."""
    return _holds(exc, (KeyboardInterrupt, SystemExit))


def _holds(exc: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(kinds) is not None
    return isinstance(exc, kinds)


def is_permanent(fault: Fault | None) -> bool:
    """Whether a fault says that a restart cannot mend it."""
    root = fault.root if isinstance(fault, Cascaded) else fault
    return isinstance(root, Failed) and _holds(root.exception, (Permanent,))


@final
class Started:
    """The ``task_status`` that a child gets: it says when it has started."""

    __slots__ = ("_child", "_job")

    def __init__(self, child: Child) -> None:
        self._child = child
        self._job = child.job

    def started(self, value: Any = None) -> None:
        """Say that the child has started, and hand over a value.

        Raises:
            RuntimeError: If it has said so already, as in anyio and trio.
        """
        child = self._child
        if child.job is not self._job and self._job is not None:
            return  # an earlier life, disowned: nobody listens
        if child.state is ChildState.STOPPING:
            return
        if child.state is not ChildState.STARTING:
            raise RuntimeError("called 'started' twice on the same task status")
        child.value = value
        child.state = ChildState.RUNNING
        child.owner.child_started(child)


def current_child() -> Child | None:
    """The innermost supervised child that the calling code belongs to."""
    job = current_job()
    while job is not None:
        if isinstance(job.owner, Child):
            return job.owner
        job = job.parent
    return None


def stack_of(child: Child) -> str:
    """Where a child stands, as a traceback; empty if its loop cannot tell."""
    job, thread = child.job, child.thread
    frames = [] if job is None else job.stack()
    if thread is not None and thread.ident is not None:
        frames = frames_of(thread.ident) or frames
    return format_frames(frames)


def frames_of(ident: int) -> list[tuple[FrameType, int]]:
    """Where a thread stands, the outermost frame first; nothing if there is no such thread."""
    frame = sys._current_frames().get(ident)
    # At once, before anything that may let the other thread go on.
    return [] if frame is None else [*traceback.walk_stack(frame)][::-1]


def format_frames(frames: list[tuple[FrameType, int]]) -> str:
    """Frames as a traceback."""
    return "".join(traceback.format_list(traceback.StackSummary.extract(frames)))


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What a supervisor tells of one child, as of the moment of asking."""

    id: str
    key: str | DeviceID
    """What its supervisor knows it by, through all its restarts: the id, or, since
    those of a ``DynamicSupervisor`` need not be unique, the id of its first Device."""
    state: ChildState
    line: Line | None
    """A Line to its Device; None if it has never been started."""
    restarts: int
    started_at: float
    value: Any
    """What it said with ``task_status.started(value)``."""
    is_supervisor: bool
    subtree: SupervisorInfo | None = None
    """Its own children, if it is a supervisor that runs."""
