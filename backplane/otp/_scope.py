"""Scopes: where processes live. None outlives its scope."""

from __future__ import annotations

import contextvars
import functools
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVarTuple, Unpack, final

import anyio
from anyio.abc import TaskStatus

from backplane import CascadeCrash, Device, Failed, LinkMode
from backplane.lowlevel import Job, clock, new_parking, outlast, start_job
from backplane.supervisor import Backoff, Budget, ChildSpec, Exhausted, Restart

from ._errors import ScopeError
from ._handles import Pid, Ref, current_process
from ._mailbox import Overflow, check_capacity
from ._process import Process, ends_program
from ._reasons import KILLED, Stopped, is_good

Ts = TypeVarTuple("Ts")

_logger = logging.getLogger("backplane.otp")
_current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar(
    "backplane.scope", default=None
)


@final
class Scope:
    """A block in which processes are started, and which they do not outlive.

    What ends a process concerns those linked with it and those that monitor it,
    nobody else: the block goes on. When it is left, however, all processes are
    asked to shut down, and those that have not after ``grace`` are killed.

    Args:
        name: What to call it in reports.
        grace: Seconds that its processes may take to end.

    Example:
        >>> import anyio
        >>> from backplane.otp import Scope, current_process
        >>> async def echo():
        ...     me = current_process()
        ...     sender, text = await me.receive()
        ...     sender.send(text.upper())
        >>> async def ask(pid):
        ...     me = current_process()
        ...     pid.send((me.pid, "hello"))
        ...     print(await me.receive())
        >>> async def main():
        ...     async with Scope() as scope:
        ...         await scope.spawn(ask, scope.spawn(echo)).wait()
        >>> anyio.run(main)
        HELLO
    """

    def __init__(self, name: str = "scope", *, grace: float = 5.0) -> None:
        self.name = name
        self.grace = grace
        self._processes: dict[Process, None] = {}
        self._open = False
        self._block: AbstractAsyncContextManager[None] | None = None
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        if self._open:
            raise ScopeError(f"scope {self.name!r} is already open")
        self._open = True
        self._error = None
        self._thread = threading.get_ident()
        self._device = Device(self.name)
        self._alarm = Device(f"{self.name} (alarm)")
        self._parking = new_parking()
        self._token = _current.set(self)
        self._context = contextvars.copy_context()
        guard = Device(f"{self.name} (block)")
        guard.link(self._alarm, LinkMode.MONITOR)
        self._block = guard.managed()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._block is not None
        try:
            await self._block.__aexit__(kind, exc, traceback)
        except CascadeCrash as crash:
            if crash.sender != self._alarm.id:
                raise
        finally:
            self._open = False
            try:
                _current.reset(self._token)
            except ValueError:
                pass  # the block is left in another context, which we did not change
            await self._stop()
        if self._error is not None:
            raise self._error

    async def run(self, *, task_status: TaskStatus[Self] = anyio.TASK_STATUS_IGNORED) -> None:
        """Be open until cancelled: ``scope = await task_group.start(Scope().run)``."""
        async with self:
            task_status.started(self)
            await anyio.sleep_forever()

    async def _stop(self) -> None:
        for process in list(reversed(self._processes)):
            process.device.line().shutdown(self._device.id)
        deadline = clock()() + self.grace

        async def wait() -> None:
            if deadline == math.inf:
                await self._parking.park()
            elif clock()() < deadline:
                await self._parking.park_until(deadline)
            else:
                await self._kill_all()

        try:
            await outlast(lambda: not self._processes, wait)
        finally:
            self._device.disconnect()
            self._alarm.disconnect()

    async def _kill_all(self) -> None:
        for process in list(self._processes):
            if process.job is None or not await process.job.kill():
                _logger.critical("process %r cannot be killed, and runs on", process.pid)
            self._ended(process, KILLED)

    # -- starting ------------------------------------------------------------------

    def spawn(
        self,
        fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        label: str | None = None,
        link: bool = False,
        trap_exit: bool = False,
        capacity: int | None = None,
        overflow: Overflow = Overflow.RAISE,
    ) -> Pid:
        """Start a process that runs an async function. Returns at once.

        Args:
            fn: What it runs.
            args: What to call it with.
            label: What to call the process in reports; by default as the function.
            link: Link it with the calling process, before it begins.
            trap_exit: Whether it traps exits from the start.
            capacity: How many messages its mailbox holds; by default any number.
            overflow: What happens to one more.

        Raises:
            ScopeError: The scope is not open, or not this thread's. Nothing was started.
            NotInProcessError: ``link`` was asked for, and no process is calling.
        """
        return self._spawn(fn, args, label, link, trap_exit, capacity, overflow)[0]

    def spawn_monitor(
        self,
        fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        label: str | None = None,
        **options: Any,
    ) -> tuple[Pid, Ref]:
        """As ``spawn``, monitored by the calling process from before its first step."""
        current_process("monitor")
        defaults = {
            "link": False,
            "trap_exit": False,
            "capacity": None,
            "overflow": Overflow.RAISE,
        }
        pid, ref = self._spawn(fn, args, label, **(defaults | options), monitor=True)
        assert ref is not None
        return pid, ref

    def _spawn(
        self,
        fn: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
        label: str | None,
        link: bool,
        trap_exit: bool,
        capacity: int | None,
        overflow: Overflow,
        monitor: bool = False,
    ) -> tuple[Pid, Ref | None]:
        if not self._open:
            raise ScopeError(f"cannot spawn: scope {self.name!r} is not open")
        if threading.get_ident() != self._thread:
            raise ScopeError(f"cannot spawn: scope {self.name!r} is of another thread")
        if not callable(fn):
            raise TypeError(f"spawn wants an async function, not a {type(fn).__qualname__}")
        parent = current_process("link") if link else _calling()
        name = str(label or getattr(fn, "__name__", type(fn).__name__))
        process = Process(Device(name), capacity=capacity, overflow=overflow, trap_exit=trap_exit)
        pid, ref = process.pid, None
        process.scope = self
        if parent is not None:
            if link:
                process.parent = parent.pid
                parent.link(pid)
            if monitor:
                ref = parent.monitor(pid)
        self._processes[process] = None
        # In the scope's context, so that the kill of a parent is not that of its children.
        work = functools.partial(process.run, fn, *args)
        process.job = self._context.run(start_job, work, self._on_end, name, process)
        return pid, ref

    def _on_end(self, job: Job) -> None:
        process, exc = job.owner, job.exception
        assert isinstance(process, Process)
        if exc is not None and ends_program(exc):
            self._error = self._error or exc
            self._alarm.disconnect(Failed(exc))
        elif process.parent_first:
            pass  # a server has said so, and more of it
        elif exc is not None and exc is process.reason and not is_good(exc):
            _logger.error("process %r", process.pid, exc_info=exc, extra={"pid": process.pid})
        self._ended(process, KILLED if job.killed else Stopped("cancelled"))

    def _ended(self, process: Process, reason: object) -> None:
        process.end(reason)  # if it had not come so far as to do that
        self._processes.pop(process, None)
        if not self._processes:
            self._parking.wake()

    @property
    def processes(self) -> list[Pid]:
        """Those that live, the eldest first."""
        return [process.pid for process in list(self._processes)]

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<Scope {self.name!r} {state}, {len(self._processes)} processes>"


def _calling() -> Process | None:
    try:
        return current_process()
    except LookupError:
        return None


def current_scope() -> Scope:
    """The innermost open scope around the calling code.

    Raises:
        ScopeError: There is none.
    """
    scope = _current.get()
    if scope is None or not scope._open:
        raise ScopeError("there is no open scope here: use `async with Scope():`")
    return scope


def spawn(fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, **options: Any) -> Pid:
    """``current_scope().spawn``."""
    return current_scope().spawn(fn, *args, **options)


def spawn_link(fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, **options: Any) -> Pid:
    """Start a process linked with the calling one, from before its first step."""
    return current_scope().spawn(fn, *args, link=True, **options)


def spawn_monitor(
    fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, **options: Any
) -> tuple[Pid, Ref]:
    """Start a process monitored by the calling one, from before its first step."""
    return current_scope().spawn_monitor(fn, *args, **options)


class SpecFields(TypedDict, total=False):
    """What a specification says beside what it runs: see ``ChildSpec``."""

    restart: Restart
    shutdown: Any
    """Seconds, or ``BRUTAL_KILL``."""
    significant: bool
    start_timeout: float
    budget: Budget | None
    backoff: Backoff | None
    exhausted: Exhausted | None
    watchdog: float | None


def process_spec(
    id: str,
    fn: Callable[[*Ts], Awaitable[object]],
    *args: *Ts,
    trap_exit: bool = False,
    capacity: int | None = None,
    overflow: Overflow = Overflow.RAISE,
    **fields: Unpack[SpecFields],
) -> ChildSpec:
    """A specification with which a supervisor runs ``fn`` as a process.

    The process uses the child's own Device; the supervisor's request to stop is
    its parent's exit signal. ``which_child(id).value`` is its pid.

    Args:
        id: The child's.
        fn: What the process runs.
        args: What to call it with.
        trap_exit: As for ``spawn``, and the next two.
        capacity: See there.
        overflow: See there.
        fields: Of the ``ChildSpec``: ``restart``, ``shutdown`` and so on.
    """
    check_capacity(capacity)

    async def run(*, device: Device, task_status: TaskStatus[Pid]) -> None:
        process = Process(device, capacity=capacity, overflow=overflow, trap_exit=trap_exit)
        task_status.started(process.pid)
        await process.run(fn, *args)

    return ChildSpec(id, run, gets_device=True, **fields)
