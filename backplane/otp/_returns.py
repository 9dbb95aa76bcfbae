"""What a server's callbacks may return, and what is said of one that returns something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Final, Never, TypeVar, cast

from ._brief import brief
from ._errors import ProcessError
from ._messages import WrongServerError, outline
from ._reasons import NORMAL, ExitReason, check_reason

T = TypeVar("T")


NOTHING: Final[Any] = object()


def check_seconds(timeout: float | None) -> None:
    if timeout is not None and not (isinstance(timeout, int | float) and 0 <= timeout < math.inf):
        raise ValueError(
            f"timeout is a finite number of seconds, or None for ever, not {brief(timeout)}"
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """Returned by ``handle_call`` to answer and say what comes next."""

    value: Any
    timeout: float | None = None
    """Seconds without a message after which ``handle_timeout`` is called."""
    then: Any = NOTHING
    """What ``handle_continue`` is called with, before any other message."""

    def __post_init__(self) -> None:
        check_seconds(self.timeout)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Returned by any callback to say what comes next; by ``handle_call`` also: answered later."""

    timeout: float | None = None
    then: Any = NOTHING

    def __post_init__(self) -> None:
        check_seconds(self.timeout)

    def __repr__(self) -> str:
        wishes = [] if self.timeout is None else [f"timeout={self.timeout!r}"]
        wishes += [] if self.then is NOTHING else [f"then={self.then!r}"]
        return f"NoReply({', '.join(wishes)})" if wishes else "NO_REPLY"


NO_REPLY: Final[Never] = cast(Never, NoReply())
"""Returned by ``handle_call``: the answer comes later, by ``from_.reply(value)``.

A marked method returns it whatever its own type: it has none. It learns whom to
answer from ``self.current_from()``.
"""


@dataclass(frozen=True, slots=True)
class Stop:
    """Returned by any callback: end for a reason, after ``terminate``."""

    reason: ExitReason = NORMAL
    reply: Any = NOTHING
    """The answer to the call, which is sent after ``terminate`` and before the end."""

    def __post_init__(self) -> None:
        check_reason(self.reason)


def reply_and(
    value: T, *, then: Any = NOTHING, timeout: float | None = None, stop: ExitReason = NOTHING
) -> T:
    """``Reply`` or ``Stop`` for a marked method, of the type that it says it returns.

    ``return reply_and(x, then="load")`` is ``return Reply(x, then="load")``, and
    ``return reply_and(x, stop=NORMAL)`` is ``return Stop(NORMAL, reply=x)``. To stop
    without an answer, ``raise Exit(reason)``.

    Raises:
        ValueError: It would go on with something after it has stopped.
    """
    if stop is NOTHING:
        return cast(T, Reply(value, timeout, then))
    if then is not NOTHING or timeout is not None:
        raise ValueError("a server that stops goes on with nothing: give stop, or then and timeout")
    return cast(T, Stop(stop, value))


class BadReturnError(ProcessError):
    """A callback returned what means nothing there. The server ends for this reason."""

    def __init__(self, callback: str, value: object) -> None:
        super().__init__(callback, value)
        self.callback = callback
        self.value = value

    def __str__(self) -> str:
        if isinstance(self.value, type) and self.value in MARKERS:
            name = self.value.__name__
            return f"{self.callback} returned the class {name}: write {name}(...)"
        if isinstance(self.value, GeneratorType | AsyncGeneratorType):
            return f"{self.callback} is a generator function: it must not yield"
        return f"{self.callback} returned {brief(self.value)}, which means nothing there"


class UnknownRequestError(ProcessError):
    """A server was sent a request that it has no callback for. The server ends for this reason."""

    def __init__(self, server: str, kind: str, message: object) -> None:
        super().__init__(server, kind, message)
        self.server = server
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.server} has no handle_{self.kind} and was sent {outline(self.message)}"


class ReplyError(ProcessError):
    """Raised by the handler of a call: the caller gets ``error``, and the server goes on.

    In a cast it is logged. The traceback of ``error`` begins anew with each caller.

    Raises:
        TypeError: It is no instance of an ``Exception``.
    """

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, Exception):
            raise TypeError(
                f"ReplyError takes an exception such as ValueError(), not {brief(error)}"
            )
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return brief(self.error)


for _error in (BadReturnError, ReplyError, UnknownRequestError, WrongServerError):
    _error.__module__ = "backplane.otp"


MARKERS: Final = frozenset({Reply, NoReply, Stop})
