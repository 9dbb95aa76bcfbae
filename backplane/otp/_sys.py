"""What any server answers beside its own messages: state, status, suspension, traces."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

if TYPE_CHECKING:
    from ._from import From
    from ._gen_server import GenServer

Traced: TypeAlias = Callable[[Literal["in", "out"], Any], object]
"""Is called with each message that a server takes, and each ``Answer`` that it returns."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out of a server."""

    value: Any
    to: From
    """The call; ``to.sender`` is who made it."""


@dataclass(slots=True)
class Statistics:
    """What a server has done since they were turned on."""

    started_at: float
    """When that was, on the clock of its loop."""
    messages_in: int = 0


@dataclass(slots=True)
class Status:
    """What a server tells of itself, its state as ``format_status`` shows it."""

    server: str
    state: Any
    suspended: bool
    mailbox: int
    """How many messages wait."""
    links: int
    trap_exit: bool
    statistics: Statistics | None
    log: list[tuple[str, Any]] = field(default_factory=list)
    """The last messages, if ``log`` was turned on."""


@final
class Trace:
    """Something that looks on."""

    __slots__ = ("_fn", "log")

    def __init__(self, fn: Traced | None, keep: int) -> None:
        self._fn = fn
        self.log: deque[tuple[str, Any]] = deque(maxlen=keep)

    def note(self, way: Literal["in", "out"], message: Any) -> bool:
        """Look at a message; whether to go on looking."""
        self.log.append((way, message))
        if self._fn is None:
            return True
        try:
            self._fn(way, message)
        except Exception:  # noqa: BLE001 - as in OTP, it is taken away, and the server goes on
            return False
        return True


Operation: TypeAlias = Callable[["GenServer", bool], Any]
"""What a system request does: with the server, and whether it is suspended."""


@final
class SystemRequest:
    """In front of a server's mailbox: something that is none of its own messages."""

    __slots__ = ("_operation", "_request")

    def __init__(self, operation: Operation, request: Any) -> None:
        self._operation = operation
        self._request = request

    async def serve(self, server: GenServer, suspended: bool) -> bool:
        """Do it; return whether the server is suspended now."""
        if self._request.over:
            return suspended
        try:
            result = self._operation(server, suspended)
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:  # noqa: BLE001 - it is the asker's, and the state is as it was
            self._request.fail(error)
            return suspended
        now_suspended, value = result
        self._request.answer(value)
        return bool(now_suspended)
