"""How a child process ends, as values; and the errors made of them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never, final

from backplane import PowerOffCrash

from ._errors import BridgeError


class NotSendableError(BridgeError, ValueError):
    """A function, its arguments or its result cannot be taken to another process.

    Where a child was to be started, nothing was.
    """


class ProcessExitedError(BridgeError):
    """A child process exited before its function had returned or raised.

    By ``os._exit`` or ``sys.exit``, in the function or in something that it
    called. That is no normal end even if the code is 0: there is no result.
    """

    def __init__(self, code: int | None, process: str = "", pid: int | None = None) -> None:
        super().__init__(code, process, pid)
        self.code = code
        """Its exit code; None if somebody else has collected it."""
        self.process = process
        """What the process is called."""
        self.pid = pid
        """The number that it had, if that is known; another one may have it now."""

    def __str__(self) -> str:
        who = _who(self.process, self.pid)
        how = "with an unknown exit code" if self.code is None else f"with exit code {self.code}"
        return f"{who} ended {how} before its function had returned"


class ProcessKilledError(BridgeError):
    """A child process was killed by a signal: a crash, the kernel, or somebody's ``kill``."""

    def __init__(
        self,
        signal: int,
        process: str = "",
        out_of_memory: bool = False,
        pid: int | None = None,
    ) -> None:
        super().__init__(signal, process, out_of_memory, pid)
        self.signal = signal
        """The number of the signal."""
        self.process = process
        """What the process is called."""
        self.out_of_memory = out_of_memory
        """Whether it looks like the kernel's out-of-memory killer: a hint, no proof."""
        self.pid = pid
        """The number that it had, if that is known; another one may have it now."""

    @property
    def signal_name(self) -> str:
        """The name of the signal: ``SIGSEGV``, ``SIGKILL`` and so on."""
        return signal_name(self.signal)

    def __str__(self) -> str:
        who = _who(self.process, self.pid)
        hint = ", and the kernel ran out of memory meanwhile" if self.out_of_memory else ""
        return f"{who} was killed by {self.signal_name}{hint}"


@final
@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned."""

    value: Any


@final
@dataclass(frozen=True, slots=True, eq=False)
class Raised:
    """The function raised, or could not be called; or what it returned cannot be sent."""

    exception: Exception
    """What was raised, if it is an ``Exception`` that could be sent; else a ``RemoteError``
    that tells of it. Either has the traceback of the child as a note."""


@final
@dataclass(frozen=True, slots=True)
class Stopped:
    """The function was asked to end, and did."""


@final
@dataclass(frozen=True, slots=True)
class Exited:
    """The process exited with a code, without a word from the function."""

    code: int | None
    """None if somebody else has collected it, with ``os.wait`` for instance."""


@final
@dataclass(frozen=True, slots=True)
class Signalled:
    """The process was killed by a signal, without a word from the function."""

    signal: int
    out_of_memory: bool = False
    """Whether it looks like the kernel's out-of-memory killer: a hint, no proof."""


Exit: TypeAlias = Returned | Raised | Stopped | Exited | Signalled
"""How a child process has ended."""


def value_of(exit: Exit, process: str = "", pid: int | None = None) -> Any:
    """What the function of a process returned.

    Raises:
        Exception: What it raised.
        PowerOffCrash: It was asked to end.
        ProcessExitedError: The process exited by itself.
        ProcessKilledError: The process was killed by a signal.
    """
    match exit:
        case Returned(value):
            return value
        case Raised(exception):
            raise exception
        case Stopped():
            raise PowerOffCrash(None)
        case Exited(code):
            raise ProcessExitedError(code, process, pid)
        case Signalled(number, out_of_memory):
            raise ProcessKilledError(number, process, out_of_memory, pid)
        case _:
            assert_never(exit)


def _who(process: str, pid: int | None) -> str:
    name = f"process {process!r}" if process else "the process"
    return name if pid is None else f"{name} (pid {pid})"


def signal_name(number: int) -> str:
    """The name of a signal, also of those that have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


for _error in (NotSendableError, ProcessExitedError, ProcessKilledError):
    _error.__module__ = "backplane.bridge"
