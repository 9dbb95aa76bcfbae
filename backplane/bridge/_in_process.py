"""Children that live in an operating-system process of their own."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from backplane.lowlevel import current_job, on_alive, outlast

from ._child import Backend, ChildProcess, Output, check_options
from ._child_exit import Raised, Stopped, value_of
from ._child_payload import check_findable

if TYPE_CHECKING:  # a child process that needs none does not load it
    from ._node import Node

P = ParamSpec("P")
T = TypeVar("T")


@overload
def in_process(
    fn: Callable[P, Awaitable[T]],
    /,
    *,
    backend: Backend = ...,
    backend_options: Mapping[str, Any] | None = ...,
    output: Output = ...,
    grace: float = ...,
    term_grace: float = ...,
    node: Node | None = ...,
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def in_process(
    fn: Callable[P, T],
    /,
    *,
    backend: Backend = ...,
    backend_options: Mapping[str, Any] | None = ...,
    output: Output = ...,
    grace: float = ...,
    term_grace: float = ...,
    node: Node | None = ...,
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def in_process(
    fn: Callable[..., Any],
    /,
    *args: Any,
    backend: Backend = ...,
    backend_options: Mapping[str, Any] | None = ...,
    output: Output = ...,
    grace: float = ...,
    term_grace: float = ...,
    node: Node | None = ...,
) -> Callable[..., Coroutine[Any, Any, Any]]: ...
def in_process(
    fn: Callable[..., Any],
    /,
    *args: Any,
    backend: Literal["asyncio", "trio"] = "asyncio",
    backend_options: Mapping[str, Any] | None = None,
    output: Literal["inherit", "log"] = "inherit",
    grace: float = 3.0,
    term_grace: float = 1.0,
    node: Node | None = None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make of a function an async one that does its work in a new process.

    For a child of any supervisor, or to be awaited as it is: what computes then has an
    interpreter and a processor core of its own, and what crashes takes nothing else along.
    The function may be an ``async def``, which gets a loop, or a plain one. Whatever
    becomes of the process, the call ends as a call does:

    ===========================================  ==============================================
    the function returns                         its value
    it raises an ``Exception``                   that exception, if it can be pickled and
                                                 unpickled; else a ``RemoteError`` with its
                                                 name and text, and a note why
    it raises ``KeyboardInterrupt``, unasked     a ``RemoteError``, as for all that is no
                                                 ``Exception``, which would end the loop here
    ``os._exit``, ``sys.exit``                   ``ProcessExitedError``
    a crash, ``kill``, out of memory             ``ProcessKilledError``
    ===========================================  ==============================================

    The traceback there is a note of what it raised.

    When the call is cancelled, as a supervisor does to stop a child, the work is asked to
    end: in the process, ``current_device()`` gets a ``Shutdown``, so an async function is
    cancelled; a plain one gets a ``KeyboardInterrupt`` (by SIGINT to the main thread, and a
    SIGURG now and then that has it look). After ``grace`` follows SIGTERM,
    after ``term_grace`` SIGKILL to its whole process group, each with a warning in the log.
    What its cleanup raises, the call raises. A supervisor whose own patience (``shutdown``)
    is over before that sends SIGKILL at once; so let the two graces together be less. In each
    case its own children die with it, and when the call, the stop or the supervisor's block
    is over, none of them is left: only one that has left the process group, as a daemon
    does, lives on.

    The function, its arguments and what it returns are pickled, as with multiprocessing: so
    the function is found by its name, in a module or in the main file, which the process
    runs once more, as ``__mp_main__``: put what starts the program under
    ``if __name__ == "__main__":``. Classes of the main file are the same here and there.
    ``task_status`` works in the process. What it logs goes to the loggers of the same names
    here. A supervised child's ``alive()`` works in the process, too: its watchdog kills one
    that hangs, in whatever call, or was stopped (SIGSTOP). The start of the process, until
    the function can report, is part of the time that the watchdog allows.

    Args:
        fn: A function that can be imported.
        args: Its first arguments; those that the result is called with follow.
        backend: The loop of an async function: "asyncio" or "trio".
        backend_options: As for ``anyio.run``, ``{"use_uvloop": True}`` for example.
        output: "inherit": it prints where this process prints. "log": each line that it
            prints becomes a record of the logger ``backplane.bridge.child``, INFO for
            standard output and WARNING for standard error, with ``child_name``,
            ``child_pid`` and ``child_stream`` as fields.
        grace: Seconds that it may take to end after being asked, and the process after the
            function has ended; then SIGTERM follows.
        term_grace: Seconds from SIGTERM to SIGKILL.
        node: A node that the process can be connected with over a private socket: in an
            async function, ``async with parent_node() as (node, parent)``. What its own
            node is called, for ``allow``, is told there.

    Raises:
        NotSendableError: Another process cannot find the function. The call raises it if it
            cannot send its arguments, or what the function returns.
        ValueError: An option makes no sense. (``OSError`` comes from the call, if no process
            can be started.)

    Example:
        >>> import math
        >>> from backplane.bridge import in_process
        >>> factorial = in_process(math.factorial)  # await factorial(1000)
        >>> in_process(lambda: None)
        Traceback (most recent call last):
        ...
        backplane.bridge.NotSendableError: another process cannot find ...: it is a lambda; ...
    """
    check_findable(fn)
    check_options(backend, output, grace, term_grace)

    @functools.wraps(fn)
    async def run(*rest: Any, **kwargs: Any) -> Any:
        status = kwargs.pop("task_status", None)
        job = current_job()
        child = ChildProcess(
            fn, *args, *rest,
            kwargs=kwargs,
            name=None if job is None else job.name,
            backend=backend,
            backend_options=backend_options,
            output=output,
            grace=grace,
            term_grace=term_grace,
            on_started=None if status is None else status.started,
            on_alive=on_alive.get(None),
            node=node,
        )  # fmt: skip
        return await _run(child)

    return run


async def _run(child: ChildProcess) -> Any:
    """Start it and wait for its end; stop it, if this is cancelled."""
    try:
        await child.start()
        try:
            end = await child.wait()
        except GeneratorExit:
            raise  # killed: nothing can be waited for
        except BaseException:
            child.stop_soon()
            await outlast(lambda: child.over, child.wait)
            # What came out of its cleanup is not to be lost.
            if isinstance(child.exit, Raised):
                raise child.exit.exception from None
            raise
    finally:
        child.close()  # kills it, if it is not over
    return None if isinstance(end, Stopped) else value_of(end, child.name, child.pid)
