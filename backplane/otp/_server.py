"""Handles to servers, and what is sent through them; methods that are marked as calls and casts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar, final, overload

import anyio

from ._brief import brief
from ._call import DEFAULT_TIMEOUT, call, process_of, refuse_self_call
from ._call_errors import ServerDownError
from ._errors import NoProcessError, ProcessError
from ._from import From
from ._gen_server import GenServer
from ._handles import Handle, Pid
from ._messages import Cast, Method, StopRequest
from ._names import Target, resolve
from ._reasons import NORMAL, ExitReason, check_reason
from ._returns import NoReply, Stop
from ._scope import _calling
from ._timers import Timer, send_after

S = TypeVar("S", bound=GenServer)


S_co = TypeVar("S_co", bound=GenServer, covariant=True)


P = ParamSpec("P")


R = TypeVar("R")


F = TypeVar("F", bound=Callable[..., Any])


_KIND = "__backplane_kind__"


def on_call(fn: F) -> F:
    """Mark a method of a ``GenServer``: it may be called, ``await ref.call(Class.method, ...)``."""
    return _mark(fn, "call")


def on_cast(fn: F) -> F:
    """Mark a method of a ``GenServer``: it may be cast, ``ref.cast(Class.method, ...)``."""
    return _mark(fn, "cast")


def _mark(fn: F, kind: str) -> F:
    name = getattr(fn, "__name__", None)
    if name is None or name.startswith("_"):
        raise TypeError(f"{fn!r} cannot be marked with @on_{kind}: it is no method, or private")
    setattr(fn, _KIND, kind)
    return fn


class NotServedError(ProcessError, TypeError):
    """A method is not marked as a call (or a cast), or is another class's. Nothing was sent."""

    def __init__(self, method: object, kind: str, server: str | None = None) -> None:
        super().__init__(method, kind, server)
        self.method = method
        self.kind = kind
        self.server = server

    def __str__(self) -> str:
        name = getattr(self.method, "__qualname__", None) or brief(self.method)
        verb = "called" if self.kind == "call" else "cast"
        mark = getattr(self.method, _KIND, None)
        if mark == self.kind:
            why = f"it is no method of {self.server}, nor of one of its bases"
        elif mark is not None:
            why = f"it is marked with @on_{mark}"
        else:
            why = f"it is not marked with @on_{self.kind}"
        return f"{name} cannot be {verb} here: {why}"


NotServedError.__module__ = "backplane.otp"


_Said: TypeAlias = NoReply | Stop | None


Said: TypeAlias = _Said | Awaitable[_Said]
"""What a method may return that answers nobody."""


@final
class ServerRef(Handle, Generic[S_co]):
    """A typed handle to a server: an editor knows each method's arguments and result."""

    __slots__ = ("_timeout", "kind", "target")

    target: Target
    """Its pid, or a name that is looked up at each use."""
    kind: type[S_co]
    """Its class."""

    def __init__(
        self, target: Target, kind: type[S_co], timeout: float | None = DEFAULT_TIMEOUT
    ) -> None:
        self.target = target
        self.kind = kind
        self._timeout = timeout

    @property
    def pid(self) -> Pid:
        """The process that is meant now.

        Raises:
            NoProcessError: Nobody has that name.
        """
        return resolve(self.target).pid

    def within(self, seconds: float | None) -> ServerRef[S_co]:
        """The same, for calls that wait so long; None: for ever. By default 5 seconds."""
        return ServerRef(self.target, self.kind, seconds)

    @overload
    async def call(
        self,
        method: Callable[Concatenate[S_co, P], Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def call(
        self, method: Callable[Concatenate[S_co, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Have the server run a method marked ``@on_call``, and wait for its result.

        Raises:
            ServerDownError: It has ended, or ends before it answers.
            CallTimeoutError: It did not answer in time.
            CallingSelfError: It is the server itself that calls.
            NotServedError: The method is not marked.
            WrongServerError: The server is of another class. It goes on.
        """
        self._check(method, "call")
        return await call(self.target, Method(self.kind, method, args, kwargs), self._timeout)

    def cast(
        self, method: Callable[Concatenate[S_co, P], Said], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have the server run a method marked ``@on_cast``, some time. Nobody hears whether.

        Raises:
            NotServedError: The method is not marked.
            MailboxFullError: Its mailbox is bounded, and full.
        """
        self._check(method, "cast")
        _cast(self.target, Cast(Method(self.kind, method, args, kwargs)))

    def _check(self, method: Any, kind: str) -> None:
        name = getattr(method, "__name__", "")
        known = vars(self.kind).get(name) is method or any(
            vars(each).get(name) is method for each in self.kind.__mro__
        )
        if getattr(method, _KIND, None) != kind or not known:
            raise NotServedError(method, kind, self.kind.__name__)

    def send(self, message: object) -> bool:
        """Send something for ``handle_info``; False if it has ended.

        Raises:
            NoProcessError: Nobody has that name.
        """
        return resolve(self.target, "send").deliver(message)

    def drain(self) -> None:
        """Have it take no more messages, handle those that it has, and end."""
        self.pid.drain()

    async def stop(self, reason: ExitReason = NORMAL, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """``stop`` it."""
        await stop(self.target, reason, timeout)

    async def wait(self) -> ExitReason:
        """Wait for its end, and return why."""
        return await self.pid.wait()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServerRef) and other.target == self.target

    def __hash__(self) -> int:
        return hash(self.target)

    def __repr__(self) -> str:
        return f"<ServerRef {self.kind.__name__} {self.target!r}>"


Server: TypeAlias = Target
"""Whatever a server is addressed by."""


def _cast(server: Server, message: Cast) -> None:
    if type(server) is Pid:
        server._process.deliver(message)
        return
    try:
        process = resolve(server)
    except NoProcessError:
        return
    process.deliver(message)


def cast(server: Server, message: Any) -> None:
    """Send a server something for ``handle_cast``. Nobody hears what becomes of it.

    Raises:
        MailboxFullError: Its mailbox is bounded, and full.
    """
    if type(server) is Pid:
        server._process.deliver(Cast(message))
    else:
        _cast(server, Cast(message))


def cast_after(delay: float, server: Server, message: Any, *, owner: Pid | None = None) -> Timer:
    """Cast later. It is as ``send_after`` otherwise, its owner and its errors too."""
    return send_after(delay, server, Cast(message), owner=owner)


async def stop(
    server: Server,
    reason: ExitReason = NORMAL,
    timeout: float | None = None,  # noqa: ASYNC109
) -> None:
    """Have a server end for a reason, after all that it was sent before; wait for that.

    Raises:
        ServerDownError: It has ended already, or ended for another reason.
        CallingSelfError: It is the server itself that asks: let a callback return ``Stop``.
        TimeoutError: It has not ended in time. It will.
        ValueError: The reason is None.
    """
    check_reason(reason)
    process = process_of(server, "stop")
    if _calling() is process:
        refuse_self_call(process, "stop")
    if not process.deliver_in_any_case(StopRequest(reason)):
        raise ServerDownError(process.pid, "stop", process.absence)
    with anyio.fail_after(timeout):
        actual = await process.wait()
    if actual is not reason and actual != reason:
        raise ServerDownError(process.pid, "stop", actual)


def reply(to: From, value: Any) -> bool:
    """``to.reply(value)``: answer a call, from anywhere; False if nobody waits for it."""
    return to.reply(value)
