"""What is in a server's mailbox beside calls: casts, methods to run, requests to stop."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from ._brief import brief
from ._errors import ProcessError
from ._from import From
from ._mailbox import Signal
from ._reasons import ExitReason

if TYPE_CHECKING:
    from ._gen_server import GenServer


class Refusal(Exception):
    """This very message is refused: not one that the server's code has met elsewhere."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class WrongServerError(ProcessError):
    """A handle of another class was used: the server has no such method. It goes on."""

    def __init__(self, server: str, kind: str, method: str) -> None:
        super().__init__(server, kind, method)
        self.server = server
        self.kind = kind
        self.method = method

    def __str__(self) -> str:
        return f"a {self.server} is no {self.kind}: it cannot run {self.kind}.{self.method}"


@final
class Cast:
    """A cast in a mailbox, as a process sees it that is no server.

    It sees a call as a ``From``, to which it can ``reply``, and ``stop`` as a
    ``StopRequest``, by which it may end itself.
    """

    __slots__ = ("message",)

    message: Any

    def __init__(self, message: Any) -> None:
        self.message = message

    def __repr__(self) -> str:
        return f"Cast({brief(self.message)})"


@final
class Method:
    """A call or cast of a marked method, in a mailbox."""

    __slots__ = ("args", "fn", "kind", "kwargs")

    def __init__(self, kind: type, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kind = kind
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def run(self, server: GenServer) -> Any:
        """Run it, as the server's own class has it."""
        if not isinstance(server, self.kind):
            raise Refusal(
                WrongServerError(type(server).__name__, self.kind.__name__, self.fn.__name__)
            )
        method = getattr(server, self.fn.__name__)
        try:
            return method(*self.args, **self.kwargs)
        except TypeError as error:
            try:
                inspect.signature(method).bind(*self.args, **self.kwargs)
            except TypeError:
                raise Refusal(error) from None  # its caller's mistake
            raise

    def __repr__(self) -> str:
        args = [brief(value) for value in self.args]
        args += [f"{key}={brief(value)}" for key, value in self.kwargs.items()]
        return f"{self.fn.__name__}({', '.join(args)})"


def outline(message: object) -> str:
    """What kind of message this is. What is in it may be long, and may be secret."""
    match message:
        case None:
            return "None"
        case From():
            sender = "outside" if message.sender is None else repr(message.sender)
            return f"call from {sender}: {outline(message.message)}"
        case Cast():
            return f"cast: {outline(message.message)}"
        case Method():
            return f"{message.kind.__name__}.{message.fn.__name__}(...)"
        case _:
            return f"<{type(message).__name__}>"


class Shown(str):
    """Text that is shown as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class StopRequest(Signal):
    """A request to stop, in a mailbox: what came before it is handled first."""

    reason: ExitReason
