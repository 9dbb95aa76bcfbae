"""Why a process ended: Erlang's exit reasons, as Python values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from backplane import Cancelled, Cascaded, Failed, Fault, Killed, NoConnection

from ._brief import brief


class Reason(enum.Enum):
    """The reasons that have a name."""

    NORMAL = "normal"
    """It returned."""
    SHUTDOWN = "shutdown"
    """It was asked to end, in good order."""
    KILL = "kill"
    """As the reason of an exit signal: it cannot be trapped, and the target ends as ``KILLED``."""
    KILLED = "killed"
    """Somebody killed it."""
    NOPROC = "noproc"
    """There was no such process when it was asked for."""
    NOCONNECTION = "noconnection"
    """The way to it broke; it may live."""

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


NORMAL: Final = Reason.NORMAL
SHUTDOWN: Final = Reason.SHUTDOWN
KILL: Final = Reason.KILL
KILLED: Final = Reason.KILLED
NOPROC: Final = Reason.NOPROC
NOCONNECTION: Final = Reason.NOCONNECTION


@dataclass(frozen=True, slots=True)
class Stopped:
    """A shutdown with a detail: Erlang's ``{shutdown, detail}``. It counts as a good end."""

    detail: Any


ExitReason: TypeAlias = Any
"""A ``Reason``, a ``Stopped``, the exception that the process raised, or any other value."""


class Exit(Exception):
    """Raised by a process to end itself for a reason; raised for one that others gave it."""

    def __init__(self, reason: ExitReason = NORMAL) -> None:
        check_reason(reason)
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"exit: {brief(self.reason)}"

    def __repr__(self) -> str:
        return f"Exit({brief(self.reason)})"


Exit.__module__ = "backplane.otp"


def check_reason(reason: ExitReason) -> None:
    """Refuse what is no reason.

    Raises:
        ValueError: It is None, which means that there is none.
    """
    if reason is None:
        raise ValueError("None is no reason to end: say NORMAL, SHUTDOWN, or anything else")


def is_good(reason: ExitReason) -> bool:
    """Whether an end for this reason is a good one: nobody reports it, no transient restarts."""
    return reason is NORMAL or reason is SHUTDOWN or isinstance(reason, Stopped)


def fault_of(reason: ExitReason) -> Fault | None:
    """What those linked with the process's Device hear."""
    if is_good(reason):
        return None
    if reason is KILLED:
        return Killed()
    if isinstance(reason, Exception):
        return Failed(reason)
    return Failed(Exit(reason))


def reason_of(fault: Fault | None) -> ExitReason:
    """The reason that a fault stands for, when a Device ended that is no process's."""
    root = fault.root if isinstance(fault, Cascaded) else fault
    match root:
        case None:
            return NORMAL
        case Killed():
            return KILLED
        case NoConnection():
            return NOCONNECTION
        case Cancelled():
            return Stopped("cancelled")
        case Failed(exception=Exit(reason=reason)):
            return reason
        case Failed(exception=exception):
            return exception
        case _:
            return root


def sole(error: BaseException, kinds: Any) -> BaseException:
    """What a group of a task group's making is about, if that is one exception of some kinds."""
    only = error
    while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
        only = only.exceptions[0]
    return only if isinstance(only, kinds) else error
