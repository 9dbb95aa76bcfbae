"""How a call fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._brief import brief
from ._errors import ProcessError, why
from ._reasons import NOPROC, ExitReason

if TYPE_CHECKING:
    from ._from import From


class CallError(ProcessError):
    """A call got no answer."""

    def __init__(self, target: object, request: object) -> None:
        super().__init__(target, request)
        self.target = target
        self.request = request

    def __str__(self) -> str:
        return f"{brief(self.target)} gave no answer"


class ServerDownError(CallError):
    """The server has ended, before the call or before its answer; ``reason`` says why.

    A request that it had ``begun`` with may have had its effect; any other had none.
    """

    def __init__(
        self, target: object, request: object, reason: ExitReason, begun: bool = False
    ) -> None:
        Exception.__init__(self, target, request, reason, begun)
        self.begun = begun
        self.target = target
        self.request = request
        self.reason = reason

    def __str__(self) -> str:
        if self.reason is NOPROC:
            return f"no such process: {brief(self.target)}"
        return f"{brief(self.target)} ended without an answer: {why(self.reason)}"


class CallTimeoutError(CallError, TimeoutError):
    """No answer came in time. One that comes later reaches nobody.

    The request is dropped if the server has not begun with it; otherwise it
    may still have its effect.
    """

    def __init__(self, target: object, request: object, seconds: float) -> None:
        Exception.__init__(self, target, request, seconds)
        self.target = target
        self.request = request
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{brief(self.target)} did not answer within {self.seconds:g} seconds"


class DeadlineError(CallTimeoutError):
    """A nested call was cut short: the time of the call that is being served is over.

    ``seconds`` were left of that. If the handler of that call does not catch this, its
    server goes on: its own caller has given up, too.
    """

    served: From | None = None
    """That call."""

    def __str__(self) -> str:
        return (
            f"{brief(self.target)} did not answer: the call that this was made for "
            f"had only {self.seconds:.3g} s left"
        )


class CallingSelfError(CallError):
    """A process called itself: it would wait for itself for ever. Nothing was sent."""

    def __str__(self) -> str:
        return f"{brief(self.target)} calls itself"


for _error in (CallError, ServerDownError, CallTimeoutError, DeadlineError, CallingSelfError):
    _error.__module__ = "backplane.otp"
