"""What a supervisor tells about its children: one typed event for each thing that happens.

Every event goes to the supervisor's subscribers, and to ``logging`` unless it
is told otherwise. A subscriber that raises harms nobody: that is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, assert_never

from backplane import DeviceID, Failed, Fault

E = TypeVar("E")

_logger = logging.getLogger("backplane.supervisor")


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A child has started (and said so, if it does)."""

    supervisor: str
    child: str
    device: DeviceID
    restarts: int
    """How often it had been started before."""


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A child has ended: by itself, or because its supervisor stopped it, also while it started."""

    supervisor: str
    child: str
    device: DeviceID
    fault: Fault | None
    stopping: bool
    """Whether its supervisor had asked it to."""
    unexpected: bool = False
    """Whether it ended well, by itself, though it is permanent."""


@dataclass(frozen=True, slots=True)
class ChildStartFailed:
    """A child did not start."""

    supervisor: str
    child: str
    reason: BaseException


@dataclass(frozen=True, slots=True)
class ChildWaiting:
    """A child will be restarted, but not yet."""

    supervisor: str
    child: str
    delay: float
    """Seconds."""
    attempt: int
    """Which restart in a row this will be."""


@dataclass(frozen=True, slots=True)
class ChildParked:
    """A child has spent its budget, and stays down until ``restart_child``."""

    supervisor: str
    child: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChildKilled:
    """A child did not stop within its grace, and was killed."""

    supervisor: str
    child: str
    device: DeviceID
    zombie: bool
    """Whether it runs on all the same, disowned: only an end of the process ends it."""


@dataclass(frozen=True, slots=True)
class ChildUnresponsive:
    """A child that is watched did not report in time. It is killed next."""

    supervisor: str
    child: str
    device: DeviceID
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True)
class SupervisorGaveUp:
    """A supervisor has spent its budget; it stops its children and ends."""

    supervisor: str
    child: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoopBlocked:
    """An event loop does not come round: some code in it does not await."""

    thread: str
    """The name of the thread that it runs in."""
    seconds: float
    """For how long it has been overdue."""
    stack: str
    """Where that thread stands, as a traceback."""


@dataclass(frozen=True, slots=True)
class LoopFreed:
    """An event loop that was blocked has come round."""

    thread: str
    seconds: float
    """For how long it was overdue in all, without the time in which the process did not run."""


Event: TypeAlias = (
    ChildStarted
    | ChildExited
    | ChildStartFailed
    | ChildWaiting
    | ChildParked
    | ChildKilled
    | ChildUnresponsive
    | SupervisorGaveUp
)
"""All that a supervisor tells."""

LoopEvent: TypeAlias = LoopBlocked | LoopFreed
"""All that ``watch_loop`` tells."""

Subscriber: TypeAlias = Callable[[Event], object]
"""Is called with each event, in the supervisor's loop. It must not wait."""


def log_event(event: Event | LoopEvent) -> None:
    """The default subscriber: tell ``logging``, at the level that an operator would want.

    Starts and expected ends are ``DEBUG``, waits ``INFO``, ends with a fault and
    kills ``WARNING`` or ``ERROR``, giving up ``CRITICAL``, a blocked loop
    ``ERROR``. The event itself is the record's attribute ``event``; an exception that
    ended a child comes with its traceback.
    """
    level = _level_of(event)
    if _logger.isEnabledFor(level):
        text, cause = _describe(event)[1], _cause_of(event) if level >= logging.ERROR else None
        _logger.log(level, "%s", text, extra={"event": event}, exc_info=cause)


def _cause_of(event: Event | LoopEvent) -> BaseException | None:
    """The exception whose traceback tells what happened."""
    match event:
        case ChildExited(fault=Failed(exception=exception)):
            return exception
        case ChildStartFailed(reason=reason):
            return reason
        case _:
            return None


def _level_of(event: Event | LoopEvent) -> int:
    if type(event) is ChildExited:
        if event.fault is None:
            return logging.WARNING if event.unexpected else logging.DEBUG
        return logging.WARNING if event.stopping else logging.ERROR
    return _describe(event)[0]


def _describe(event: Event | LoopEvent) -> tuple[int, str]:
    if isinstance(event, LoopBlocked | LoopFreed):
        return _describe_loop(event)
    who = f"{event.supervisor}/{event.child}"
    match event:
        case ChildStarted():
            return logging.DEBUG, f"{who} started" + (
                f" again ({event.restarts})" * bool(event.restarts)
            )
        case ChildExited(unexpected=True):
            return logging.WARNING, f"{who} ended, though it is permanent"
        case ChildExited(fault=None):
            return logging.DEBUG, f"{who} ended"
        case ChildExited(stopping=True):
            return logging.WARNING, f"{who} ended while it was stopped: {event.fault!r}"
        case ChildExited():
            return logging.ERROR, f"{who} ended: {event.fault!r}"
        case ChildStartFailed():
            return logging.ERROR, f"{who} did not start: {event.reason!r}"
        case ChildWaiting():
            return logging.INFO, f"{who} restarts in {event.delay:.3g} s (attempt {event.attempt})"
        case ChildParked():
            return logging.ERROR, f"{who} stays down: {event.reason}"
        case ChildKilled(zombie=True):
            return logging.CRITICAL, f"{who} could not be killed, and runs on as a zombie"
        case ChildKilled():
            return logging.WARNING, f"{who} did not stop in time and was killed"
        case ChildUnresponsive():
            return logging.ERROR, f"{who} did not report in {event.seconds:g} s:\n{event.stack}"
        case SupervisorGaveUp():
            return logging.CRITICAL, f"{event.supervisor} gives up on {event.child}: {event.reason}"
        case never:
            assert_never(never)


def _describe_loop(event: LoopEvent) -> tuple[int, str]:
    loop = f"the event loop of thread {event.thread!r}"
    if isinstance(event, LoopFreed):
        return logging.INFO, f"{loop} goes on; it was blocked for {event.seconds:.3g} s"
    return logging.ERROR, f"{loop} is blocked, for {event.seconds:.3g} s now, by:\n{event.stack}"


def publish(subscribers: tuple[Callable[[E], object], ...], event: E) -> None:
    """Tell all subscribers."""
    for subscriber in subscribers:
        try:
            subscriber(event)
        except Exception:
            _logger.exception("a subscriber raised on %r", type(event).__name__)


def wants_starts(subscribers: tuple[Subscriber, ...]) -> bool:
    """Whether anybody would look at the frequent, harmless events."""
    if subscribers == (log_event,):
        return _logger.isEnabledFor(logging.DEBUG)
    return bool(subscribers)
